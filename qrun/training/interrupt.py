"""SIGINT and SIGTERM: at once where nothing is lost, at the end of the step where a checkpoint must be whole.

Python drops an exception that is raised where nobody can catch it, in the callback of a weak reference or a finalizer,
and goes on. `insisting` sees that it was an interruption, and sends the signal again a moment later.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

from qrun.errors import Interrupted

AGAIN_S = 0.05  # after an interruption was dropped


@contextmanager
def insisting() -> Iterator[None]:
    """An interruption that Python drops comes once more, until it is heard."""
    before = sys.unraisablehook

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            return before(dropped)
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        later = Timer(AGAIN_S, os.kill, (os.getpid(), signum))
        later.daemon = True
        return later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


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

    def after(self) -> None:
        """Raise Interrupted for a signal that came so late that the work ended all the same."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def installed(self) -> Iterator["Interrupt"]:
        """Handle both signals until the block ends, then restore what was there."""
        before = {s: signal.signal(s, self.handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with insisting():
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
