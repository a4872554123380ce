"""`qrun sweep noise`: every trained adapter on the noisy device at every error rate. Where does the gain end, and why?

Axes of noise (Noise.along): `gates` with readout at the preset's value, `readout` alone; `one_qubit`, `two_qubit` and
`proportional` when asked. b = 2 has no two-qubit gate and stands on the readout and one-qubit axes only.

Margins: b = 4 at one site costs at most 0.16 % (twice the paper's 0.08 %); b = 8 there costs 1.4 to 5.6 % (half to
twice 2.8 %), or at all sites multiplies perplexity by 17.5 to 70 (half to twice 35); a transition is sharp if the gain
ends within half the 0.95 decades over which proportional damage ends it. All by intervals over seeds and documents; a
width is fitted, and a critical rate, which is not graded, read again for each draw of them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy

from qrun.cells.cell import Cell
from qrun.config.devices import Estimator, Sign
from qrun.config.ranges import require
from qrun.errors import InputError
from qrun.evaluation.intervals import Floats, Interval, perplexity, perplexity_difference
from qrun.evaluation.resampling import perplexity_ratio
from qrun.evaluation.results import Results
from qrun.evaluation.trends import ENDS, POWERS, mean_interval, sharpness, widths
from qrun.quantum.noise import AXES, Noise
from qrun.recipes.tasks import Measure
from qrun.report.grade import Outcome, Verdict, together, within
from qrun.studies.grid import (
    NoisyRun,
    Say,
    StudyAxes,
    Way,
    at_sites,
    base_cell,
    different,
    exact_cell,
    fits,
    require_alone,
    require_cayley,
    some_left,
    train_cell,
    usable,
)  # fmt: skip
from qrun.studies.statistics import (
    both_interval,
    documents_interval,
    fitted_interval,
    gain_ends,
    gain_kept,
    interval_of,
    limits,
    text,
)

PARTS = ("readout", "one_qubit", "two_qubit")
PAIRS = ("gates", "two_qubit", "proportional")  # axes that mean a two-qubit error rate
SERIES = ["sites", "sign", "shots"]
UNSATURATED = (1e-4, 1.0)  # nats of damage that are neither shots nor a model that answers anything
LEAST = 0.0008  # nats per token, the smallest difference claimed: the paper's 8.752 to 8.759


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep noise`."""

    axes: list[str] = field(default_factory=lambda: ["gates", "readout"])
    rates: list[float] = field(default_factory=lambda: [1e-3, 1e-2])  # of gates, by the two-qubit (or one-qubit) error
    readout_rates: list[float] = field(default_factory=lambda: [1e-2])  # of axis readout: mean of its two errors
    shots: list[int | None] = field(default_factory=lambda: [8192])
    signs: list[Sign] = field(default_factory=lambda: [Sign.input])

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("rates", "readout_rates"):
            rates = getattr(self, key)
            rising = bool(rates) and rates == sorted(set(rates)) and rates[0] > 0
            require(rising, f"study.{key}", rates, "give different rates above 0 in rising order")
        for key in ("axes", "shots", "signs"):
            different(f"study.{key}", getattr(self, key))
        require(set(self.axes) <= set(AXES), "study.axes", self.axes, f"use {', '.join(AXES)}")
        ok = all(s is None or s >= 1 for s in self.shots)
        require(ok, "study.shots", self.shots, "give 1 or more, or null for exact probabilities")
        require(all(b & (b - 1) == 0 for b in self.dims), "study.dims", self.dims, "circuits need powers of two")
        require(not self.controls, "study.controls", self.controls, "the controls are in `qrun sweep controls`")


