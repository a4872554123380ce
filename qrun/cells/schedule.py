"""Studies as lists of cells: each one run, found in the store when it is finished, named at the end when it failed.

A cell's key is a hash of everything that can change its result: its config, the model's weights, the text, and the code
of the rooms that compute it. The store is the only memory: kill a study at any point and start it again, and no
finished cell is computed twice. Parent and cells are runs of one experiment.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from qrun.cells.pool import Cell, launch
from qrun.config.schema import LauncherConfig
from qrun.errors import InputError, RunFailed
from qrun.report.screen import bar, console, say
from qrun.tracking.store import Run, Store
from qrun.training.interrupt import Interrupt

VERB = "study"
CODE = (
    "adapters",
    "compression",
    "language",
    "quantum",
    "training",
    "evaluation",
)  # rooms whose code can change a number
ELSEWHERE = ("results", "name", "study", "launcher")  # config keys that cannot


@cache
def code_digest() -> str:
    """Fingerprint of the source of the result-bearing rooms."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(p for room in CODE for p in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cell_key(config: Any, weights: str, data: dict[str, str], **more: Any) -> str:
    """16 hex digits over config, weights, text, code and whatever else makes the cell.

    Paths are left out: weights and text stand for them.
    """
    values = {k: v for k, v in _plain(config).items() if k not in ELSEWHERE}
    for group in ("model", "data", "teacher"):
        if isinstance(values.get(group), dict):
            values[group].pop("path", None)
    return hashlib.sha256(
        json.dumps([values, weights, data, code_digest(), more], sort_keys=True, default=str).encode()
    ).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """config.compose.plain without OmegaConf's checks, twenty times as fast: a study makes hundreds of keys."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return (
        value.name
        if isinstance(value, Enum)
        else [_plain(item) for item in value]
        if isinstance(value, list | tuple)
        else value
    )


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """One study at a time in a store. Raises InputError if another process has one open."""
    store.check_writable()
    with (store.folder / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"results={store.folder}: another study is running in this store; wait for it or choose another folder"
            ) from error
        yield


@contextmanager
def study(store: Store, name: str, key: str, params: dict[str, Any], tags: dict[str, Any]) -> Iterator[Run]:
    """The study's parent run: the same one when the same study is started again."""
    with alone(store), Interrupt().installed():
        known = store.tagged(VERB, "study_key").get(key)
        for run in store.tagged(VERB, "cell_key", "RUNNING").values():  # nobody else is here: these were killed
            store.client.set_terminated(run.info.run_id, "KILLED")
        with store.run(
            VERB,
            name,
            params,
            {**tags, "study_key": key, "code_digest": code_digest()},
            known.info.run_id if known else None,
        ) as parent:
            yield parent


@dataclass(frozen=True)
class Scene:
    """An opened study: its config, what its cells share, its store and its parent run."""

    config: Any
    shelf: Any
    opened: Any
    store: Store
    parent: Run

    @property
    def weights(self) -> str:
        return self.opened.language.identity["weights"]

    @property
    def data(self) -> dict[str, str]:
        return self.opened.corpus.digests

    def run(self, cells: list[Cell]) -> dict[str, Any]:
        """Compute what is missing; finished runs by key."""
        return run_cells(self.store, self.parent, cells, self.config.launcher, self.shelf, self.config.model.device)

    def documents_interval(self, first: list[Any], second: list[Any], which: tuple[str, str]) -> tuple[float, float]:
        """record.documents_interval of two lists of runs, one per seed."""
        from qrun.recipes.record import documents_interval

        a, b = ([run.info.run_id for run in runs] for runs in (first, second))
        return documents_interval(self.store, a, b, which, self.config.evaluation.resamples, self.config.seed)


@contextmanager
def open_study(config: Any, verb: str, said: list[str], **more: Any) -> Iterator[Scene]:
    """Load model and text, then open the parent run and write what identifies it.

    `said`: lines about what is left out.
    """
    from qrun.recipes.record import Shelf, flat_params, open_record, tags

    shelf, store = Shelf(), Store(config.results)
    opened = shelf.open(config)
    for line in said:
        say(line)
    if getattr(config, "home", None) is not None:
        more["home"] = shelf.text(config.home).digests
    key = cell_key(
        config, opened.language.identity["weights"], opened.corpus.digests, axes=asdict(config.study), verb=verb, **more
    )
    with study(
        store, config.name or f"{config.model.name}-{verb}-{key[:8]}", key, flat_params(config), tags(config, opened)
    ) as parent:
        open_record(parent, config, opened)
        yield Scene(config, shelf, opened, store, parent)


def run_cells(
    store: Store, parent: Run, cells: list[Cell], launcher: LauncherConfig, shelf: Any, device: str
) -> dict[str, Any]:
    """Compute what is missing and return the finished runs by key.

    Raises RunFailed naming the cells that failed, after all others are done.
    """
    finished = store.tagged(VERB, "cell_key", "FINISHED")
    different = list(
        {cell.key: cell for cell in cells}.values()
    )  # two points of a grid can be one cell, such as a rate and the preset that has it
    missing = [
        cell for cell in different if cell.key not in finished or not (cell.leaves is None or cell.leaves.is_file())
    ]
    stale = sum(run.data.tags.get("code_digest") != code_digest() for run in finished.values())
    older = f" ({stale} finished by another version of the code are not used)" if stale else ""
    say(f"{len(different)} cells: {len(different) - len(missing)} finished before, {len(missing)} to compute{older}")
    failed: list[str] = []
    started, done = time.monotonic(), 0
    if missing:
        common = {"mlflow.parentRunId": parent.run_id, "code_digest": code_digest()}
        with bar("cells", len(missing), "cells", spoken=False) as advance:
            for outcome in launch(missing, common, launcher, device, shelf):
                done += 1
                if outcome.error:
                    failed.append(f"{outcome.cell.label} ({outcome.error})")
                state = f"failed: {outcome.error}" if outcome.error else "done"
                left = (time.monotonic() - started) / done * (len(missing) - done)
                about = "" if console.is_terminal else f"; about {left / 60:.1f} min left"
                say(f"[{done}/{len(missing)}] {outcome.cell.label}: {state}, {outcome.seconds:.1f} s{about}")
                advance(1, outcome.cell.label)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(different)} cells failed: {'; '.join(failed)}; the others are kept")
    found = store.tagged(VERB, "cell_key", "FINISHED") if missing else finished
    return {cell.key: found[cell.key] for cell in cells}
