"""What the grids of studies share: site sets, block dimensions, ways to read a device, and the cells that train and
measure one adapter."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from qrun.adapters.methods import names, spec
from qrun.adapters.sites import adapted, check_divides
from qrun.cells.cell import Cell, Scalar
from qrun.config.devices import DeviceConfig, EstimateConfig, Estimator, Sign, SignsConfig
from qrun.config.ranges import at_least, because_of, check_seeds, require
from qrun.config.schema import (
    AdapterConfig,
    DataConfig,
    LauncherConfig,
    ModelConfig,
    ProtocolConfig,
    ProtocolKind,
    TrainingConfig,
)
from qrun.config.tree import option
from qrun.config.verbs import RunConfig, TrainConfig, check_readout
from qrun.errors import InputError
from qrun.language.models import model_shape
from qrun.quantum.noise import Noise
from qrun.recipes.tasks import Measure, MeasureConfig, Scan, Train

SCAN_SEED = 100  # no study's own
Say = Callable[[str], None]
Axes = Mapping[str, Scalar]


class SiteSet(Enum):
    """Sites of a study's series."""

    all = "all"  # every projection of every layer
    layer = "layer"  # every projection of the last layer
    one = "one"  # v_proj of the last layer: the paper's Llama setting
    adapter = "adapter"  # what adapter.projections and adapter.layers say


class Indivisible(Enum):
    """What a study does with a block dimension that does not divide every site."""

    stop = "stop"
    skip = "skip"


@dataclass
class StudyAxes:
    """What all studies over trained adapters have."""

    dims: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    sites: list[SiteSet] = field(default_factory=lambda: [SiteSet.adapter])
    indivisible: Indivisible = Indivisible.stop
    lr_exponent: float = 1.0  # a cell of block dimension b trains with its learning rate * (4 / b)^lr_exponent
    controls: list[str] = field(default_factory=list)  # methods trained beside the adapter
    control_lr: dict[str, float] = field(default_factory=dict)  # in the place of a method's own stated rate
    trials: int = 5  # learning rates tried for each method, size, site set and text, around the stated one; 1: that one
    trial_steps: int | None = None  # cap of a trial, the same for all; null: training.steps

    def __post_init__(self) -> None:
        for key in ("dims", "seeds", "sites"):
            different(f"study.{key}", getattr(self, key))
        require(min(self.dims) >= 2, "study.dims", self.dims, "a block needs dimension 2 or more")
        check_seeds("study.seeds", *self.seeds)
        at_least(self, 1, "study.trials")
        at_least(self, 1, "study.trial_steps", null=", or null for training.steps")
        taken = self.trials == 1 or SCAN_SEED not in self.seeds
        require(taken, "study.seeds", self.seeds, f"{SCAN_SEED} is the seed of the scans of rates; give others")
        require(0 <= self.lr_exponent <= 2, "study.lr_exponent", self.lr_exponent, "give a number from 0 to 2")
        known = [name for name in names() if spec(name).control]
        for name in self.controls:
            require(name in known, "study.controls", name, f"use {', '.join(known)}")
        for name, lr in self.control_lr.items():
            sane = name in names() and 0 < lr < math.inf
            require(sane, f"study.control_lr.{name}", lr, "give a method's learning rate above 0")


def different(key: str, values: Sequence[object], empty: bool = False) -> None:
    """A list of an axis: no value twice, and some unless it may be empty."""
    require((empty or bool(values)) and len(set(values)) == len(values), key, values, "give a list of different values")


def require_cayley(adapter: AdapterConfig) -> None:
    """Studies whose numbers compare with Cayley blocks train those."""
    own = adapter.method == "cayley"
    require(own, "adapter.method", adapter.method, "this study's adapter is cayley; others stand beside")


def require_alone(home: DataConfig | None, second: ProtocolConfig | None) -> None:
    """Studies of adapters that stand beside another study's gains measure nothing beside them."""
    for key, found in (("home", home and home.name), ("second", second and second.kind.value)):
        require(found is None, key, found, "this study has one text and protocol; `qrun sweep dim` has more; set null")


@dataclass
class StudyRun(TrainConfig):
    """What every study's config has; `study` holds its axes."""

    home: DataConfig | None = None  # text of the model's own pretraining distribution: `Beside`, and of `qrun recover`
    second: ProtocolConfig | None = None  # of `Beside`; noise and wall, whose adapters are dim's, have neither
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    study: StudyAxes = field(default_factory=StudyAxes)


class Way(NamedTuple):
    """How Q is written, how counts become magnitudes, whose signs they get."""

    circuit: str
    estimate: Estimator
    sign: Sign


