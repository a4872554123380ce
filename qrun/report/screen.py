"""What a person sees: one bar for long work, one small table at the end; plain lines where there is no terminal."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

WIDE = 160  # characters, where nobody's terminal says how wide it is


def _width() -> int | None:
    """Rich asks the terminal itself; through a pipe the terminal behind it counts, which the error stream may know."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return None
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return WIDE


console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=_width())
EVERY = 10.0  # seconds between plain log lines


def say(message: str) -> None:
    """One line to the user."""
    console.print(message, markup=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing is printed inside: a study shows one line per cell, not what each cell shows."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextmanager
def bar(title: str, total: int, unit: str, spoken: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Progress of `total` units. The block gets advance(units, note); without a terminal a line appears every ten
    seconds, unless the block speaks itself."""
    started = time.monotonic()
    done, last, notes = 0, started, ""

    def rate() -> str:
        value = done / max(time.monotonic() - started, 1e-9)
        if 0 < value < 0.5:
            return f"{1 / value:.0f} s for one"
        return f"{value:,.{0 if value >= 100 else 1}f} {unit}/s"

    if console.is_terminal:
        last_column = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # it has what the others leave
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}", table_column=last_column),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True, expand=True) as progress:
            task = progress.add_task(title, total=total, rate="", note="")

            def advance(units: int, note: str = "") -> None:
                nonlocal done, notes
                done, notes = done + units, note or notes
                progress.update(task, completed=done, rate=rate(), note=notes)

            yield advance
    else:

        def advance(units: int, note: str = "") -> None:
            nonlocal done, last, notes
            done, notes = done + units, note or notes
            now = time.monotonic()
            if spoken and now - last >= EVERY and done < total:
                last = now
                left = (now - started) / max(done, 1) * (total - done)
                say(f"{title}: {done:,}/{total:,}  {rate()}  {left:.0f} s left  {notes}".rstrip())

        yield advance
    note = f"  {notes}" if notes and spoken else ""
    say(f"{title}: {done:,} {unit} in {time.monotonic() - started:.1f} s{note}")


def table(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> None:
    """A result: first column names, the others numbers."""
    shown = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", title_style="bold",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*map(escape, row))  # [ray] is text here, not a style
    console.print(shown)


def listing(columns: list[str], rows: list[list[str]]) -> None:
    """Left-aligned columns without a frame."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))  # [ray] is text here, not a style
    console.print(shown)