@dataclass
class Config(NoisyRun):
    """`qrun sweep noise`."""

    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_alone(self.home, self.second)
        require_cayley(self.adapter)
        above = "rates stand in a preset's proportions; its cz is 0 (set noise.cz and noise.factor above it)"
        require(self.noise.cz > 0, "noise", self.noise.name, above)

    def ways(self) -> list[Way]:
        return [Way(self.device.circuit, Estimator.sqrt, sign) for sign in self.study.signs]


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x b x seed trained (as in the dim study), then x sign x shots x points of noise measured. Raises
    InputError where no point has a rate."""
    given = f"{config.study.axes}, study.dims={config.study.dims}"
    return some_left(_cells(config, say), "rate", "study.axes", given, "these leave no rate to measure at")


def _cells(config: Config, say: Say) -> Iterator[Cell]:
    study, base = config.study, base_cell(config, {})
    yield base
    for chosen, dim in usable(config, say):
        adapter = replace(at_sites(config.adapter, chosen), dim=dim)
        points = list(noise_points(config, dim, say if chosen is study.sites[0] else lambda _: None))
        for seed in study.seeds:
            trained = train_cell(config, {"sites": chosen.value, "b": dim}, adapter, seed)
            yield trained
            exact = exact_cell(config, trained, base, {"axis": "exact"})
            yield exact
            needs = {"adapter": trained, "base": base, "exact": exact}
            for way in config.ways():
                if not fits(way.circuit, way.sign, dim, say):
                    continue
                for shots in study.shots:
                    for axis, rate, noise in points:
                        point = {"sign": way.sign.value, "shots": shots or 0, "axis": axis, "rate": rate}
                        there = config.measured(way, noise, seed, shots=shots)
                        yield Cell({**trained.axes, **point}, Measure(there), needs)


def noise_points(config: Config, dim: int, say: Say) -> Iterator[tuple[str, float | None, Noise]]:
    """Axis, rate and noise of every measurement of a block dimension; what cannot be is left out and said."""
    preset = config.noise
    yield "quiet", None, preset.quiet()
    yield "preset", None, preset
    yield "uniform", None, preset.uniform()
    for part in PARTS:
        if dim > 2 or part != "two_qubit":
            yield f"only {part}", None, preset.only(part)
    for axis in config.study.axes:
        if dim == 2 and axis in PAIRS:
            say(f"left out, b=2 on axis {axis}: its circuits have no two-qubit gate")
            continue
        for rate in config.study.readout_rates if axis == "readout" else config.study.rates:
            try:
                yield axis, rate, preset.along(axis, rate)
            except InputError as error:
                say(f"left out, b={dim}: {error}")


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Curves, where and how sharply they end, and what the preset costs and why."""
    measured = results.table[results.table["kind"] == "measure"]
    base = measured[measured["method"] == "none"]
    exact, noisy = measured[measured["axis"] == "exact"], measured[measured["sign"].notna()].copy()
    level = float(base["perplexity"].iloc[0])
    noisy["relative"] = 1 - noisy["gain"] / level
    by = [*SERIES, "b", "axis", "rate"]
    groups = noisy.groupby(by, sort=False, dropna=False)
    relative = groups[["relative", "gain", "penalty"]].mean().reset_index()
    shares = [gain_kept(results, base, rows, at_place(exact, rows)) for _, rows in groups]
    relative = relative.join(pd.DataFrame(shares))
    ends, costs = [], []
    for point, group in noisy.groupby([*SERIES, "b"], sort=False):
        here = dict(zip([*SERIES, "b"], point, strict=True))
        own = at_place(exact, group)
        for end in curve_ends(results, base, group, own):
            ends.append({**here, **end, **over_both(results, base, group, end)})
        costs.append({**here, **preset_costs(results, group, own)})
    return {
        "text": text(results, base), "relative": relative,
        "ends": pd.DataFrame(ends), "preset": pd.DataFrame(costs), "collapse": pd.DataFrame(collapse(noisy)),
    }  # fmt: skip


