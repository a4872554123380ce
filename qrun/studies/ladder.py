"""`qrun sweep ladder`: what changes with the size of the frozen model: the adapter's gain, its penalty on the device,
the error rate at which the gain ends, what compression costs, and what of it comes back.

A rung is a model that scripts/pretrain_nano.py made: `model` is the first, the folders of `study.rungs` are the others.
All have the same pretraining text, data, protocol and trials; each its own rates, scanned. On every rung
    gain        100 (1 - PPL_adapted / PPL_frozen), of the adapter and of a LoRA of like size
    penalty     100 (PPL_device / PPL_adapted - 1), at the preset
    end         the two-qubit error rate at which the gain on the device falls below zero (as axis `gates` of `noise`)
    damage      ln(PPL_compressed / PPL_frozen) on the home text, and the recovery there of the distilled adapter
Each is fitted over the rungs by least squares with a slope that optimisers share,
    y = a_optimiser + s log10(parameters),          rates and damage as their logarithms,
and the line is drawn to SmolLM2's 135 million parameters with the 95 % interval of a new observation. How far it may be
trusted: the line through the smaller rungs alone foretells the largest, which is known.

Margin: the gain of one v_proj at b = 4 does not fall with size: the slope's interval lies at or above 0.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

from qrun.cells.cell import Cell, Scalar
from qrun.compression.forms import check
from qrun.config.ranges import because_of, require
from qrun.config.schema import CompressionConfig, ModelConfig
from qrun.config.verbs import CompressConfig
from qrun.errors import InputError
from qrun.evaluation.intervals import Interval, over_documents
from qrun.evaluation.resampling import perplexity_ratio
from qrun.evaluation.results import Results
from qrun.evaluation.trends import Line, common_line
from qrun.files import at_home
from qrun.foreign import read_json, typed
from qrun.language.models import local_folder, model_shape
from qrun.quantum.noise import Noise
from qrun.recipes.sizes import parameters
from qrun.recipes.tasks import Compress, Measure
from qrun.report.grade import Verdict, within
from qrun.studies.grid import (
    NoisyRun,
    Say,
    SiteSet,
    StudyAxes,
    Way,
    at_sites,
    base_cell,
    different,
    exact_cell,
    matched,
    require_cayley,
    train_cell,
    usable,
    way,
)  # fmt: skip
from qrun.studies.recover import recovered
from qrun.studies.statistics import RESAMPLES, SEED, both_interval, gain_ends, gains, limits, nats, text, weight

PAPER = "line/sqrt/input"
SMOLLM2 = 134_515_008  # parameters
RECORD = "training_record.json"
ABOUT, POINT = ["rung", "size", "optimizer"], ["sites", "b"]
LOGARITHMS = ("end", "damage")  # quantities that are fitted as log10


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep ladder`."""

    rungs: list[str] = field(default_factory=list)  # folders of models beside `model`
    rates: list[float] = field(default_factory=lambda: [1e-3, 1e-2])  # two-qubit errors, one-qubit ones in proportion
    ratios: list[float] = field(default_factory=list)  # of parameters kept by compression

    def __post_init__(self) -> None:
        super().__post_init__()
        different("study.rungs", self.rungs, empty=True)
        different("study.ratios", self.ratios, empty=True)
        rising = self.rates == sorted(set(self.rates)) and min(self.rates, default=1) > 0
        require(rising, "study.rates", self.rates, "give different rates above 0 in rising order")
        shares = all(0 < r < 1 for r in self.ratios)
        require(shares, "study.ratios", self.ratios, "give shares of the parameters between 0 and 1")
        require(all(b & (b - 1) == 0 for b in self.dims), "study.dims", self.dims, "circuits need powers of two")


@dataclass
class Config(NoisyRun):
    """`qrun sweep ladder`; `home` is the pretraining text of every rung, on which compression is judged."""

    compression: CompressionConfig = field(default_factory=CompressionConfig)
    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_cayley(self.adapter)
        require(self.second is None, "second", self.second and self.second.kind.value, "this study has one; set null")
        ratios, bond = self.study.ratios, self.compression.bond
        require(bond is None, "compression.bond", bond, "the study's axis is study.ratios; set null")
        require(not ratios or self.home is not None, "study.ratios", ratios, "compression is judged on data@home")

    def ways(self) -> list[Way]:
        return [way(PAPER)]


