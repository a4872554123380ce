"""`qrun sweep frontier`: gain against trained parameters, of every method at one site, at a layer's and at all.

The adapter at every b of `study.dims`; each control with the size nearest to the adapter's count (a method has the
sizes that it has: rank 1 of LoRA at all sites is more than b = 2). Only counts within EQUAL of each other are compared
number by number; curves over parameters, FLOP a token (not merged into W) and bytes show the rest.

Margin: at every pair of such counts the adapter gains more than LoRA (interval of the difference over seeds and
documents above 0).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from qrun.adapters.methods.base import EQUAL
from qrun.cells.cell import Cell, Scalar
from qrun.evaluation.intervals import perplexity_difference
from qrun.evaluation.results import Results
from qrun.evaluation.trends import mean_interval
from qrun.report.grade import ABOVE_ZERO, Verdict, together, within
from qrun.studies.grid import (
    Beside,
    Say,
    SiteSet,
    StudyAxes,
    StudyRun,
    at_sites,
    base_cell,
    exact_cell,
    matched,
    require_cayley,
    train_cell,
    usable,
)  # fmt: skip
from qrun.studies.statistics import both_interval, documents_interval, gains, interval_of, limits, split, text

BYTES = 4  # of a saved parameter


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun sweep frontier`."""

    sites: list[SiteSet] = field(default_factory=lambda: [SiteSet.one, SiteSet.layer, SiteSet.all])


@dataclass
class Config(StudyRun):
    """`qrun sweep frontier`."""

    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_cayley(self.adapter)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x size x method x seed. A control's size that is nearest for several b stands once, at the first."""
    base, beside = base_cell(config, {}), Beside(config, say)
    yield from (base, *beside.bases.values())
    seen: list[object] = []
    for chosen, dim in usable(config, say):
        own = replace(at_sites(config.adapter, chosen), dim=dim)
        for method in ("cayley", *config.study.controls):
            adapter = own if method == "cayley" else matched(config, own, method)
            if adapter in seen:
                continue
            seen.append(adapter)
            axes: dict[str, Scalar] = {"sites": chosen.value, "b": dim}
            if adapter.projections != own.projections:  # a LoRA of rank 1 at all of them would be too large
                axes["only"] = " ".join(name.removesuffix("_proj") for name in adapter.projections)
            for seed in config.study.seeds:
                trained = train_cell(config, axes, adapter, seed)
                yield from (trained, exact_cell(config, trained, base), *beside.of(trained))


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Gains of every size, and the difference to the adapter where counts are equal."""
    base, adapted, beside = split(results)
    adapted = adapted.assign(only=adapted["only"].fillna("all") if "only" in adapted else "all")
    by = ["sites", "method", "b"]
    found = gains(results, base, adapted, by, beside)
    found["bytes"] = BYTES * found["parameters"]
    facts = adapted.groupby(by, sort=False)[[name for name in ("only", "flop") if name in adapted]].first()
    return {
        "text": text(results, base), "gains": found.merge(facts.reset_index(), how="left"),
        "pairs": pd.DataFrame(pairs(results, adapted)),
    }  # fmt: skip


def pairs(results: Results, adapted: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The adapter and each control whose counts are equal, the nearest size of each method: PPL of the control less the
    adapter's, paired over seeds and over documents."""
    for chosen, here in adapted.groupby("sites", sort=False):
        sizes = [group for _, group in here[here["method"] != "cayley"].groupby(["method", "b"], sort=False)]
        for b, own in here[here["method"] == "cayley"].groupby("b", sort=False):
            count = own["parameters"].iloc[0]
            nearest: dict[str, tuple[float, pd.DataFrame]] = {}
            for other in sizes:
                ratio = other["parameters"].iloc[0] / count
                apart, method = abs(np.log(ratio)), str(other["method"].iloc[0])
                if apart <= np.log(EQUAL) and apart < nearest.get(method, (np.inf,))[0]:
                    nearest[method] = (apart, other)
            for method, (_, other) in nearest.items():
                ahead = (own.set_index("seed")["gain"] - other.set_index("seed")["gain"]).dropna()
                over_both = both_interval(perplexity_difference, results, other, own)
                yield {
                    "sites": chosen, "b": b, "method": method, "parameters": int(count),
                    "others": int(other["parameters"].iloc[0]), "seeds": len(ahead), "ahead": ahead.mean(),
                    "only": other["only"].iloc[0],
                    **limits("seed", mean_interval(ahead.tolist())),
                    **limits("document", documents_interval(results, other, own)), **limits("both", over_both),
                }  # fmt: skip


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Whether the adapter gains more than LoRA wherever both have as many parameters."""
    rows = found["pairs"]
    lora = rows[rows["method"] == "lora"].to_dict("records") if len(rows) else []
    outcomes = [within(interval_of(row), low=ABOVE_ZERO) for row in lora]
    facts = {"pairs": len(lora), "ahead": sum(row["ahead"] > 0 for row in lora),
             "seeds": int(found["gains"]["seeds"].max())}  # fmt: skip
    return [Verdict("equal_parameters", together(outcomes), facts)]
