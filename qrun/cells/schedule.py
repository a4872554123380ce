"""Cells in any order that their needs allow: what is finished is never computed twice, what failed is named at the end.

A cell runs as soon as what it needs is there, so measuring starts while others still train. A need that is finished but
whose file is gone is computed again only when an unfinished cell wants it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qrun.cells.cell import Cell, Place, with_needs
from qrun.cells.keys import Keys, code_fingerprint
from qrun.errors import RunFailed
from qrun.report.screen import bar, console, say
from qrun.tracking.runs import PARENT, Recorded
from qrun.tracking.store import Store

if TYPE_CHECKING:
    from qrun.cells.pool import Pool


@dataclass(frozen=True)
class Plan:
    """A grid against what a store has: all different cells by key, and the keys to compute, needs first."""

    cells: Mapping[str, Cell]
    missing: Sequence[str]
    names: Mapping[str, str]
    leaves: Mapping[str, Path | None]


def plan(cells: Sequence[Cell], keys: Keys, finished: Mapping[str, Recorded]) -> Plan:
    """What is to be computed of these cells."""
    everything: dict[str, Cell] = {}
    for cell in with_needs(cells):
        everything.setdefault(keys.of(cell), cell)
    names = {key: cell.task.name(cell.axes, key) for key, cell in everything.items()}
    leaves = {key: cell.task.leaves(names[key]) for key, cell in everything.items()}
    missing = {key for key in everything if key not in finished}
    for key in reversed(list(everything)):  # what needs comes before what is needed here
        if key in missing:
            for need in everything[key].needs.values():
                left = leaves[keys.of(need)]
                if left is not None and not left.is_file():
                    missing.add(keys.of(need))
    return Plan(everything, [key for key in everything if key in missing], names, leaves)


def run_missing(
    todo: Plan, keys: Keys, runs: dict[str, str], pool: "Pool", store: Store, parent: str
) -> tuple[int, float]:
    """Compute what is missing and add its run ids to `runs` (key -> run id). Returns how many cells were computed and
    the seconds they took. Raises RunFailed naming the cells that failed and those that could not start without them,
    after all others are done."""
    needs = {key: {n: keys.of(c) for n, c in todo.cells[key].needs.items()} for key in todo.missing}
    waiting, running, failed, lost = list(todo.missing), set[str](), list[str](), set[str]()
    open_keys = set(waiting)
    started, done, spent = time.monotonic(), 0, 0.0
    with bar("cells", len(waiting), "cells", spoken=False) as advance:
        while waiting or running:
            waiting = _drop_lost(waiting, needs, lost, todo, failed)
            ready = (k for k in waiting if not open_keys & set(needs[k].values()))
            while len(running) < pool.capacity and (key := next(ready, None)) is not None:
                cell = todo.cells[key]
                task = cell.task
                tags = {PARENT: parent, "code": code_fingerprint(task.modules), "kind": task.kind}
                tags["work"] = f"{task.work():.6g}"
                have = {name: runs[need] for name, need in needs[key].items()}
                waiting.remove(key)
                running.add(key)
                pool.submit(key, task, Place(str(store.folder), store.uri, todo.names[key], key, tags, cell.axes, have))
            if not running:
                break
            outcome = pool.next()
            running.discard(outcome.key)
            open_keys.discard(outcome.key)
            label = todo.cells[outcome.key].label
            done, spent = done + 1, spent + outcome.seconds
            if outcome.error is not None:
                failed.append(f"{label} ({outcome.error})")
                lost.add(outcome.key)
            else:
                runs[outcome.key] = outcome.run_id
            state = f"failed: {outcome.error}" if outcome.error else "done"
            left = (time.monotonic() - started) / done * (len(waiting) + len(running))
            about = "" if console.is_terminal else f"; about {left / 60:.1f} min left"
            say(f"[{done}/{len(todo.missing)}] {label}: {state}, {outcome.seconds:.1f} s{about}")
            advance(1, label)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(todo.cells)} cells failed: {'; '.join(failed)}; the others are kept")
    return done, spent


def _drop_lost(
    waiting: list[str], needs: Mapping[str, Mapping[str, str]], lost: set[str], todo: Plan, failed: list[str]
) -> list[str]:
    """Take out what needs a failed cell; it is lost too."""
    kept = []
    for key in waiting:  # in an order in which needs come first
        if lost & set(needs[key].values()):
            lost.add(key)
            failed.append(f"{todo.cells[key].label} (not run: what it needs failed)")
        else:
            kept.append(key)
    return kept
