"""`qrun sweep circuits`: gain against CZ. Blocks trained as circuits of k CZ, beside Cayley blocks, which need more.

Beside them: Cayley blocks of other b, for as many parameters; trained Cayley blocks replaced by the nearest circuit of
k CZ without training; and circuits on large blocks with few brick-wall layers, whose parameters grow with log b as
those of Quantum-PEFT (arXiv:2503.05431). A palindrome has each layer twice, so two layers are the fewest.
Kept = (nats frozen - nats of the circuits) / (nats frozen - nats of Cayley blocks of the same b and seed), exact, and
on a noisy device, where fewer CZ also mean less noise: `device`, `estimate` and `signs`, at each of `study.noises`.

Margin: circuits of CZS CZ keep SHARE or more of the Cayley blocks' gain at b = 8, all sites, with the whole interval
over seeds and documents.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from qrun.cells.cell import Cell
from qrun.config.devices import DeviceConfig, EstimateConfig, SignsConfig
from qrun.config.ranges import require
from qrun.config.schema import AdapterConfig
from qrun.evaluation.results import Results
from qrun.quantum.synthesis import CZS as GENERIC
from qrun.recipes.tasks import CUT, Measure
from qrun.report.grade import Verdict, together, within
from qrun.studies.grid import (
    Beside,
    Say,
    StudyAxes,
    StudyRun,
    at_sites,
    base_cell,
    different,
    exact_cell,
    measurement,
    presets_of,
    require_cayley,
    train_cell,
    usable,
)  # fmt: skip
from qrun.studies.statistics import gain_kept, gains, interval_of, limits, split, text

DIM, CZS, SHARE = 8, 6, 0.6  # of the claim
KINDS = ["sites", "b", "what", "k"]
ON_DEVICE = {"perplexity": "perplexity", "error": "circuit/relative_error", "survival": "circuit/survival"}


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep circuits`."""

    dims: list[int] = field(default_factory=lambda: [DIM])
    czs: list[int] = field(default_factory=lambda: [2, 6, 14])  # k of trained circuits at study.dims
    cuts: list[int] = field(default_factory=lambda: [2, 4, 6, 10])  # k that Cayley blocks are cut to
    others: list[int] = field(default_factory=lambda: [4])  # b of Cayley blocks of like parameters
    wide: list[int] = field(default_factory=lambda: [64])  # b of circuits of few layers
    wide_czs: list[int] = field(default_factory=lambda: [10])  # their k, n - 1 a layer
    noises: list[str] = field(default_factory=list)  # options of group noise that blocks of study.dims run at

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("czs", "cuts", "wide_czs"):
            for czs in getattr(self, key):
                even = czs >= 2 and czs % 2 == 0
                require(even, f"study.{key}", czs, "circuits start as palindromes; give even numbers from 2")
        for key in ("czs", "cuts", "noises"):
            different(f"study.{key}", getattr(self, key), empty=True)
        for key in ("dims", "wide"):
            for dim in getattr(self, key):
                require(dim >= 4 and dim & (dim - 1) == 0, f"study.{key}", dim, "give powers of two from 4")
        for dim in self.others:
            require(dim >= 2, "study.others", dim, "give block dimensions from 2")
        require(not self.controls, "study.controls", self.controls, "the controls are in `qrun sweep controls`")
        some = bool(self.czs or self.cuts or (self.wide and self.wide_czs))
        require(some, "study.czs", self.czs, "with study.cuts and study.wide empty there is no circuit; name some k")

    def trained(self, dim: int) -> list[int]:
        """k of the circuits that are trained at b = dim."""
        own = self.czs if dim in self.dims else []
        return list(dict.fromkeys([*own, *(self.wide_czs if dim in self.wide else [])]))


