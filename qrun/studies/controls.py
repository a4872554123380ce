"""`qrun sweep controls`: what other trained matrices, and untrained ones, do at the same sites, by the same rule.

Margins: gain per 1,000 parameters above LoRA's (interval of the difference over seeds and documents above 0) at every
site set; OFT, the same map by other hands, within 1e-4 of the adapter's perplexity.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from qrun.cells.cell import Cell
from qrun.config.devices import DeviceConfig, EstimateConfig, SignsConfig
from qrun.evaluation.intervals import Floats, Interval, perplexity_difference
from qrun.evaluation.results import Results
from qrun.evaluation.trends import mean_interval
from qrun.quantum.noise import Noise
from qrun.recipes.tasks import Measure
from qrun.report.grade import ABOVE_ZERO, Verdict, together, within
from qrun.studies.grid import (
    Beside,
    Say,
    StudyRun,
    at_sites,
    base_cell,
    exact_cell,
    matched,
    measurement,
    require_cayley,
    train_cell,
    usable,
)
from qrun.studies.statistics import both_interval, gains, interval_of, limits, ratio, split, text

EQUAL = 1e-4  # relative difference of perplexities of the same map by other hands
LEAST = 0.0142  # nats per token, the smallest difference claimed: the paper's 8.877 to 8.752


@dataclass
class Config(StudyRun):
    """`qrun sweep controls`; device, noise, estimate and signs are those of the null K = 0."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_cayley(self.adapter)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Site set x b x method x seed; nulls: K = 0 and the adapter on the device, shuffled K without it."""
    base, beside = base_cell(config, {}), Beside(config, say)
    yield from (base, *beside.bases.values())
    for chosen, dim in usable(config, say):
        own = replace(at_sites(config.adapter, chosen), dim=dim)
        for name in ["cayley", *config.study.controls]:
            adapter = own if name == "cayley" else matched(config, own, name)
            for seed in config.study.seeds:
                trained = train_cell(config, {"sites": chosen.value, "b": dim}, adapter, seed)
                yield trained
                exact = exact_cell(config, trained, base, {"null": "trained"})
                yield exact
                yield from beside.of(trained, {"null": "trained"})
                if name == "cayley" and dim & (dim - 1) == 0:
                    yield from nulls(config, trained, base, exact)


def nulls(config: Config, trained: Cell, base: Cell, exact: Cell) -> Iterator[Cell]:
    """Something untrained in the adapter's place, and the adapter's own circuits."""
    seed = trained.axes["seed"]
    assert isinstance(seed, int)
    here = replace(measurement(config), seed=seed)
    words = {key: getattr(config, key) for key in ("device", "noise", "estimate", "signs")}
    on_device = replace(here, **words)
    needs = {"adapter": trained, "base": base, "exact": exact}
    yield Cell({**trained.axes, "null": "shuffled K"}, Measure(here, "shuffled"), needs)
    if config.device.kind != "exact":
        yield Cell({**trained.axes, "null": "K = 0 on the device"}, Measure(on_device, "zero"), needs)
        yield Cell({**trained.axes, "null": "adapter on the device"}, Measure(on_device), needs)


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Gains by method, and per site set and b the paired comparisons with LoRA and OFT."""
    base, adapted, beside = split(results)
    by = ["sites", "b", "method", "null"]
    rows = []
    trained = adapted[adapted["null"] == "trained"]
    for (chosen, dim), group in trained.groupby(["sites", "b"], sort=False):
        each = {name: rows_of.set_index("seed") for name, rows_of in group.groupby("method")}
        row: dict[str, object] = {"sites": chosen, "b": dim}
        if "lora" in each:
            per = {n: 1000 * each[n]["gain"] / each[n]["parameters"] for n in ("cayley", "lora")}
            ahead = per["cayley"] - per["lora"]
            row |= {
                "per_thousand": ahead.mean(), **limits("per_thousand", mean_interval(ahead.tolist())),
                **limits("per_thousand_both", over_both(results, base, group)),
            }  # fmt: skip
        if "oft" in each:
            row["oft"] = float((each["oft"]["perplexity"] / each["cayley"]["perplexity"] - 1).abs().max())
        rows.append(row)
    found = gains(results, base, adapted, by, beside)
    found["ratio"] = ratio(found)
    found["per_thousand"] = 1000 * found["gain"] / found["parameters"].where(found["parameters"] > 0)
    return {"text": text(results, base), "gains": found, "pairs": pd.DataFrame(rows)}


def over_both(results: Results, base: pd.DataFrame, trained: pd.DataFrame) -> Interval | None:
    """Interval over seeds and documents of the adapter's gain per 1,000 parameters less LoRA's."""
    own, lora = (trained[trained["method"] == name] for name in ("cayley", "lora"))
    each, other = (rows["parameters"].iloc[0] / 1000 for rows in (own, lora))

    def ahead(frozen: Floats, first: Floats, second: Floats, weight: Floats) -> Floats:
        gains = (perplexity_difference(frozen, nats, weight) for nats in (first, second))
        return next(gains) / each - next(gains) / other

    return both_interval(ahead, results, base, own, lora)


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """OFT is the same map; gain per parameter against LoRA."""
    pairs, seeds = found["pairs"], int(found["gains"]["seeds"].max())
    verdicts = []
    if "oft" in pairs:
        most = float(pairs["oft"].max())
        verdicts.append(Verdict("oft", within(Interval(most, most), high=EQUAL), {"most": most, "seeds": seeds}))
    if "per_thousand" in pairs:
        rows = pairs.to_dict("records")
        ahead = [within(interval_of(row, "per_thousand_"), low=ABOVE_ZERO) for row in rows]
        verdicts.append(Verdict("efficiency", together(ahead), {"seeds": seeds}))
    return verdicts
