"""`qrun sweep sites`: how gain and penalty grow with the number of adapted sites, and at how many the device eats the
gain.

Adapters at 1, 2, 4 ... all sites (`adapter.count`, each set holding the smaller ones), each trained, then measured
exactly and on the device by each of `study.ways`, circuit/estimate/signs. Sites are not alike, so every seed adds them
in an order of its own (`adapter.order`; that of seed 0 begins with the paper's v_proj). With
    penalty(N) = ln(PPL device / PPL exact) = c N^a
the exponent a is that of the power law through all points (`power_law`), and its interval is over draws of seeds, with
their orders, and documents together; so is that of the break-even N*, where the gain on the device falls below zero.

Margin: independent errors at independent sites cost in proportion to their number, so the exponent's interval over
seeds and documents lies in [0.75, 1.25], at b = 4 by the paper's readout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from qrun.adapters.sites import adapted
from qrun.cells.cell import Cell, Scalar
from qrun.config.ranges import require
from qrun.config.schema import AdapterConfig
from qrun.evaluation.intervals import Floats, Interval
from qrun.evaluation.results import Results
from qrun.evaluation.trends import mean_interval, power_law
from qrun.language.models import model_shape
from qrun.recipes.tasks import Measure
from qrun.report.grade import Verdict, together, within
from qrun.studies.grid import (
    PAPER_SITE,
    Beside,
    NoisyRun,
    Say,
    SiteSet,
    StudyAxes,
    Way,
    at_sites,
    base_cell,
    different,
    exact_cell,
    fits,
    require_cayley,
    some_left,
    train_cell,
    usable,
    way,
)  # fmt: skip
from qrun.studies.statistics import fitted_interval, gain_ends, gains, interval_of, limits, split, text

PAPER, LOW, HIGH = "line/sqrt/input", 0.75, 1.25  # of the claim
STEEPEST = 99.0  # where a draw's penalties have no exponent: it may be anything


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep sites`."""

    sites: list[SiteSet] = field(default_factory=lambda: [SiteSet.all])  # the sets that counts are drawn from
    counts: list[int | None] = field(default_factory=lambda: [1, 2, 4, 8, 16, None])  # null: all of the set
    ways: list[str] = field(default_factory=lambda: [PAPER])

    def __post_init__(self) -> None:
        super().__post_init__()
        different("study.counts", self.counts)
        different("study.ways", self.ways)
        positive = all(count is None or count >= 1 for count in self.counts)
        require(positive, "study.counts", self.counts, "give numbers of sites, null for all")
        require(not self.controls, "study.controls", self.controls, "the controls are in `qrun sweep frontier`")


