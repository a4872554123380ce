"""`qrun rerun`: repeat a recorded run and compare, bit for bit.

qrun rerun nano-b4-s0-1a2b3c4d                a training, an evaluation, tasks, a cell, or a whole study
qrun rerun <run> --results <its results folder>

The config is the record's, the store a temporary one: what was recorded stays as it is. Numbers of the clock and of the
machine's memory are not compared. Where numbers differ, all that the two records say of code, packages, machine, model
and text is held against each other.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from qrun.cells.cell import Cell, whole
from qrun.cells.keys import Keys, Sources
from qrun.cells.pool import open_pool
from qrun.cells.schedule import plan, run_missing
from qrun.cells.study import EXPERIMENT, Study
from qrun.cells.workspace import Workspace
from qrun.config.compose import from_yaml
from qrun.config.schema import LauncherKind, TrackingConfig
from qrun.config.verbs import VERBS
from qrun.errors import InputError, RunFailed
from qrun.evaluation.results import CELLS, IDENTITY, read
from qrun.recipes.harness import run_tasks
from qrun.recipes.perplexity import measure
from qrun.recipes.train import train
from qrun.report.screen import say, table
from qrun.tracking import database
from qrun.tracking.runs import PARENT, Recorded
from qrun.tracking.store import PREFIX, Store
from qrun.training.interrupt import Interrupt

SINGLE: Mapping[str, tuple[str, Callable[[Any], object]]] = {  # by MLflow's experiment: the verb, and its recipe
    "train": ("train", train), "eval-perplexity": ("perplexity", measure), "eval-tasks": ("tasks", run_tasks),
}  # fmt: skip
CLOCK = ("seconds", "memory", "per_second", "system/")  # parts of the names of metrics that no two runs share
FILES = ("adapter/adapter_model.safetensors", "units.json")
DIGESTS = ("adapter_files", "compute", "questions_digest", "tasks_digest")  # tags beside those of IDENTITY
SHOWN = 12  # rows of a table of differences


class Studies(Protocol):
    """The package of studies, which stands above this room."""

    def module(self, name: str) -> Any:
        """The module of a study."""
        ...


@dataclass(frozen=True)
class Compared:
    """How many numbers and files two records share the bits of, and what differs: name -> there, here."""

    same: int
    differing: Mapping[str, tuple[object, object]]
    circumstances: Mapping[str, tuple[object, object]]


def rerun(word: str, results: str, tracking_uri: str | None, studies: Studies) -> None:
    """Repeat the run of that name or id. Raises InputError for a run that cannot be repeated, and RunFailed if any
    number differs."""
    store = Store(results, tracking_uri)
    found = store.find(word)
    run, verb = store.recorded(found.info.run_id), store.client.get_experiment(found.info.experiment_id).name
    verb = verb.removeprefix(PREFIX)
    if run.status != "FINISHED":
        raise InputError(f"{word}: is {run.status.lower()}; a finished run can be repeated")
    if verb not in (*SINGLE, EXPERIMENT):
        raise InputError(f"{word}: a run of {verb}; runs of {', '.join((*SINGLE, EXPERIMENT))} can be repeated")
    with TemporaryDirectory(prefix="qrun-rerun-") as folder:
        again = Store(folder, database.uri(Path(folder).resolve() / "mlflow.db"))  # whatever MLFLOW_TRACKING_URI says
        pairs = _cells(store, again, run, studies) if verb == EXPERIMENT else [_single(verb, run, again)]
        compared = {name: compare(before, after) for name, before, after in pairs}
    _tell(word, compared)


def _single(verb: str, run: Recorded, again: Store) -> tuple[str, Recorded, Recorded]:
    name, recipe = SINGLE[verb]
    config = from_yaml(run.text("config.yaml"), VERBS[name])
    _threads(run)
    recipe(replace(config, results=str(again.folder), tracking=TrackingConfig(uri=again.uri)))
    return run.name, run, again.runs()[verb][0]


def _threads(run: Recorded) -> None:
    """As many as the record's: sums in another order differ in the last bits."""
    torch.set_num_threads(int(json.loads(run.text("env.json"))["torch_threads"]))


