"""A signal is heard wherever it strikes."""

import gc
import signal
import sys
import time
import weakref

import pytest

from qrun.errors import Interrupted
from qrun.training.interrupt import Interrupt, insisting


class Anything:
    """What a weak reference refers to."""


def dropped(signum):
    """The signal strikes in the callback of a weak reference, where Python drops what is raised."""
    strikes, thing = [], Anything()
    reference = weakref.ref(thing, lambda _: (strikes.append(signum), signal.raise_signal(signum)))
    del thing
    gc.collect()
    assert reference() is None and strikes == [signum]


def struck(signum):
    """Drop it, and wait for it."""
    dropped(signum)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_drops_comes_again(signum, capsys):
    before = sys.unraisablehook
    with pytest.raises(Interrupted) as stop, Interrupt().installed():
        struck(signum)
    assert stop.value.signum == signum and sys.unraisablehook is before and "ignored" not in capsys.readouterr().err


def test_a_ctrl_c_outside_a_run_comes_again_too():
    with pytest.raises(KeyboardInterrupt), insisting():
        struck(signal.SIGINT)


def test_an_error_that_is_no_interruption_is_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with insisting():
        thing = Anything()
        reference = weakref.ref(thing, lambda _: 1 / 0)
        del thing
    assert reference() is None and isinstance(told[0].exc_value, ZeroDivisionError)


def test_a_signal_in_the_last_step_is_told_after_the_work():
    with Interrupt().installed() as interrupt:
        interrupt.after()
        with interrupt.at_step_ends():
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        interrupt.after()
    assert stop.value.signum == signal.SIGTERM