def collapse(noisy: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Whether one power law holds for all b, site sets and axes: the damage of errors, ln(PPL / PPL without gate
    errors), over the rate, over the total error of a circuit, and over that times the adapted channels. Exponent, and
    the scatter around the line in decades of damage."""
    by = [*SERIES, "b"]
    quiet = noisy[noisy["axis"] == "quiet"].set_index([*by, "seed"])["perplexity"]
    moved = noisy[noisy["rate"].notna()].join(quiet.rename("quiet"), on=[*by, "seed"])
    moved = moved.assign(damage=np.log(moved["perplexity"] / moved["quiet"]), total=moved["circuit/total_error"],
                         channels=2 * moved["parameters"] / (moved["b"] - 1))  # fmt: skip
    columns = ["damage", "total", "channels"]
    points = moved.groupby([*by, "axis", "rate"], sort=False)[columns].mean().reset_index()
    for (sign, shots), own in points[points["damage"].between(*UNSATURATED)].groupby(["sign", "shots"], sort=False):
        over = {"the rate": own["rate"], "total error of a circuit": own["total"],
                "total error x adapted channels": own["total"] * own["channels"]}  # fmt: skip
        for name, x in over.items():
            if x.nunique() < 3:  # such as a study of one rate
                continue
            line = scipy.stats.linregress(np.log10(x), np.log10(own["damage"]))
            left = np.log10(own["damage"]) - line.intercept - line.slope * np.log10(x)
            yield {"sign": sign, "shots": shots, "over": name, "points": len(own), "exponent": line.slope,
                   "scatter": float(np.sqrt(np.mean(left**2)))}  # fmt: skip


def at_place(exact: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The exact measurements of the adapters of one site set and b."""
    sites, b = rows[["sites", "b"]].iloc[0]
    return exact[(exact["sites"] == sites) & (exact["b"] == b)]


def curve_ends(
    results: Results, base: pd.DataFrame, group: pd.DataFrame, exact: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Per axis of noise: critical rate, width, and the total error of the block circuit at the critical rate."""
    quiet = group[group["axis"] == "quiet"].set_index("seed")["gain"]
    for axis, rows in group[group["rate"].notna()].groupby("axis", sort=False):
        gain = rows.pivot(index="seed", columns="rate", values="gain")
        rates, curve = gain.columns.tolist(), gain.to_numpy()
        critical = gain_ends(results, base, rows, "rate")
        sharp = sharpness(rates, curve, quiet.loc[gain.index].tolist())
        total = rows.groupby("rate")["circuit/total_error"].first()
        there = math.nan if critical["side"] else np.interp(critical["rate"], rates, total)
        yield {
            "axis": axis, "exact_gain": exact["gain"].mean(), **{f"critical_{k}": v for k, v in critical.items()},
            **{f"width_{k}" if k != "width" else k: v for k, v in sharp.items()}, "critical_error": float(there),
        }  # fmt: skip


def over_both(results: Results, base: pd.DataFrame, group: pd.DataFrame, end: Mapping[str, Any]) -> dict[str, float]:
    """Interval over seeds and documents of the width of a curve that ends inside the rates. A draw of them without a
    width, such as one that begins below 90 % of its gain, may have any, and so may a seed without one."""
    if not end["width"] > 0 and end["critical_side"]:
        return limits("width_both", None)
    rates, points = zip(*group[group["axis"] == end["axis"]].groupby("rate"), strict=True)

    def width(frozen: Floats, *sums: Floats) -> Floats:
        nats, weight = np.concatenate(sums[:-1], axis=-1), sums[-1]
        gain = perplexity(frozen, weight)[..., None] - np.exp(nats / weight)
        return widths(rates, gain[..., 1:], gain[..., 0])

    quiet = group[group["axis"] == "quiet"]
    interval = fitted_interval(width, results, base, quiet, *points, least=0.0, most=ENDS / POWERS[0])
    return limits("width_both", interval)


def preset_costs(results: Results, group: pd.DataFrame, exact: pd.DataFrame) -> dict[str, float]:
    """Penalty at the preset with intervals, as a share of the gain, and the parts that each kind of error carries. A
    part is the penalty under that kind of error alone, less that of shots and signs, over the whole excess; the parts
    need not sum to one."""
    preset = group[group["axis"] == "preset"]
    level, penalty, gain = exact["perplexity"].mean(), preset["penalty"].mean(), exact["gain"].mean()
    alone = group.groupby("axis")["penalty"].mean()
    excess = alone["preset"] - alone["quiet"]
    ratio = both_interval(perplexity_ratio, results, preset, exact)
    harmed = {part: alone.get(f"only {part}", math.nan) - alone["quiet"] for part in PARTS}
    shares = {f"part_{part}": value / excess if excess > 0 else math.nan for part, value in harmed.items()}
    return {
        "exact_perplexity": level, "preset_perplexity": preset["perplexity"].mean(), "penalty": penalty,
        "quiet_penalty": alone["quiet"], **limits("seed", mean_interval(preset["penalty"].tolist())),
        **limits("document", documents_interval(results, preset, exact)), **limits("ratio", ratio),
        **limits("both", both_interval(perplexity_difference, results, preset, exact)),
        "percent": 100 * penalty / level, "of_gain": penalty / gain if gain > 0 else math.nan,
        "preset_gain": preset["gain"].mean(), **shares,
        "sign_flips": preset["circuit/sign_flips"].mean(), "seeds": len(preset),
    }  # fmt: skip


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """The transition; what noise costs two- and three-qubit blocks."""
    ends, preset = found["ends"], found["preset"]
    seeds = int(preset["seeds"].max())
    sharp = [within(interval_of(row, "width_"), high=ENDS / 2) for row in ends.to_dict("records")]
    told = sum(outcome is not Outcome.untestable for outcome in sharp)
    verdicts = [Verdict("transition", together(sharp), {"seeds": seeds, "told": told, "curves": len(sharp)})]
    paper = preset[(preset["sign"] == "input") & (preset["shots"] > 0)].drop_duplicates(["sites", "b"])
    rows = {(row["sites"], row["b"]): row for row in paper.to_dict("records")}
    for claim, point, low, high in (
        ("penalty2", ("one", 4), -math.inf, 0.16), ("penalty3_percent", ("one", 8), 1.4, 5.6),
    ):  # fmt: skip
        if row := rows.get(point):
            size = 100 / row["exact_perplexity"]
            interval = interval_of(row, size=size)
            facts = {k: row[k] for k in ("percent", "penalty", "of_gain", "quiet_penalty", "seeds")}
            verdicts.append(Verdict(claim, within(interval, low, high), {**facts, **limits("percent", interval)}))
    if row := rows.get(("all", 8)):
        interval = Interval(row["ratio_low"], row["ratio_high"])
        facts = {"fold": row["preset_perplexity"] / row["exact_perplexity"], "seeds": seeds, **limits("fold", interval)}
        verdicts.append(Verdict("penalty3_fold", within(interval, 17.5, 70.0), facts))
    return verdicts