def _cells(store: Store, again: Store, run: Recorded, studies: Studies) -> list[tuple[str, Recorded, Recorded]]:
    """The cells of a study, or one of them with what it needs: label, as recorded, as computed now."""
    one = "cell_key" in run.tags
    parent = store.recorded(run.tags[PARENT]) if one else run
    study: Study = studies.module(parent.tags["study"])
    config: Any = from_yaml(parent.text("config.yaml"), study.Config)  # type: ignore[attr-defined]  # each has its own
    config.results, config.tracking = str(again.folder), TrackingConfig(uri=again.uri)
    config.launcher.kind = LauncherKind.local
    grid, keys = whole(study.cells(config, say)), Keys(Sources())
    if one:
        axes = {name: value for name, value in run.params.items() if name != "folder"}
        chosen = [(cell, run) for cell in grid if cell.task.kind == run.tags["kind"] and _axes(cell) == axes][:1]
        if not chosen:
            raise InputError(f"{run.name}: no cell of the study {parent.name} has its axes; it is of another version")
    else:
        rows = read(run.file("results")).table
        if list(rows["kind"]) != [cell.task.kind for cell in grid]:
            raise InputError(
                f"{run.name}: its grid has {len(rows)} cells in {CELLS}, and other ones, {len(grid)}, here"
            )
        chosen = [(cell, store.recorded(run_id)) for cell, run_id in zip(grid, rows["run_id"], strict=True)]
    wanted = {keys.of(cell): (cell.label, before) for cell, before in chosen}
    todo = plan([cell for cell, _ in chosen], keys, {})
    say(f"{len(wanted)} cells to repeat, {len(todo.missing)} with those that they need")
    words = {"study": parent.tags["study"]}
    with Interrupt().installed(), again.run(EXPERIMENT, parent.name, {}, words) as above:
        workspace, device = Workspace(keys.sources), config.model.device
        with open_pool(config.launcher, device, workspace, len(todo.missing), again.folder) as pool:
            run_missing(todo, keys, {}, pool, again, above.run_id)
    after = again.tagged(EXPERIMENT, "cell_key", "FINISHED")
    return [(label, before, after[key]) for key, (label, before) in wanted.items()]


def _axes(cell: Cell) -> dict[str, str]:
    """As the store has them."""
    return {name: str(value) for name, value in cell.axes.items() if value is not None}


def compare(before: Recorded, after: Recorded) -> Compared:
    """Metrics, measurements and files of two records of one run, and what they say of where they were made."""
    there, here = dict(_numbers(before)), dict(_numbers(after))
    differing = _differing(there, here)
    return Compared(
        len(there.keys() | here.keys()) - len(differing), differing, _differing(_made(before), _made(after))
    )


def _numbers(run: Recorded) -> Iterator[tuple[str, object]]:
    for name, value in run.metrics.items():
        if not any(part in name for part in CLOCK):
            yield name, "nan" if math.isnan(value) else value
    for name in ("perplexity_base", "perplexity_adapted", f"perplexity_{run.tags.get('device')}", "measurement"):
        if (file := run.find(f"{name}.json")) is not None:
            values = json.loads(file.read_text())
            for part in ("nats", "tokens"):
                yield f"{name}, {part} of each document", values[part]
    for name in FILES:
        if (file := run.find(name)) is not None:
            yield name, file.read_bytes()


def _made(run: Recorded) -> Mapping[str, object]:
    """Code, packages, machine, model, text and config of a record."""
    file = run.find("env.json")
    environment = json.loads(file.read_text()) if file is not None else {}
    packages = environment.pop("packages", {})
    machine = {key: environment.get(key) for key in ("python", "platform", "processor", "torch_threads", "gpu")}
    words = {key: run.tags.get(key) for key in (*IDENTITY, *DIGESTS)}
    return {key: value for key, value in {**words, **machine, **packages}.items() if value is not None}


def _differing(there: Mapping[str, object], here: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    names = list(dict.fromkeys([*there, *here]))
    return {name: (there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)}


def _tell(word: str, compared: Mapping[str, Compared]) -> None:
    """What is the same, what differs and why. Raises RunFailed if any number differs."""
    same = sum(found.same for found in compared.values())
    rows = [(label, name, *pair) for label, found in compared.items() for name, pair in found.differing.items()]
    made = {name: pair for found in compared.values() for name, pair in found.circumstances.items()}
    what = "1 run" if len(compared) == 1 else f"{len(compared)} cells"
    say(f"{same} numbers and files of {what} have the same bits; nothing of the repetition is kept")
    if rows:
        shown = [[label if len(compared) > 1 else "", name, *map(_shown, pair)] for label, name, *pair in rows[:SHOWN]]
        more = f"and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        table(f"{word}, repeated", ["", "differs", "recorded", "now"], shown, more)
    for name, (there, here) in made.items():
        say(f"other {name}: {there} in the record, {here} here")
    dirty = "true" in [str(value) for value in made.get("git_dirty", ())]
    if not rows:
        return
    why = f"made with another {', '.join(list(made)[:SHOWN])}" if made else "under the same recorded circumstances"
    hint = "; a checkout had changes that are in no commit" if dirty else ""
    raise RunFailed(f"{word}: {len(rows)} of {same + len(rows)} numbers and files differ, {why}{hint}")


def _shown(value: object) -> str:
    """A number in full; of lists and files what a row can hold."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} values, sum {math.fsum(value)!r}"
    return "none" if value is None else str(value)