def way(words: str, key: str = "study.ways") -> Way:
    """`line/calibrated/two_settings`. Raises InputError for other words of that key."""
    parts = words.split("/")
    require(len(parts) == 3, key, words, "give circuit/estimate/signs, such as line/calibrated/input")
    for part, known in ((parts[1], Estimator), (parts[2], Sign)):
        require(part in known.__members__, key, words, f"{part} is none of {', '.join(known.__members__)}")
    with because_of(key, words):
        found = Way(parts[0], Estimator[parts[1]], Sign[parts[2]])
        check_readout(DeviceConfig(circuit=found.circuit), EstimateConfig(found.estimate), SignsConfig(found.sign))
    return found


def presets_of(noises: Sequence[str]) -> dict[str, Noise]:
    """The noises of `study.noises` by name. Raises InputError for what is none."""
    found = {}
    for name in noises:
        with because_of("study.noises", name):
            found[name] = option("noise", name, Noise)
    return found


@dataclass
class NoisyRun(StudyRun):
    """What studies of the noisy device have; `noise` is their preset."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.device.kind == "noisy", "device.kind", self.device.kind, "this study stands on device=noisy")
        for found in self.ways():
            self.measured(found, self.noise)

    def ways(self) -> Sequence[Way]:
        """How the study reads its device."""
        raise NotImplementedError

    def measured(self, found: Way, noise: Noise, seed: int = 0, **device: int | None) -> MeasureConfig:
        """A measurement on the device, with these of its words. Raises InputError for a way that cannot be."""
        place = dataclasses.replace(self.device, circuit=found.circuit, **device)  # type: ignore[arg-type]
        estimate, signs = EstimateConfig(found.estimate), SignsConfig(found.sign)
        check_readout(place, estimate, signs)
        words = {"device": place, "noise": noise, "estimate": estimate, "signs": signs}
        return dataclasses.replace(measurement(self), seed=seed, **words)  # type: ignore[arg-type]


TRAIN_KEYS = [f.name for f in dataclasses.fields(TrainConfig)]


def at_sites(adapter: AdapterConfig, chosen: SiteSet) -> AdapterConfig:
    """The adapter at all sites, at the paper's one, or where its own words put it."""
    if chosen is SiteSet.adapter:
        return adapter
    return dataclasses.replace(adapter, **SITES[chosen])  # type: ignore[arg-type]


PAPER_SITE = {"projections": ["v_proj"], "layers": "last", "count": None}
SITES = {
    SiteSet.all: {"projections": "all", "layers": "all", "count": None},
    SiteSet.layer: {"projections": "all", "layers": "last", "count": None},
    SiteSet.one: PAPER_SITE,
}


DIMS = ("dims", "others", "wide")  # axes of block dimensions


def usable(config: StudyRun, say: Say, dims: Sequence[int] | None = None) -> Iterator[tuple[SiteSet, int]]:
    """Site sets and the block dimensions, study.dims or those given, that divide each of their sites. The others are
    said with study.indivisible=skip, and an InputError with stop."""
    shape, study = model_shape(config.model), config.study
    dims = study.dims if dims is None else dims
    for chosen in study.sites:
        adapter, kept = at_sites(config.adapter, chosen), 0
        here = adapted(shape, adapter) if shape is not None else []
        for dim in dims:
            try:
                check_divides(here, dim, adapter.side)
            except InputError as error:
                if study.indivisible is Indivisible.stop:
                    key = next(key for key in DIMS if dim in getattr(study, key, ()))
                    why = f"{str(error).partition(': ')[2]} (study.indivisible=skip leaves such dimensions out)"
                    raise InputError(f"study.{key}={dim}: {why}") from None
                why = str(error).partition(": ")[2].partition(";")[0]
                say(f"left out, sites={chosen.value} b={dim}: {why}")
                continue
            kept += 1
            yield chosen, dim
        if not kept:
            raise InputError(f"study.dims={list(dims)}: none divides every site of study.sites={chosen.value}")


def fits(circuit: str, sign: Sign, dim: int, say: Say) -> bool:
    """Whether blocks of dimension b have such circuits; says why not."""
    reference, merged = sign is Sign.reference and dim > 8, circuit == "merged" and dim != 8
    if reference or merged:
        why = "a reference has circuits up to b = 8" if reference else "merged circuits are for b = 8"
        say(f"left out, circuit={circuit} signs={sign.value} at b={dim}: {why}")
    return not (reference or merged)


def some_left(cells: Iterator[Cell], axis: str, key: str, given: object, why: str) -> Iterator[Cell]:
    """The cells of a grid. Raises InputError at its end, before any is computed, where none has a value on the axis
    that the study is about, since all were left out."""
    found = False
    for cell in cells:
        found = found or cell.axes.get(axis) is not None
        yield cell
    require(found, key, given, why)


def matched(config: StudyRun, adapter: AdapterConfig, method: str) -> AdapterConfig:
    """A control at the adapter's sites with about its parameters."""
    shape = model_shape(config.model)
    if shape is None:
        raise InputError(f"model={config.model.name}: its shape is not stated; give model.path=<local folder>")
    selected = adapted(shape, adapter)
    budget = spec(adapter.method).count(adapter, selected) or 0
    return spec(method).matched(adapter, selected, budget)


