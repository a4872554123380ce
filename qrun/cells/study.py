"""A study from its grid to its results: dry run, lock, parent run, missing cells, one table.

    run_study("noise", module, config, dry_run=False)

A study module declares `cells(config, say)`, `numbers(results)` and `grades(numbers)`; this is everything else. The
store is the only memory: kill a study at any point, start it again, and no finished cell is computed twice.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import pandas as pd
from filelock import FileLock, Timeout

from qrun.cells.cell import Cell, whole, with_needs
from qrun.cells.keys import Keys, Sources
from qrun.cells.schedule import Plan, plan, run_missing
from qrun.cells.table import collect
from qrun.config.compose import PLACES, config_hash, to_yaml
from qrun.config.schema import LauncherConfig, ModelConfig, TrackingConfig
from qrun.config.tree import used
from qrun.errors import InputError
from qrun.evaluation.resampling import units_needed
from qrun.evaluation.results import IDENTITY, Results
from qrun.files import below
from qrun.report.curves import AXES, curves, with_trainings
from qrun.report.grade import Verdict
from qrun.report.page import About, Page, make_page, show
from qrun.report.screen import say
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.runs import Recorded, Run
from qrun.tracking.store import Store
from qrun.tracking.views import View
from qrun.training.interrupt import Interrupt

EXPERIMENT = "study"
ABOUT = "study.json"
CELLS = View(
    "cells",
    ("metrics.gain", "metrics.perplexity", "metrics.relative_perplexity", "params.b", "params.method", "params.axis",
     "metrics.cz_error_rate", "tags.device", "tags.noise", "params.seed"),
    scatters=(("metrics.cz_error_rate", "metrics.relative_perplexity"), ("params.b", "metrics.gain")),
)  # fmt: skip
CURVES = ("params.b", "params.axis", "params.method", "params.way", "params.sites")
TOLD = "told"  # tag of a parent whose page, table, figures and curves are whole
DEVIATION = 0.02  # nats per token, of the gains in results/dim/nano: interval / 3.92 * sqrt(effective documents)
# FLOP a second of one process on two shared cores, nano: what a dry run assumes where the store has no finished cell
RATES = {"scan": 5e10, "train": 5e10, "measure": 3e10, "compress": 5e10, "ask": 3e10}


class StudyConfig(Protocol):
    """What the engine needs of a study's config."""

    model: ModelConfig
    launcher: LauncherConfig
    results: str
    name: str | None
    tracking: TrackingConfig


class Study(Protocol):
    """A module in qrun/studies."""

    def cells(self, config: StudyConfig, say: Callable[[str], None]) -> Iterator[Cell]:
        """The whole grid, before anything runs; `say` what is left out."""
        ...

    def numbers(self, results: Results) -> Mapping[str, pd.DataFrame]:
        """Grouping and statistics."""
        ...

    def grades(self, numbers: Mapping[str, pd.DataFrame]) -> list[Verdict]:
        """Pure rules."""
        ...