@dataclass
class Config(NoisyRun):
    """`qrun sweep sites`."""

    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_cayley(self.adapter)

    def ways(self) -> list[Way]:
        return [way(words) for words in self.study.ways]


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x b x count x seed: trained, measured exactly and beside, then on the device by every way. Raises
    InputError where no b has circuits of any way."""
    given = f"{config.study.ways}, study.dims={config.study.dims}"
    return some_left(_cells(config, say), "way", "study.ways", given, "none of these has such circuits")


def _cells(config: Config, say: Say) -> Iterator[Cell]:
    base, beside = base_cell(config, {}), Beside(config, say)
    yield from (base, *beside.bases.values())
    for chosen, dim in usable(config, say):
        ways = [w for w in config.study.ways if fits(way(w).circuit, way(w).sign, dim, say)]
        whole = replace(at_sites(config.adapter, chosen), dim=dim)
        for count, adapter in of_counts(config, whole, say):
            for seed in config.study.seeds:
                axes: dict[str, Scalar] = {"sites": chosen.value, "b": dim, "count": count}
                own = in_order(adapter, whole, seed)
                trained = train_cell(config, axes, own, seed, scanned=adapter)  # one scan for all orders
                exact = exact_cell(config, trained, base)
                yield from (trained, exact, *beside.of(trained))
                needs = {"adapter": trained, "base": base, "exact": exact}
                for words in ways:
                    there = Measure(config.measured(way(words), config.noise, seed))
                    yield Cell({**trained.axes, "way": words}, there, needs)


def of_counts(config: Config, whole: AdapterConfig, say: Say) -> Iterator[tuple[int | None, AdapterConfig]]:
    """Each count with its adapter. The whole set and the paper's one site are spelled as in other studies, so that
    their trainings are found; larger counts than the set has are said and left out."""
    shape = model_shape(config.model)
    most = len(adapted(shape, whole)) if shape is not None else None
    counts = [most if count is None else count for count in config.study.counts]
    for count in dict.fromkeys(counts):  # all of the set may be among the numbers, too
        if most is not None and count is not None and count > most:
            say(f"left out, count={count}: there are {most} sites")
        elif count == most:
            yield most, whole
        else:
            alone = count == 1 and whole == at_sites(whole, SiteSet.all)
            yield count, replace(whole, **PAPER_SITE) if alone else replace(whole, count=count)  # type: ignore[arg-type]


def in_order(adapter: AdapterConfig, whole: AdapterConfig, seed: int) -> AdapterConfig:
    """A count of the sites in the seed's own order; seed 0 begins with the paper's."""
    if adapter == whole or seed == 0:
        return adapter
    return replace(whole, count=adapter.count or 1, order=seed)


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Exact gains, gain and penalty on the device by count, exponents and break-even counts."""
    base, measured, beside = split(results)
    exact, device = measured[measured["way"].isna()], measured[measured["way"].notna()].copy()
    device["nats"] = np.log(device["perplexity"] / (device["perplexity"] - device["penalty"]))
    curves = gains(results, base, device, ["sites", "b", "way", "count"])
    means = device.groupby(["sites", "b", "way", "count"], sort=False)[["penalty", "nats"]].mean().reset_index()
    ends = []
    for point, group in device.groupby(["sites", "b", "way"], sort=False):
        cost = group.pivot(index="seed", columns="count", values="nats")
        counts = [float(count) for count in cost.columns]
        here = dict(zip(["sites", "b", "way"], point, strict=True))
        own = exact[(exact["sites"] == here["sites"]) & (exact["b"] == here["b"])]
        exponent, factor = power_law(counts, cost.mean().to_numpy())
        by_seed = mean_interval(power_law(counts, cost.to_numpy())[0].tolist())
        end = gain_ends(results, base, group, "count")
        sides = {"above": f"beyond {counts[-1]:g} sites", "below": f"at {counts[0]:g} or fewer sites", "": ""}
        ends.append({
            **here, "seeds": len(cost), "most": counts[-1], **end, "end": sides[end["side"]],
            "exponent": float(exponent), "factor": float(factor), **limits("exponent", by_seed),
            **limits("exponent_both", over_both(results, counts, own, group)),
        })  # fmt: skip
    return {
        "text": text(results, base), "exact": gains(results, base, exact, ["sites", "b", "count"], beside),
        "device": curves.merge(means), "ends": pd.DataFrame(ends),
    }  # fmt: skip


def over_both(results: Results, counts: Sequence[float], exact: pd.DataFrame, device: pd.DataFrame) -> Interval | None:
    """Interval over seeds and documents of the exponent; one count has none."""
    if len(counts) < 2:
        return None

    def exponent(*sums: Floats) -> Floats:
        nats = np.concatenate(sums[:-1], axis=-1) / sums[-1]
        return power_law(counts, nats[..., len(counts) :] - nats[..., : len(counts)])[0]

    groups = [rows[rows["count"] == count] for rows in (exact, device) for count in counts]
    return fitted_interval(exponent, results, *groups, least=-STEEPEST, most=STEEPEST)


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Whether the penalty grows in proportion to the number of sites."""
    rows = found["ends"]
    own = rows[(rows["b"] == 4) & (rows["way"] == PAPER)].to_dict("records")
    outcomes = [within(interval_of(row, "exponent_"), LOW, HIGH) for row in own]
    return [Verdict("proportion", together(outcomes), {"seeds": int(rows["seeds"].max()), "rows": len(own)})]