@dataclass
class Config(StudyRun):
    """`qrun sweep circuits`."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)
    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        noisy = not self.study.noises or self.device.kind == "noisy"
        require(noisy, "device.kind", self.device.kind, "study.noises are for device=noisy")
        ways = (self.device.circuit, self.estimate.kind.value, self.signs.kind.value)
        stated = not self.study.noises or ways == ("line", "calibrated", "two_settings")
        on = "they stand on device.circuit=line, estimate.kind=calibrated and signs.kind=two_settings"
        require(stated, "study.noises", self.study.noises, on)
        require_cayley(self.adapter)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x b x seed: Cayley blocks, trained and measured, whole and cut; circuits of every k."""
    study, base, beside = config.study, base_cell(config, {}), Beside(config, say)
    presets = presets_of(study.noises)

    def measured(trained: Cell, czs: int | None = None) -> Iterator[Cell]:
        """Exact, and at every noise; with `czs` the blocks cut to so many CZ."""
        values = "trained" if czs is None else f"{CUT}{czs}"
        point = trained.axes if czs is None else {**trained.axes, "czs": czs, "null": "cut"}
        needs = {"adapter": trained, "base": base}
        if czs is None:
            yield exact_cell(config, trained, base)
            yield from beside.of(trained)
        else:
            yield Cell(point, Measure(measurement(config), values), needs)
        for name, noise in presets.items() if point["b"] in study.dims else ():
            there = replace(
                measurement(config), seed=int(str(point["seed"])), device=config.device, noise=noise,
                estimate=config.estimate, signs=config.signs,
            )  # fmt: skip
            yield Cell({**point, "noise": name}, Measure(there, values), needs)

    yield from (base, *beside.bases.values())
    dims = list(dict.fromkeys([*study.dims, *study.others, *study.wide]))
    for chosen, dim in usable(config, say, dims):
        own = replace(at_sites(config.adapter, chosen), dim=dim)
        for seed in study.seeds:
            trained = train_cell(config, {"sites": chosen.value, "b": dim}, own, seed)
            yield trained
            yield from measured(trained)
            for czs in study.cuts if dim in study.dims else []:
                yield from measured(trained, czs)
            for czs in study.trained(dim):
                written = train_cell(config, {"sites": chosen.value, "b": dim, "czs": czs}, of_czs(own, czs), seed)
                yield written
                yield from measured(written)


def of_czs(adapter: AdapterConfig, czs: int) -> AdapterConfig:
    """Circuits in the place of Cayley blocks."""
    return replace(adapter, method="circuit", options={"czs": czs})


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Gains of Cayley blocks, circuits and cuts; the share of the Cayley blocks' gain of the same b."""
    measured = results.table[results.table["kind"] == "measure"].copy()
    cuts = measured["null"].notna() if "null" in measured else pd.Series(False, measured.index)
    measured["what"] = measured["method"].where(~cuts, "cut")
    measured["k"] = measured["czs"].fillna(0).astype(int)  # 0: Cayley blocks, which are synthesised
    base, rows, beside = split(replace(results, table=measured))
    noisy = rows["noise"].notna() if "noise" in rows else pd.Series(False, rows.index)
    rows, device = rows[~noisy], rows[noisy]
    found = gains(results, base, rows, KINDS, beside)
    generic = {2: 0, **{2**n: czs for n, czs in GENERIC.items()}}
    found["czs"] = found["k"].where(found["what"] != "cayley", found["b"].map(generic)).astype(float)

    def shares(of: pd.DataFrame, by: list[str]) -> Iterator[dict[str, Any]]:
        for point, group in of.groupby(by, sort=False):
            here = dict(zip(by, point, strict=True))
            reference = rows[(rows["what"] == "cayley") & (rows["sites"] == here["sites"]) & (rows["b"] == here["b"])]
            more = {name: group[column].mean() for name, column in ON_DEVICE.items() if "noise" in by}
            yield {**here, "seeds": len(group), **gain_kept(results, base, group, reference), **more}

    frames = {
        "text": text(results, base), "gains": found, "kept": pd.DataFrame(shares(rows[rows["what"] != "cayley"], KINDS))
    }  # fmt: skip
    if not len(device):
        return frames
    noisy_rows = pd.DataFrame(shares(device, [*KINDS, "noise"]))
    own = noisy_rows["what"] != "cayley"
    return frames | {"device": noisy_rows.assign(czs=noisy_rows["k"].where(own, noisy_rows["b"].map(generic)))}


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Whether few CZ keep most of the gain."""
    rows = found["kept"]
    own = rows[(rows["what"] == "circuit") & (rows["sites"] == "all") & (rows["b"] == DIM) & (rows["k"] == CZS)]
    interval = interval_of(own.iloc[0].to_dict()) if len(own) else None
    share = float(own["kept"].iloc[0]) if len(own) else np.nan
    facts = {"kept": share, "seeds": int(rows["seeds"].max()), **limits("kept", interval)}
    return [Verdict("few_cz", together([within(interval, low=SHARE)]), facts)]
