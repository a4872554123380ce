"""`qrun reproduce`: the whole paper at a chosen size, command after command, and one report at the end.

qrun reproduce reproduce=nano
qrun reproduce reproduce=smollm2 model.path=/models/SmolLM2-135M --dry-run

configs/reproduce/*.yaml lists the commands in the order of their needs. Other words go to every command that has their
key. The estimate comes first; finished cells are not computed again, so the same command goes on where it was.
"""

import json
import math
import shlex
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from qrun import studies
from qrun.cells.cell import Cell, whole
from qrun.cells.keys import Keys, Sources, plain
from qrun.cells.study import EXPERIMENT, RATES, finished_cells, measured_rates, run_study
from qrun.config.compose import compose
from qrun.config.ranges import require
from qrun.config.schema import DataConfig, ModelConfig, TrackingConfig
from qrun.config.tree import words_of
from qrun.config.verbs import VERBS, leaf_keys
from qrun.errors import InputError, RunFailed
from qrun.evaluation.results import Results
from qrun.language.identity import Identity
from qrun.language.models import model_shape
from qrun.recipes.sizes import CELL, GIB, SHARE, size, speed, weight_bytes
from qrun.recipes.tasks import Compress, Train, compressed
from qrun.report.report import report
from qrun.report.screen import listing, say
from qrun.tracking.store import Store

OWN = ("reproduce", "results", "tracking.uri")  # keys of this command; the last two are the commands' too
NEVER = ("experiment", "name")  # each command has its own
LEFT = ("model", "adapter")  # what a command may leave to later ones


@dataclass
class Published:
    """A number of somebody else's that the command's first one should be near."""

    value: float = MISSING
    within: float = 0.1  # relative; farther off is warned of
    source: str = MISSING


@dataclass
class Command:
    """One command as it is typed. In its own words {path} is this command's model.path, {model} the folder of the last
    compressed model and {adapter} the first adapter trained in it, or else in the model itself."""

    run: str = MISSING
    published: list[Published] = field(default_factory=list)


@dataclass
class Paper:
    """Group `reproduce`."""

    name: str = MISSING
    steps: list[Command] = field(default_factory=list)


@dataclass
class Config:
    """`qrun reproduce`."""

    reproduce: Paper = field(default_factory=Paper)
    results: str = "results"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def configure(words: list[str]) -> Config:
    """The commands with the user's words in them, which win over a command's own. Raises InputError for a word that
    none takes."""
    own = {word for word in words if word.partition("=")[0] in OWN}
    config: Config = compose("reproduce", [word for word in words if word in own], Config)
    given = {word.partition("=")[0]: word for word in words if not word.startswith("reproduce=")}
    path = given.get("model.path", "").partition("=")[2]
    taken: set[str] = set()
    for step in config.reproduce.steps:
        before, typed = split(step.run)
        mine = {key: word for key, word in given.items() if takes(before, key)}
        taken |= mine.keys()
        fixed = {word.partition("=")[0]: word for word in typed if "{path}" not in word or path}
        held = {key: word.replace("{path}", path) for key, word in fixed.items() if "{" in word}
        step.run = shlex.join([*before, *{**fixed, **mine, **held}.values()])
    for key, word in given.items():
        possible = "each command has its own" if key in NEVER else "`qrun config reproduce` lists the commands"
        require(key in taken | set(OWN), key, word.partition("=")[2], f"no command takes it; {possible}")
    return config


def split(run: str) -> tuple[list[str], list[str]]:
    """`sweep dim study.dims=[2]`: the command, and its words."""
    parts = shlex.split(run)
    at = next((place for place, part in enumerate(parts) if "=" in part), len(parts))
    return parts[:at], parts[at:]


def takes(before: list[str], key: str) -> bool:
    """Whether a command has a key, or one that holds it: original.shape is of an optional model."""
    grid, verb = before[-1] == "-m", [word for word in before if word != "-m"][-1]
    schema = VERBS[verb] if verb in VERBS else studies.module(verb).Config
    known = {*words_of(verb), *leaf_keys(schema), *(words_of("multirun") if grid else ())}
    held = key in known or key.rpartition(".")[0] in leaf_keys(schema)
    return key not in NEVER and (held or any(word.startswith(f"{key}.") for word in known))


