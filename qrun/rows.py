"""Which position of which text each row of a forward pass is: set around the pass, read by whoever runs circuits.

A number says the same of a position however texts are batched, and -1 marks padding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
_current: ContextVar[Numbers | None] = ContextVar("rows", default=None)


def number(text: int, window: int, positions: int, padded: int) -> Numbers:
    """Numbers [padded] of a window's positions: 2^20 texts of 2^16 windows of 2^17 positions have different ones."""
    row = np.full(padded, -1, np.int64)
    row[:positions] = (text << 33) + (window << 17) + np.arange(positions)
    return row


@contextmanager
def numbered(numbers: Numbers) -> Iterator[None]:
    """Around a forward pass over input ids [batch, T]: their numbers, of the same shape."""
    token = _current.set(numbers.reshape(-1))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Numbers | None:
    """Numbers [batch * T] of the pass under way; None where nobody gave any."""
    return _current.get()
