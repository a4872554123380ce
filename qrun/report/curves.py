"""A study's curves: for MLflow's charts a run per curve, its metrics over a numeric axis; and those of its trainings.

    curves("noise", numbers) -> [Curve("sites=all b=4 gates", {"sites": "all", ...}, [(3000, {"gain": 0.2}), ...])]
    with_trainings(results, store) -> results whose units have the validation curve of every training

MLflow's axis is the step, a whole number: b, CZ, parameters and thousandths of a ratio as they are; rates in
milli-decades above 1e-6, so that 1e-3 is 3,000 and 2e-2 is 4,301.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import pandas as pd

from qrun.evaluation.results import Results
from qrun.tracking.store import Store

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#000000",
)  # Okabe and Ito's


@dataclass(frozen=True)
class Curve:
    """Steps in rising order."""

    name: str
    params: Mapping[str, object]
    rows: Sequence[tuple[int, Mapping[str, float]]]
    colour: str


@dataclass(frozen=True)
class Axis:
    """Which frame, which columns tell curves apart, which column is the axis, and metrics by their columns."""

    frame: str
    series: Sequence[str]
    column: str
    step: Callable[[float], float]
    metrics: Mapping[str, str]


def milli_decades(rate: float) -> float:
    return 1000 * (math.log10(rate) + 6)


GAIN = {"gain": "gain", "perplexity": "perplexity", "gain_low": "document_low", "gain_high": "document_high"}
AXES = {
    "noise": Axis("relative", ["sites", "sign", "shots", "b", "axis"], "rate", milli_decades,
                  {"relative_perplexity": "relative", "gain": "gain", "penalty": "penalty", "gain_kept": "kept"}),
    "wall": Axis("kept", ["sites", "b", "way"], "rate", milli_decades,
                 {"gain_kept": "kept", "gain": "gain", "perplexity": "perplexity", "slice_error": "error"}),
    "dim": Axis("gains", ["sites", "method"], "b", float, GAIN),
    "controls": Axis("gains", ["sites", "b", "method", "null"], "parameters", float, GAIN),
    "sites": Axis("device", ["sites", "b", "way"], "count", float,
                  {"gain": "gain", "penalty_nats": "nats", "perplexity": "perplexity"}),
    "frontier": Axis("gains", ["sites", "method"], "parameters", float, GAIN),
    "ladder": Axis("gains", ["sites", "b", "method", "optimizer"], "size", float, {**GAIN, "gain_percent": "percent"}),
    "circuits": Axis("gains", ["sites", "what", "b"], "k", float, GAIN),
    "recover": Axis("recovery", ["text", "what", "b"], "ratio", lambda ratio: 1000 * ratio,
                    {"recovery": "recovery", "recovery_low": "recovery_document_low",
                     "recovery_high": "recovery_document_high"}),
}  # fmt: skip


def curves(study: str, numbers: Mapping[str, pd.DataFrame]) -> Iterator[Curve]:
    """All of a study; none for a study without an axis."""
    axis = AXES.get(study)
    if axis is None or axis.frame not in numbers:
        return
    rows = numbers[axis.frame]
    series = [name for name in axis.series if name in rows and rows[name].nunique(dropna=False) > 1]
    rows, colours = rows[rows[axis.column].notna()], cycle(COLOURS)
    groups = rows.groupby(series, sort=False, dropna=False) if series else [((), rows)]
    for point, own in groups:
        params = dict(zip(series, point, strict=True))
        steps = [
            (round(axis.step(float(row[axis.column]))), _present(axis.metrics, row))
            for row in own.sort_values(axis.column).to_dict("records")
        ]
        shown = " ".join(f"{name}={value:g}" if isinstance(value, float | int) else str(value)
                         for name, value in params.items())  # fmt: skip
        yield Curve(shown or study, params, steps, next(colours))


def _present(metrics: Mapping[str, str], row: Mapping[str, object]) -> dict[str, float]:
    found = {name: row.get(column) for name, column in metrics.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, float | int) and value == value}


def with_trainings(results: Results, store: Store) -> Results:
    """With the curves of its trainings among the units: the validated `step`s, `nats` per token there, and `plateau`,
    the step behind which the learning rate fell because validation was flat, empty where it was not. They are read from
    the store, as far as it still has them; cells leave them there and not in their units."""
    table, found = results.table, dict(results.units)
    for row in table[table["kind"] == "train"].drop_duplicates("key").to_dict("records"):
        nats, rates = (store.history(row["run_id"], name) for name in ("validation/nats", "train/lr"))
        if not nats:
            continue
        full = [step for step, rate in rates.items() if rate == max(rates.values())]
        fell = len(full) > 1 and full[-1] in nats and full[-1] < max(rates)  # a cosine is at its top once
        flat = fell and row.get("at_cap") == 0
        found[row["key"]] = {"step": list(nats), "nats": list(nats.values()), "plateau": full[-1:] if flat else []}
    return replace(results, units=found)