@dataclass(frozen=True)
class Step:
    """A command and its config."""

    typed: list[str]
    study: str | None  # its module; None for `qrun plan`
    config: Any  # of a study, a grid of -m, or a plan
    published: list[Published]

    @property
    def shown(self) -> str:
        """As it is typed, without places."""
        return " ".join(["qrun", *(word for word in self.typed if word.partition("=")[0] not in OWN)])

    def cells(self) -> list[Cell]:
        """The whole grid, with what it needs."""
        return whole(studies.module(self.study).cells(self.config, lambda _: None)) if self.study else []


class Missing(Exception):
    """A folder, `model` or `adapter`, that no command before has left."""


def opened(command: Command, left: dict[str, str]) -> Step:
    """A command's config, with the folders that commands before it left. Raises Missing where they left none."""
    before, words = split(command.run)
    for name in LEFT:  # no other braces: a path may have some
        if name not in left and any(f"{{{name}}}" in word for word in words):
            raise Missing(name)
        words = [word.replace(f"{{{name}}}", left.get(name, "")) for word in words]
    grid, verb = before[-1] == "-m", [word for word in before if word != "-m"][-1]
    if verb == "plan":
        return Step([*before, *words], None, compose(verb, words), command.published)
    config = studies.module("multirun").configure(verb, words) if grid else studies.configure(verb, words)
    return Step([*before, *words], "multirun" if grid else verb, config, command.published)


def stated(command: Command) -> Step:
    """A command before anything ran: the model itself for compressed ones, and any folder for an adapter."""
    before, words = split(command.run)
    made = "model.path={model}" in words
    kept = [word for word in words if not (made and word.startswith(("model.path=", "model.name=")))]
    return opened(replace(command, run=shlex.join([*before, *kept])), {"model": "model", "adapter": "."})


class Stated(Sources):
    """Models and texts by what the words say of them: no file is read."""

    def identity(self, config: ModelConfig) -> Identity:
        """Of a name and a path."""
        return Identity(config.name, str(config.path), config.dtype.value)

    def digest(self, config: DataConfig, *splits: str) -> list[object]:
        """Of the group's values."""
        return [json.dumps(plain(config)), *splits]


def reproduce(config: Config, dry_run: bool) -> None:
    """Estimate, run every command, compare with what is published, report. Raises RunFailed naming the commands that
    failed or were refused, after all others are done; InputError for what is wrong before anything runs."""
    steps = config.reproduce.steps
    estimate([stated(command) for command in steps])
    if dry_run:
        say("nothing was run")
        return
    left: dict[str, str] = {}
    failed: list[str] = []
    for number, command in enumerate(steps, start=1):
        say(f"\n[{number}/{len(steps)}] qrun {command.run}")
        try:
            step = opened(command, left)
            if step.study is None:
                continue  # told with the estimate
            results = run_study(step.study, studies.module(step.study), step.config, False, step.typed)
            left |= leaves(step, config)
        except Missing as missing:
            failed.append(f"{command.run} (no {missing} was left by the commands before it)")
            continue
        except (InputError, RunFailed) as error:  # a wrong value may be this command's alone
            say(f"failed: {error}")
            failed.append(command.run)
            continue
        if results is not None:
            for published in step.published:
                compare(results, published)
    with suppress(InputError) if failed else nullcontext():  # where all failed no study is there
        report(config.results, str(Path(config.results) / "report"), None, studies, config.tracking.uri)
    if failed:
        again = "the same command goes on with what is missing"
        raise RunFailed(f"{len(failed)} of {len(steps)} commands failed: {'; '.join(failed)}; {again}")


def leaves(step: Step, config: Config) -> dict[str, str]:
    """Folders that later commands may ask for."""
    keys, store, found = Keys(Sources()), Store(config.results, config.tracking.uri), {}
    made, trained = left_by(step.cells(), keys)
    if made is not None:
        found["model"] = str(compressed(config.results, made.task.name(made.axes, keys.of(made))))
    if trained is not None:
        recorded = store.tagged(EXPERIMENT, "cell_key", "FINISHED", [keys.of(trained)])[keys.of(trained)]
        found["adapter"] = str(recorded.file("adapter"))
    return found


