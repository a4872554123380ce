"""`qrun train -m` and `qrun eval perplexity -m`: a grid of single runs as cells of a study, without claims.

    qrun train -m adapter.dim=2,4 seed=0,1
    qrun eval perplexity -m adapter.path=<folder> device=noisy noise=heron_r2 'noise.factor=1,2,5'

Every point is what the command without -m computes of it, with the words as they stand: no learning rate is scaled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from qrun.cells.cell import Cell, Scalar
from qrun.config.compose import PLACES, compose
from qrun.config.ranges import require
from qrun.config.schema import CacheConfig, LauncherConfig, ModelConfig, TrackingConfig
from qrun.config.verbs import PerplexityConfig, TrainConfig
from qrun.config.words import points, values
from qrun.evaluation.results import Results
from qrun.recipes.checks import check_device, check_sites
from qrun.recipes.tasks import Measure, Train
from qrun.report.grade import Verdict
from qrun.studies.grid import Say, measurement


@dataclass
class Config:
    """The words of a grid, and the first of its points."""

    verb: str
    words: list[str]  # of every point
    points: list[Any]  # list[list[str]]: the words of each point
    model: ModelConfig
    launcher: LauncherConfig
    results: str = "results"  # this and the rest are not in the record
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    name: str | None = None


@dataclass
class LaunchConfig:
    """Who computes the cells of a grid."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)


def configure(verb: str, words: list[str]) -> Config:
    """The grid of a command, every point composed once. Raises InputError for any wrong one."""
    launching = [word for word in words if word.partition("=")[0].partition(".")[0] == "launcher"]
    launcher = compose("multirun", launching, LaunchConfig).launcher
    fixed, each = points([word for word in words if word not in launching])
    for word in each[0]:
        key = word.partition("=")[0]
        require(key.partition(".")[0] not in PLACES, "-m", key, "one for the whole grid; give one value")
    first, *_ = [compose(verb, [*fixed, *point]) for point in each]
    kept = [word for word in fixed if word.partition("=")[0].partition(".")[0] not in PLACES]
    return Config(verb, kept, each, first.model, launcher, first.results, first.tracking, first.cache, first.name)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Per point the frozen model, and the adapter: trained and measured, or the saved one, exact and on its device."""
    for words in config.points:
        places = [f"results={config.results}", f"cache.gib={config.cache.gib}"]
        point = compose(config.verb, [*config.words, *words, *places])
        yield from (_trained if isinstance(point, TrainConfig) else _measured)(point, values(words))


def _trained(config: TrainConfig, axes: Mapping[str, Scalar]) -> Iterator[Cell]:
    check_sites(config.model, config.adapter)
    measure = measurement(config)
    base = Cell({**axes, "role": "frozen"}, Measure(measure))
    trained = Cell({**axes, "role": "adapter"}, Train(replace(config, name=None)))
    yield from (base, trained, Cell(trained.axes, Measure(measure), {"adapter": trained, "base": base}))


def _measured(config: PerplexityConfig, axes: Mapping[str, Scalar]) -> Iterator[Cell]:
    check_device(config.model, config.device, config.adapter.path)
    measure = measurement(config)
    base = Cell({**axes, "role": "frozen"}, Measure(measure))
    yield base
    if config.adapter.path is None:
        return
    exact = Cell({**axes, "role": "adapter"}, Measure(replace(measure, adapter=config.adapter)), {"base": base})
    yield exact
    if config.device.kind != "exact":
        circuits = replace(
            measure, adapter=config.adapter, device=config.device, noise=config.noise, estimate=config.estimate,
            signs=config.signs,
        )  # fmt: skip
        yield Cell({**axes, "role": "device"}, Measure(circuits), {"base": base, "exact": exact})


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """A row per point, of its last measurement, and the titles and formats of the columns."""
    table = results.table[results.table["kind"] == "measure"]
    axes = list(table.columns[1 : table.columns.get_loc("role")])  # a point's words stand between kind and role
    rows = table.groupby(axes, sort=False, dropna=False).tail(1) if axes else table.tail(1)
    short = {axis: f"axis{place}" for place, axis in enumerate(axes)}  # a dot in a format is an attribute
    shown = [(axis, f"{{{name}}}") for axis, name in short.items()] + [(t, f) for t, f, name in SHOWN if name in rows]
    frozen = rows["perplexity"] + (rows["gain"].fillna(0) if "gain" in rows else 0)
    points_found = rows.assign(frozen=frozen).rename(columns=short)
    return {"points": points_found, "columns": pd.DataFrame(shown, columns=["title", "form"])}


SHOWN = [
    ("parameters", "{parameters:,.0f}", "parameters"), ("frozen model", "{frozen:.3f}", "perplexity"),
    ("perplexity", "{perplexity:.3f}", "perplexity"), ("gain", "{gain:+.3f}", "gain"),
    ("95% over documents", "[{gain_low:+.3f}, {gain_high:+.3f}]", "gain"),
    ("penalty of the device", "{penalty:+.3f}", "penalty"),
]  # fmt: skip


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """None: a grid tests no claim."""
    return []
