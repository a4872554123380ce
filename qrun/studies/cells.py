"""Studies as lists of cells: each one run, found in the store when it is finished, named at the end when it failed.

A cell's key is a hash of everything that can change its result: its config, the model's weights, the text, and the code of the rooms that compute it. The
store is the only memory: kill a study at any point and start it again, and no finished cell is computed twice. Parent and cells are runs of one experiment.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qrun.config.compose import plain
from qrun.errors import InputError, RunFailed
from qrun.report.screen import say, silenced
from qrun.tracking.store import Run, Store
from qrun.training.interrupt import Interrupt

VERB = "study"
CODE = ("adapters", "language", "quantum", "training", "evaluation")  # rooms whose code can change a number


@dataclass(frozen=True)
class Cell:
    """One point of a study. `run` computes it, given the tags that make it a cell of the study, and leaves a FINISHED run with those tags."""

    label: str
    key: str
    run: Callable[[dict[str, str]], None]


@cache
def code_digest() -> str:
    """Fingerprint of the source of the result-bearing rooms."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(p for room in CODE for p in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cell_key(config: Any, weights: str, data: dict[str, str], **more: Any) -> str:
    """16 hex digits over config, weights, text, code and whatever else makes the cell."""
    values = {k: v for k, v in plain(config).items() if k not in ("results", "name", "study")}
    return hashlib.sha256(json.dumps([values, weights, data, code_digest(), more], sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """One study at a time in a store. Raises InputError if another process has one open."""
    store.check_writable()
    with (store.folder / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"results={store.folder}: another study is running in this store; wait for it or choose another folder") from error
        yield


@contextmanager
def study(store: Store, name: str, key: str, params: dict[str, Any], tags: dict[str, Any]) -> Iterator[Run]:
    """The study's parent run: the same one when the same study is started again."""
    with alone(store), Interrupt().installed():
        known = store.tagged(VERB, "study_key").get(key)
        for run in store.tagged(VERB, "cell_key", "RUNNING").values():  # nobody else is here: these were killed
            store.client.set_terminated(run.info.run_id, "KILLED")
        with store.run(VERB, name, params, {**tags, "study_key": key}, known.info.run_id if known else None) as parent:
            yield parent


def run_cells(store: Store, parent: Run, cells: list[Cell]) -> dict[str, Any]:
    """Compute what is missing and return the finished runs by key. Raises RunFailed naming the cells that failed, after all others are done."""
    finished = store.tagged(VERB, "cell_key", "FINISHED")
    missing = [cell for cell in cells if cell.key not in finished]
    say(f"{len(cells)} cells: {len(cells) - len(missing)} finished before, {len(missing)} to compute")
    failed: list[str] = []
    started = time.monotonic()
    for index, cell in enumerate(missing):
        begun = time.monotonic()
        try:
            with silenced():
                cell.run({"mlflow.parentRunId": parent.run_id, "cell_key": cell.key, "cell": cell.label})
            state = "done"
        except (RunFailed, InputError) as error:
            failed.append(f"{cell.label} ({error})")
            state = f"failed: {error}"
        now = time.monotonic()
        left = (now - started) / (index + 1) * (len(missing) - index - 1)
        say(f"[{index + 1}/{len(missing)}] {cell.label}: {state}, {now - begun:.1f} s; about {left / 60:.1f} min left")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}; the others are kept")
    found = store.tagged(VERB, "cell_key", "FINISHED")
    return {cell.key: found[cell.key] for cell in cells}