def training(config: StudyRun, adapter: AdapterConfig) -> TrainingConfig:
    """The study's training with the stated rate and clipping of a method, scaled to b or to LoRA's rank."""
    method, own = spec(adapter.method), config.training
    stated = config.study.control_lr.get(adapter.method, method.lr)
    kept = own.kept if method.circuits else 1.0  # a control runs on no device
    lr, clip = method.steps(own.lr if stated is None else stated, own.clip, adapter, config.study.lr_exponent)
    return dataclasses.replace(own, lr=lr, clip=clip, kept=kept)


def base_cell(config: StudyRun, axes: Axes, data: DataConfig | None = None, model: Cell | None = None) -> Cell:
    """The frozen model's perplexity."""
    needs = {} if model is None else {"model": model}
    return Cell({**axes, "method": "none"}, Measure(measurement(config, data)), needs)


def measurement(config: RunConfig, data: DataConfig | None = None) -> MeasureConfig:
    """What every cell of a study measures, without a device."""
    text = data or config.data
    words = (config.model, text, config.protocol, config.evaluation, config.seed, config.results)
    return MeasureConfig(*words, cache=config.cache)


HOME, SECOND = "home", "second"
WHOLE = 4  # times the tokens where documents are scored whole: half as many of them, and of unlike weight


class Beside:
    """What a gain is worth elsewhere: the frozen model and every adapter on the model's home text, and on the same text
    by a second protocol, with the first's context. Axis `beside` tells these cells from those that a study is about."""

    def __init__(self, config: StudyRun, say: Say) -> None:
        self.config = config
        self.tasks: dict[str, MeasureConfig] = {}
        if config.home is not None and home_is_known(config.home, config.model):
            self.tasks[HOME] = measurement(config, config.home)
        elif config.home is not None:
            say(f"left out, home text {config.home.name}: not known to be model={config.model.name}'s own")
        if config.second is not None:
            second = dataclasses.replace(config.second, ctx=config.second.ctx or config.protocol.ctx)
            text = config.evaluation
            if config.second.kind is ProtocolKind.lm_eval_wikitext and text.max_tokens is not None:
                text = dataclasses.replace(text, max_tokens=WHOLE * text.max_tokens)
            self.tasks[SECOND] = dataclasses.replace(measurement(config), protocol=second, evaluation=text)
        self.bases = {
            name: Cell({"beside": name, "method": "none"}, Measure(task)) for name, task in self.tasks.items()
        }

    def of(self, trained: Cell, axes: Axes | None = None) -> Iterator[Cell]:
        """The cells of one adapter."""
        for name, task in self.tasks.items():
            needs = {"adapter": trained, "base": self.bases[name]}
            yield Cell({**trained.axes, **(axes or {}), "beside": name}, Measure(task), needs)


def home_is_known(home: DataConfig, model: ModelConfig) -> bool:
    """Whether a text may be called a model's own: docstrings are home to models that scripts/pretrain_nano.py left its
    record with; for any other text the user's word counts."""
    pretrained = model.embedded or (model.path is not None and Path(model.path, "training_record.json").is_file())
    return home.source != "libdocs" or pretrained


def train_cell(
    config: StudyRun, axes: Axes, adapter: AdapterConfig, seed: int, data: DataConfig | None = None,
    model: Cell | None = None, teacher: ModelConfig | None = None, distill: float = 0.0,
    scanned: AdapterConfig | None = None,
) -> Cell:  # fmt: skip
    """One training at the rate that its scan, of another adapter if one is given, finds; studies that describe the same
    one share it."""
    steps = dataclasses.replace(training(config, adapter), distill_weight=distill)
    values = {key: getattr(config, key) for key in TRAIN_KEYS} | {
        "adapter": adapter, "training": steps, "seed": seed, "data": data or config.data, "teacher": teacher,
        "name": None,
    }  # fmt: skip
    point = {**axes, "method": adapter.method}
    words, needs = TrainConfig(**values), {} if model is None else {"model": model}
    if config.study.trials > 1:
        most = dataclasses.replace(steps, steps=min(steps.steps, config.study.trial_steps or steps.steps))
        own = dataclasses.replace(words, adapter=scanned or adapter, training=most, seed=SCAN_SEED)
        tried = Scan(own, config.study.trials)
        needs = {**needs, "rate": Cell(point, tried, needs)}
    return Cell({**point, "seed": seed}, Train(words), needs)


def exact_cell(
    config: StudyRun, trained: Cell, base: Cell, axes: Axes | None = None, data: DataConfig | None = None
) -> Cell:
    """A trained adapter's perplexity, noiseless."""
    needs = {"adapter": trained, "base": base, **{k: v for k, v in trained.needs.items() if k == "model"}}
    return Cell({**trained.axes, **(axes or {})}, Measure(measurement(config, data)), needs)