class Lost(TypedDict):
    """Relative error of all projections at the rank of half their parameters, and of random matrices."""

    svd: float
    gaussian: float


class Pretraining(TypedDict):
    """The text that a model was trained on."""

    digest: str


class Record(TypedDict):
    """What scripts/pretrain_nano.py says of a model, as far as a ladder needs it."""

    optimizer: str
    lost_by_half: Lost
    corpus: Pretraining


@dataclass(frozen=True)
class Rung:
    """A model of the ladder; `facts` stand beside the frozen model's measurement."""

    model: ModelConfig
    facts: Mapping[str, Scalar]


def rungs(config: Config) -> Iterator[Rung]:
    """`model` and the folders of study.rungs by their names. Raises InputError for one that is no model of
    scripts/pretrain_nano.py, has the name of another, or was trained on another text."""
    seen: set[str] = set()
    texts: set[str] = set()
    for words in (None, *config.study.rungs):
        key, given = ("model", config.model.name) if words is None else ("study.rungs", words)
        with because_of(key, given):
            model = config.model
            if words is not None:
                path = Path(at_home(words))
                model = replace(config.model, name=path.name, path=str(path), embedded=False, hub_id=None, shape=None)
            folder, shape = local_folder(model), model_shape(model)
            if folder is None or shape is None or not (folder / RECORD).is_file():
                raise InputError(f"no {RECORD} there; rungs are made by scripts/pretrain_nano.py")
            require(model.name not in seen, key, given, "another rung has this name")
            record = typed(Record, read_json(folder / RECORD), folder / RECORD)
            texts.add(record["corpus"]["digest"])
            why = "its pretraining text is not the first rung's (installed packages differ); train it again here"
            require(len(texts) == 1, key, given, why)
        seen.add(model.name)
        facts: dict[str, Scalar] = {"size": parameters(shape), "optimizer": record["optimizer"]}
        lost = record["lost_by_half"]
        yield Rung(model, {**facts, "lost": lost["svd"], "lost_random": lost["gaussian"]})


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Rung x site set x b x seed: adapter and controls, the adapter on the device at the preset and at every rate; then
    rung x ratio: compressed, and with a distilled adapter of the first b."""
    points: list[tuple[str, float | None, Noise]] = [("preset", None, config.noise)]
    for rate in config.study.rates:
        with because_of("study.rates", rate):
            points.append(("gates", rate, config.noise.along("gates", rate)))
    for rung in rungs(config):
        own = replace(config, model=rung.model)
        base = base_cell(own, {"rung": rung.model.name, **rung.facts})
        yield base
        for chosen, dim in usable(own, say):
            adapter = replace(at_sites(own.adapter, chosen), dim=dim)
            axes: dict[str, Scalar] = {"rung": rung.model.name, "sites": chosen.value, "b": dim}
            for seed in own.study.seeds:
                for method in own.study.controls:
                    control = train_cell(own, axes, matched(own, adapter, method), seed)
                    yield from (control, exact_cell(own, control, base))
                trained = train_cell(own, axes, adapter, seed)
                exact = exact_cell(own, trained, base)
                yield from (trained, exact)
                needs = {"adapter": trained, "base": base, "exact": exact}
                for name, at, noise in points:
                    there = own.measured(way(PAPER), noise, seed)
                    yield Cell({**trained.axes, "axis": name, "rate": at}, Measure(there), needs)
        yield from compressions(own)


def compressions(config: Config) -> Iterator[Cell]:
    """Of the rung that is `model`, on home text: the model, and each compressed one, alone and with an adapter at all
    sites, as `recover` trains it."""
    home, study, shape = config.home, config.study, model_shape(config.model)
    if home is None or not study.ratios:
        return
    dim = study.dims[0]
    adapter = replace(at_sites(config.adapter, SiteSet.all), dim=dim)
    axes: dict[str, Scalar] = {"rung": config.model.name, "text": "home"}
    yield base_cell(config, {**axes, "ratio": 1.0}, home)
    for ratio in study.ratios:
        with because_of("study.ratios", ratio):
            compression = replace(config.compression, ratio=ratio)
            if shape is not None:
                check(compression, shape)
        data = home if compression.calibrated else config.data  # as `recover` has it
        made = Cell({**axes, "ratio": ratio}, Compress(CompressConfig(config.model, data, compression), config.results))
        yield made
        base = base_cell(config, {**axes, "ratio": ratio}, home, made)
        yield base
        for seed in study.seeds:
            share = config.training.distill_weight
            point: dict[str, Scalar] = {**axes, "ratio": ratio, "sites": "all", "b": dim}
            trained = train_cell(config, point, adapter, seed, home, made, config.model, share)
            yield from (trained, exact_cell(config, trained, base, data=home))


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """The rungs, their gains, what the device leaves of them, compression, and the lines through all of it."""
    rows = results.table[results.table["kind"] == "measure"]
    if "text" not in rows:  # a ladder without compression
        rows = rows.assign(text=None, ratio=math.nan)
    here, home = rows[rows["text"].isna()], rows[rows["text"].notna()]
    models, found, device, compressed = [], [], [], []
    for name, own in here.groupby("rung", sort=False):
        base = own[own["method"] == "none"]
        models.append({**base.iloc[0][[*ABOUT, "lost", "lost_random", "perplexity", "bits_per_byte"]]})
        about = base.iloc[0][ABOUT].to_dict()
        exact = own[(own["method"] != "none") & own["axis"].isna()]
        for row in gains(results, base, exact, [*POINT, "method"]).to_dict("records"):
            group = exact[(exact[[*POINT, "method"]] == [row["sites"], row["b"], row["method"]]).all(axis=1)]
            found.append({**about, **row, **percent("percent", results, base, group)})
        for point, group in own[own["axis"].notna()].groupby(POINT, sort=False):
            alone = exact[(exact[POINT] == list(point)).all(axis=1) & (exact["method"] == "cayley")]
            device.append({**about, **dict(zip(POINT, point, strict=True)), **on_device(results, base, alone, group)})
        compressed += [{**about, **row} for row in compression(results, home[home["rung"] == name])]
    each = {"models": models, "gains": found, "device": device, "compressed": compressed}
    frames = {name: pd.DataFrame(rows) for name, rows in each.items()}
    return {"text": text(results, base), **frames, "lines": pd.DataFrame(lines(frames))}


def percent(name: str, results: Results, base: pd.DataFrame, group: pd.DataFrame, sign: int = -1) -> dict[str, float]:
    """sign * 100 (PPL of the group / PPL of the base - 1), with its interval over seeds and documents."""
    value = float(perplexity_ratio(nats(results, group), nats(results, base), weight(results, base)))
    ratio = both_interval(perplexity_ratio, results, group, base)
    ends = None if ratio is None else Interval(*sorted(sign * 100 * (end - 1) for end in ratio))
    return {name: sign * 100 * (value - 1), **limits(name, ends)}


def on_device(results: Results, base: pd.DataFrame, exact: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """Penalty and gain at the preset, and where on the axis of rates the gain ends."""
    preset, moved = rows[rows["axis"] == "preset"], rows[rows["axis"] == "gates"]
    ends = gain_ends(results, base, moved, "rate") if len(moved) else {}
    return {
        "seeds": len(preset), **percent("penalty", results, exact, preset, sign=1),
        **percent("left", results, base, preset), **{f"end_{name}": value for name, value in ends.items()},
    }  # fmt: skip


def compression(results: Results, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row per ratio: damage in nats with its interval over documents, and the recovery."""
    base, adapted = rows[rows["method"] == "none"], rows[rows["method"] != "none"]
    original = base[base["ratio"] == 1]
    for ratio, cut in base[base["ratio"] < 1].groupby("ratio", sort=False):
        arrays, group = (nats(results, cut), nats(results, original)), adapted[adapted["ratio"] == ratio]
        size = weight(results, original)
        over = over_documents(perplexity_ratio, arrays, size, RESAMPLES, SEED)
        damage = math.log(float(perplexity_ratio(*arrays, size)))
        yield {
            "ratio": ratio, "original": original["perplexity"].iloc[0], "compressed": cut["perplexity"].iloc[0],
            "damage": damage, **limits("damage", None if over is None else Interval(*np.log(over).tolist())),
            "perplexity": group["perplexity"].mean(), "seeds": len(group), "b": group["b"].iloc[0],
            **recovered("recovery", results, cut, group, original),
        }  # fmt: skip


