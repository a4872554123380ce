"""SIGINT and SIGTERM: at once where nothing is lost, at the end of the step where a checkpoint must be whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qrun.errors import Interrupted


class Interrupt:
    """While `deferred`, a signal only sets `received`. Otherwise it raises Interrupted. A second signal always
    raises."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        first, self.received = self.received is None, signum
        if not (self.deferred and first):
            raise Interrupted(signum)

    @contextmanager
    def installed(self) -> Iterator["Interrupt"]:
        """Handle both signals until the block ends, then restore what was there."""
        before = {s: signal.signal(s, self.handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def at_step_ends(self) -> Iterator[None]:
        """Defer signals inside the block; the block looks at `received` where it can stop."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False
