"""What a person sees in a terminal of 80 columns."""

import io
import itertools
import os
import re
from types import SimpleNamespace

from rich.console import Console

from qrun.cli.configs import show
from qrun.report import screen


def test_a_bar_of_80_columns_has_count_rate_and_time_left_before_its_note(monkeypatch):
    monkeypatch.setattr(screen, "console", Console(force_terminal=True, width=80, file=io.StringIO()))
    monkeypatch.setattr(screen, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # a second a look
    note = "loss 3.165  validation 3.2625 nats/token"
    with screen.bar("training on the device", 16_384, "tokens") as advance:
        advance(8_192, note)
    lines = [line for line in screen.console.file.getvalue().splitlines() if "8192/16384" in line]
    assert lines, "never drawn"
    for line in lines:
        assert "8,192 tokens/s" in line and re.search(r"-:--:--|\d:\d\d:\d\d", line) and note not in line, line


def test_a_wide_bar_has_its_note(monkeypatch):
    monkeypatch.setattr(screen, "console", Console(force_terminal=True, width=140, file=io.StringIO()))
    with screen.bar("training", 100, "steps") as advance:
        advance(50, "loss 3.165  validation 3.2625 nats/token")
    assert "50/100" in screen.console.file.getvalue() and "3.2625 nats/token" in screen.console.file.getvalue()


def test_the_list_of_options_breaks_no_word_at_80_columns(monkeypatch, capsys):
    words = {}
    for width in (80, 400):
        monkeypatch.setattr(screen, "console", Console(highlight=False, soft_wrap=True, width=width))
        show(None)
        out = capsys.readouterr().out
        words[width] = sorted(out.split())
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    assert words[80] == words[400]


def test_a_pipe_is_as_wide_as_the_terminal_behind_it(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda stream: os.terminal_size((93, 24)))
    assert screen._width() == 93

    def none(stream):
        raise OSError

    monkeypatch.setattr(os, "get_terminal_size", none)
    assert screen._width() == screen.WIDE