def quantities(found: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Mapping[str, Any], pd.DataFrame, str]]:
    """Name, where, a row per rung, and the column that has it."""
    for (method, sites, b), rows in found["gains"].groupby(["method", *POINT], sort=False):
        yield f"gain, {method}", {"sites": sites, "b": b}, rows, "percent"
    for (sites, b), rows in found["device"].groupby(POINT, sort=False):
        yield "penalty", {"sites": sites, "b": b}, rows, "penalty"
        if "end_rate" in rows:
            yield "end", {"sites": sites, "b": b}, rows, "end_rate"
    if len(found["compressed"]):
        for ratio, rows in found["compressed"].groupby("ratio", sort=False):
            yield "damage", {"ratio": ratio}, rows, "damage"
            yield "recovery", {"ratio": ratio}, rows.assign(recovery=100 * rows["recovery"]), "recovery"


def lines(found: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """A row per quantity and optimiser: slope per decade of parameters, what the line says of SmolLM2's size, and what
    the line through smaller rungs says of the optimiser's largest, beside what that is. No line where a rung has no
    value, such as a gain that ends beyond the rates asked: through the others it would lean to their side."""
    for name, point, rows, column in quantities(found):
        if not (rows[column] > 0 if name in LOGARITHMS else rows[column].notna()).all():
            continue
        rows = rows.assign(y=rows[column].astype(float))
        if name in LOGARITHMS:
            rows["y"] = np.log10(rows["y"])
        for optimizer, own in rows.groupby("optimizer", sort=False):
            line = fitted(rows, SMOLLM2, str(optimizer))
            if line is None:
                continue
            largest = own.loc[own["size"].idxmax()]
            tested = fitted(rows[rows["size"] < largest["size"]], largest["size"], str(optimizer))
            yield {
                "quantity": name, **point, "optimizer": optimizer, "rungs": len(rows), "slope": line.slope,
                **limits("slope", line.slope_interval), "freedom": line.freedom, **said("there", name, line),
                "largest": largest["rung"], **said("foretold", name, tested), "known": back(name, largest["y"]),
            }  # fmt: skip


def fitted(rows: pd.DataFrame, size: float, optimizer: str) -> Line | None:
    """The line through column y of the rows, at a model of that size."""
    if rows.empty:
        return None
    x = np.log10(rows["size"].astype(float)).tolist()
    return common_line(x, rows["optimizer"].tolist(), rows["y"].tolist(), math.log10(size), optimizer)


def said(column: str, name: str, line: Line | None) -> dict[str, float]:
    """A line's prediction in the quantity's own unit."""
    if line is None:
        return {column: math.nan, **limits(column, None)}
    ends = Interval(*(back(name, end) for end in line.interval))
    return {column: back(name, line.value), **limits(column, ends)}


def back(name: str, value: float) -> float:
    """Out of the logarithm that a quantity is fitted in; a power of ten beyond all sense is infinite."""
    if name not in LOGARITHMS:
        return float(value)
    return math.inf if value > 300 else float(10**value)


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Whether the gain at one site falls with size."""
    rows = found["lines"]
    if len(rows):
        rows = rows[(rows["quantity"] == "gain, cayley") & (rows["sites"] == "one") & (rows["b"] == 4)]
    outcome = within(Interval(*rows.iloc[0][["slope_low", "slope_high"]]) if len(rows) else None, low=0)
    return [Verdict("size", outcome, {"rungs": len(found["models"]), "seeds": int(found["gains"]["seeds"].max())})]