def run_study(name: str, study: Study, config: StudyConfig, dry_run: bool, typed: Sequence[str] = ()) -> Results | None:
    """Compute what is missing, record and show the results; with `dry_run` list the cells, and return None. `typed` is
    the study's own command, where another one runs it."""
    grid = whole(study.cells(config, say))
    if dry_run:
        _list(name, grid, config, getattr(study, "LEAST", None))
        return None
    store, sources = Store(config.results, config.tracking.uri), Sources()
    keys = Keys(sources)
    for cell in grid:
        keys.of(cell)  # everything that is wrong with models and texts is told before anything is recorded
    study_key = hashlib.sha256(json.dumps([name, *sorted({keys.of(c) for c in grid})]).encode()).hexdigest()[:16]
    words = [word for word in typed or sys.argv[1:] if word.partition("=")[0].partition(".")[0] not in PLACES]
    about = About(
        study=name, model=config.model.name, command=" ".join(["qrun", *words]), config=to_yaml(config, PLACES),
        config_hash=config_hash(config), study_key=study_key, **git_state(),
    )  # fmt: skip
    with alone(store), Interrupt().installed():
        say(f"runs go to {store.where}")
        finished = store.tagged(EXPERIMENT, "cell_key", "FINISHED", [keys.of(cell) for cell in with_needs(grid)])
        todo = plan(grid, keys, finished)
        count, missing = len(todo.cells), len(todo.missing)
        say(f"{count} cells: {count - missing} finished before, {missing} to compute")
        parent = store.tagged(EXPERIMENT, "study_key", values=[study_key]).get(study_key)
        if parent is not None and parent.status == "RUNNING" and not store.mine(parent):
            parent = None  # somebody else computes it now, from another results folder
        if todo.missing or parent is None or parent.status != "FINISHED":
            results, run_id = _compute(store, keys, grid, todo, finished, about, config, parent)
        else:  # a finished study stays finished, whatever happens to this look at it
            results, run_id = collect(grid, keys, finished), parent.run_id
        told = store.recorded(run_id).tags.get(TOLD) == about.study_key
        show(page := make_page(about, results if told else with_trainings(results, store), study))
        if not told:
            _tell(store, Run(store.client, run_id, name), page, results)
    store.view(EXPERIMENT, "cells", CELLS)
    say(f"run     {store.link(EXPERIMENT, run_id)}")
    say(f"cells   {store.link(EXPERIMENT, view='cells')}")
    if name in AXES:
        store.view(name, "curves", View(f"{name}: curves", CURVES, tuple(AXES[name].metrics), charts=True))
        say(f"charts  {store.link(name, view='curves', charts=True)}")
    return results


def _compute(
    store: Store, keys: Keys, grid: Sequence[Cell], todo: Plan, finished: Mapping[str, Recorded], about: About,
    config: StudyConfig, parent: Recorded | None,
) -> tuple[Results, str]:  # fmt: skip
    """The missing cells, below the study's parent run."""
    for killed in store.tagged(EXPERIMENT, "cell_key", "RUNNING").values():
        if store.mine(killed):  # and nobody else is here
            store.close(killed)
    name = config.name or f"{about.model}-{about.study}-{about.study_key[:8]}"
    words = {"study": about.study, "study_key": about.study_key, "model_name": about.model, **git_state(), **used()}
    params = {"study": about.study, "model.name": about.model, "cells": len(todo.cells)}
    with store.run(EXPERIMENT, name, params, words, parent.run_id if parent else None) as run:
        run.texts({"config.yaml": about.config, "env.json": json.dumps(environment(), indent=1)})
        if todo.missing:
            from qrun.cells.pool import open_pool  # torch: what is finished is shown without it
            from qrun.cells.workspace import Workspace

            workspace, runs = Workspace(keys.sources), {key: done.run_id for key, done in finished.items()}
            jobs = below(store.folder, "slurm")
            with open_pool(config.launcher, config.model.device, workspace, len(todo.missing), jobs) as pool:
                run_missing(todo, keys, runs, pool, store, run.run_id)
            finished = {**{key: store.recorded(run) for key, run in runs.items() if key not in finished}, **finished}
        results = collect(grid, keys, finished)
        folder = below(store.folder, "studies", name)
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder)
        (folder / ABOUT).write_text(about.to_json())
        run.folder(folder, "results")
        store.label([finished[key] for key in {keys.of(cell) for cell in grid}], f"in_{about.study}", about.study_key)
    return results, run.run_id