def left_by(cells: list[Cell], keys: Keys) -> tuple[Cell | None, Cell | None]:
    """The last compressed model of the first text, and the first adapter trained in it, or else in the model itself."""
    smaller = [cell for cell in cells if isinstance(cell.task, Compress)]
    made = next((c for c in reversed(smaller) if c.axes.get("text") == smaller[0].axes.get("text")), None)
    wanted = made and keys.of(made)  # the same compression may be a cell of each text
    for cell in cells:
        need = cell.needs.get("model")
        if isinstance(cell.task, Train) and (need and keys.of(need)) == wanted:
            return made, cell
    return made, None


def compare(results: Results, published: Published) -> None:
    """The command's first perplexity beside somebody else's."""
    found = float(results.table["perplexity"].iloc[0])
    apart = found / published.value - 1
    say(f"measured {found:.4g}, published {published.value:.4g} ({published.source}): {apart:+.1%}")
    if not math.isfinite(apart) or abs(apart) > published.within:
        why = "other weights, another text or another protocol; what follows is then not the paper's model"
        say(f"WARNING: farther than {published.within:.0%}: {why}")


def estimate(steps: list[Step]) -> None:
    """Print cells, time, memory, disk and QPU time, at the models' true shapes. Neither weights nor text are read."""
    keys, seen, rows = Keys(Stated()), set[str](), []
    totals, memory, disk, trunk = 0.0, 0, 0, 0
    rates: dict[str, float] = {}
    where = ""
    for step in steps:
        cells, seconds = step.cells(), 0.0
        if cells and not rates:
            rates, where = speeds(step)
        fresh = {key: cell for cell in cells if (key := key_of(keys, cell)) not in seen}
        seen |= fresh.keys()
        for cell in fresh.values():
            seconds += cell.task.work() / rates.get(cell.task.kind, RATES[cell.task.kind])
            disk += CELL + sum(stored(cell))
            if isinstance(cell.task, Train) and (shape := model_shape(cell.task.config.model)):
                own = size(cell.task.config, shape)
                memory, trunk = max(memory, own.memory), max(trunk, own.trunk)
        totals += seconds
        rows.append([f"{len(cells):,}", f"{len(fresh):,}", f"{seconds / 60:,.0f}", step.shown])
    listing(["cells", "new", "minutes", "command"], rows)
    say(f"\nnew: not shared with a command before it; finished cells are not computed again; {where}")
    say(f"time    about {totals / 3600:,.1f} process-hours, within a factor of three; launcher= spreads them")
    say(f"memory  {memory / GIB:.1f} GiB a process at the peak")
    say(f"disk    {(disk + trunk) / GIB:.1f} GiB, {trunk / GIB:.1f} of them kept hidden states (cache.gib)")
    say("QPU     nothing is sent; noise is simulated. The paper's sequence on a processor would take:")
    from qrun.recipes.plan import plan

    for step in steps:
        if step.study is None:
            plan(step.config, None)


def key_of(keys: Keys, cell: Cell) -> str:
    """Equal for cells that several commands share; questions are not shared, and their files are not read here."""
    return str(id(cell)) if cell.task.kind == "ask" else keys.of(cell)


def stored(cell: Cell) -> Iterator[int]:
    """Bytes that a cell leaves: an adapter as a folder, an artifact and a logged model; a compressed model."""
    if isinstance(cell.task, Train):
        yield 3 * 4 * (cell.task.parameters() or 0)
    elif isinstance(cell.task, Compress) and (shape := model_shape(cell.task.config.model)):
        yield weight_bytes(cell.task.config.model, shape)


def speeds(step: Step) -> tuple[dict[str, float], str]:
    """FLOP a second by kind of cell: of this store's finished cells, else of the machine."""
    found = measured_rates(finished_cells(step.config))
    if found:
        return found, "time at rates of finished cells in this store"
    shape = model_shape(step.config.model)
    rate = SHARE * speed(step.config.model, shape) if shape else min(RATES.values())
    return dict.fromkeys(RATES, rate), f"time at half of {rate / SHARE / 1e9:,.0f} GFLOP/s, measured now"
