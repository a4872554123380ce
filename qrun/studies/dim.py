"""`qrun sweep dim`: does perplexity improve monotonically with block dimension, noiseless? LoRA of like size beside it.

Margins, of intervals over seeds and documents: each neighbouring pair of dimensions gains (above 0); the paper's one
site at b = 4 gains at all (above 0).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from qrun.cells.cell import Cell
from qrun.config.ranges import require
from qrun.evaluation.intervals import Interval, perplexity_difference
from qrun.evaluation.results import Results
from qrun.evaluation.trends import mean_interval, monotone_trend
from qrun.report.grade import ABOVE_ZERO, Outcome, Verdict, together, within
from qrun.studies.grid import (
    Beside,
    Say,
    StudyAxes,
    StudyRun,
    at_sites,
    base_cell,
    exact_cell,
    matched,
    require_cayley,
    train_cell,
    usable,
)
from qrun.studies.statistics import both_interval, gains, interval_of, limits, ratio, split, text

BLOCKS = ["rotation_degrees", "sign_flips", "relative_change", "entropy_bits", "entropy_ratio", "effective_bond",
          "haar_effective_bond"]  # fmt: skip
LEAST = 0.0142  # nats per token, the smallest difference claimed: the paper's 8.877 to 8.752


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        other = sorted(set(self.controls) - {"lora"})
        require(not other, "study.controls", other, "this curve is lora's; the others are in `qrun sweep controls`")


@dataclass
class Config(StudyRun):
    """`qrun sweep dim`."""

    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_cayley(self.adapter)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x b x seed, trained and measured, for the adapter and for LoRA of like size."""
    base, beside = base_cell(config, {}), Beside(config, say)
    yield from (base, *beside.bases.values())
    for chosen, dim in usable(config, say):
        adapter = replace(at_sites(config.adapter, chosen), dim=dim)
        for method in [adapter, *(matched(config, adapter, name) for name in config.study.controls)]:
            for seed in config.study.seeds:
                trained = train_cell(config, {"sites": chosen.value, "b": dim}, method, seed)
                yield from (trained, exact_cell(config, trained, base), *beside.of(trained))


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Gains, the trend of each site set, diagnostics of the blocks."""
    base, adapted, beside = split(results)
    trained = results.table[results.table["kind"] == "train"]
    own = trained[trained["method"] == "cayley"].rename(columns=lambda name: name.removeprefix("blocks/"))
    blocks = own.groupby(["sites", "b"], sort=False)[[name for name in BLOCKS if name in own]].mean().reset_index()
    found = gains(results, base, adapted, ["sites", "method", "b"], beside)
    found = found.merge(ahead(results, adapted), how="left", on=["sites", "method", "b"])
    return {
        "text": text(results, base), "gains": found.assign(ratio=ratio(found)),
        "trends": trends(results, adapted[adapted["method"] == "cayley"]), "blocks": blocks,
    }  # fmt: skip


def ahead(results: Results, adapted: pd.DataFrame) -> pd.DataFrame:
    """Per control, site set and b: the adapter's gain less the control's, with its interval over seeds and documents,
    paired."""
    rows = []
    for (sites, method, b), control in adapted[adapted["method"] != "cayley"].groupby(["sites", "method", "b"]):
        own = adapted[(adapted["sites"] == sites) & (adapted["method"] == "cayley") & (adapted["b"] == b)]
        over = both_interval(perplexity_difference, results, control, own) if len(own) and len(control) > 1 else None
        rows.append({"sites": sites, "method": method, "b": b, "ahead": own["gain"].mean() - control["gain"].mean(),
                     **limits("ahead", over)})  # fmt: skip
    return pd.DataFrame(rows, columns=["sites", "method", "b", "ahead", "ahead_low", "ahead_high"])


def trends(results: Results, adapted: pd.DataFrame) -> pd.DataFrame:
    """Per site set: Page's p over seeds, the smaller of all lower and of all upper limits of the gains from one
    dimension to the next, over seeds and over both, and the step, from b to b, whose lower limit over both is least."""
    rows = []
    for chosen, group in adapted.groupby("sites", sort=False):
        curve = group.pivot(index="seed", columns="b", values="perplexity")
        seeds = [mean_interval((curve[a] - curve[b]).tolist()) for a, b in pairwise(curve.columns)]
        own = [group[group["b"] == b] for b in curve.columns]
        both = [both_interval(perplexity_difference, results, *pair) for pair in pairwise(own)]
        page = monotone_trend(curve.to_numpy().tolist())
        named = [(step, *ends) for step, ends in zip(both, pairwise(curve.columns), strict=True) if step is not None]
        weakest, start, stop = min(named, default=(None, math.nan, math.nan))
        rows.append({
            "sites": chosen, "seeds": len(curve), "dims": len(curve.columns), **page,
            **limits("step", least(seeds)), **limits("step_both", least(both)),
            **limits("weakest", weakest), "weakest_from": start, "weakest_to": stop,
        })  # fmt: skip
    return pd.DataFrame(rows)


def least(steps: Sequence[Interval | None]) -> Interval | None:
    """The smaller of all lower and of all upper limits; None where a step has none."""
    found = [step for step in steps if step is not None]
    return Interval(*map(float, np.min(found, axis=0))) if found and len(found) == len(steps) else None


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Monotone in b; the gain of the paper's one site; entanglement."""
    rows, base = found["gains"], found["text"]["base"].iloc[0]
    trend = found["trends"]
    steps = [within(interval_of(row, "step_"), low=ABOVE_ZERO) for row in trend[trend["dims"] > 2].to_dict("records")]
    verdicts = [Verdict("monotone", together(steps), {"seeds": int(rows["seeds"].max())})]
    paper = rows[(rows["sites"] == "one") & (rows["b"] == 4) & (rows["method"] == "cayley")]
    for row in paper.itertuples():
        interval = interval_of(row._asdict())
        facts = {"gain": row.gain, "percent": 100 * row.gain / base, "parameters": row.parameters, "seeds": row.seeds}
        verdicts.append(Verdict("gain", within(interval, low=ABOVE_ZERO), {**facts, **limits("gain", interval)}))
    blocks = found["blocks"]
    if "entropy_ratio" in blocks and blocks["entropy_ratio"].notna().any():
        most = float(blocks["entropy_ratio"].max())
        seeds = int(rows["seeds"].max())
        verdicts.append(Verdict("schmidt", Outcome.no_value, {"entropy_ratio": most, "seeds": seeds}))
    return verdicts