def _tell(store: Store, run: Run, page: Page, results: Results) -> None:
    """What the UI shows of a study without a click: verdicts and page on the parent's, its table and figures, and in an
    experiment of the study's own a run per curve."""
    from qrun.report.figures import draw  # matplotlib

    study, key = page.about.study, page.about.study_key
    run.note("\n\n".join(f"**{verdict.outcome.value}** {sentence}" for verdict, sentence in page.verdicts)[:4000])
    shown = results.table.drop(columns=[name for name in IDENTITY if name in results.table])
    run.table({str(name): shown[name].tolist() for name in shown}, "cells.json")
    run.texts({"page.md": page.markdown})
    for name, figure in draw(study, page.about.model, page.numbers).items():
        run.figure(figure, f"figures/{name}.png")
    if study in AXES:
        store.remove(study, "study_key", key)
        for curve in curves(study, page.numbers):
            words = {"study_key": key, "mlflow.runColor": curve.colour, "model_name": page.about.model}
            with store.run(study, curve.name, dict(curve.params), words) as drawn:
                drawn.series([(step, dict(metrics)) for step, metrics in curve.rows])
    run.tags({TOLD: key})
    store.keep(run)


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """One study at a time in a store. Raises InputError if another process has one open."""
    store.check_writable()
    try:
        held = FileLock(store.folder / "study.lock").acquire(timeout=0)
    except Timeout as error:
        why = "another study is running in this store; wait or choose another folder"
        raise InputError(f"results={store.folder}: {why}") from error
    with held:
        yield


def _list(name: str, grid: Sequence[Cell], config: StudyConfig, least: float | None) -> None:
    """What would run, at the model's true shape: neither weights nor text are needed, nor a store there. `least` is the
    smallest difference that the study's claims name, in nats per token."""
    for cell in grid:
        count = cell.task.parameters()
        say(cell.label + (f": {count:,} parameters" if count else ""))
    finished = finished_cells(config)
    if least is not None:
        own = measured_deviation(finished)
        deviation, whose = (DEVIATION, "of nano") if own is None else (own, "of finished cells in this store")
        documents, seen = units_needed(least, deviation), f"{deviation:.2g} nats per token from document to document"
        told = f"the smallest claimed difference, {least:.2g} nats per token, takes {documents:,} effective documents"
        say(f"{name}: {told} for 80 % power, at {seen} {whose}")
    speed = measured_rates(finished)
    where = "at rates of finished cells in this store" if speed else "at the rates of nano on two cores"
    work = dict.fromkeys(RATES, 0.0)
    for cell in grid:
        work[cell.task.kind] += cell.task.work() / (RATES | speed)[cell.task.kind]
    kinds = Counter(cell.task.kind for cell in grid)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    minutes = sum(work.values()) / 60
    scans = f", {work['scan'] / sum(work.values()):.0%} of them scans of learning rates" if work["scan"] else ""
    say(f"{name}: {len(grid)} cells ({listed}); about {minutes:.0f} process-minutes {where}{scans}; nothing was run")


def finished_cells(config: StudyConfig) -> list[Recorded]:
    """Those of the store; none of a new one."""
    return list(Store(config.results, config.tracking.uri).tagged(EXPERIMENT, "cell_key", "FINISHED").values())


def measured_deviation(finished: Sequence[Recorded]) -> float | None:
    """Standard deviation over documents of a gain in nats per token, the median of finished cells, each from its
    interval; None where none has one."""
    found = []
    for m in (run.metrics for run in finished):
        if {"gain_low", "gain_high", "effective_documents"} <= m.keys() and m["gain_high"] > m["gain_low"]:
            half = (m["gain_high"] - m["gain_low"]) / 2 / m["perplexity"]
            found.append(half / 1.96 * m["effective_documents"] ** 0.5)
    return sorted(found)[len(found) // 2] if found else None


def measured_rates(finished: Sequence[Recorded]) -> dict[str, float]:
    """FLOP a second by kind of task, of finished cells; empty where there are none."""
    rates: dict[str, list[float]] = {}
    for run in finished:
        if (work := float(run.tags.get("work", 0))) and run.seconds > 0:
            rates.setdefault(run.tags["kind"], []).append(work / run.seconds)
    return {kind: sorted(found)[len(found) // 2] for kind, found in rates.items()}
