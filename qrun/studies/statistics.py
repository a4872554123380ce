"""Numbers that studies share: gains of groups of cells with intervals over seeds, over documents, and over both."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qrun.evaluation.intervals import (
    Floats,
    Interval,
    effective_number,
    over_documents,
    perplexity,
    perplexity_difference,
)
from qrun.evaluation.resampling import over_seeds_and_documents, perplexity_ratio, share_of_gain
from qrun.evaluation.results import Results
from qrun.evaluation.trends import crossings, mean_interval, zero_crossing

RESAMPLES, SEED = 9999, 0  # of every bootstrap
DRAWN = 2**25  # documents at most, in all resamples of an interval that a verdict rests on


def nats(results: Results, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Nats per document, averaged over the rows (seeds)."""
    return np.mean([results.unit(key, "nats") for key in rows["key"]], axis=0)


def weight(results: Results, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Tokens or words of each document."""
    return results.unit(rows["key"].iloc[0], "weight")


def documents_interval(results: Results, first: pd.DataFrame, second: pd.DataFrame) -> Interval | None:
    """95 % interval over documents of PPL_first - PPL_second, the log-likelihoods of each averaged over seeds."""
    arrays = (nats(results, first), nats(results, second))
    return over_documents(perplexity_difference, arrays, weight(results, first), RESAMPLES, SEED)


def both_interval(
    statistic: Callable[..., Floats], results: Results, *groups: pd.DataFrame, finer: int = 10
) -> Interval | None:
    """95 % interval over seeds and documents together of statistic(nats of each group, weight). A group of one row has
    no seeds, such as the frozen model; of the others the seeds that all have, in pairs. Verdicts rest on it, so it has
    `finer` times RESAMPLES where DRAWN allows: draws move its limits by less than a 300th of their distance."""
    several = [set(rows["seed"]) for rows in groups if len(rows) > 1]
    seeds = sorted(set.intersection(*several)) if several else []
    own = [rows.set_index("seed").loc[seeds] if len(rows) > 1 else rows for rows in groups]
    each = [np.array([results.unit(key, "nats") for key in rows["key"]]) for rows in own]
    arrays = [found if len(rows) > 1 else found[0] for found, rows in zip(each, groups, strict=True) if len(found)]
    if len(arrays) < len(groups):
        return None
    size = weight(results, groups[0])
    resamples = int(np.clip(DRAWN // len(size), RESAMPLES, finer * (RESAMPLES + 1) - 1))
    return over_seeds_and_documents(statistic, arrays, size, resamples, SEED)


def fitted_interval(
    fit: Callable[..., Floats], results: Results, *groups: pd.DataFrame, least: float, most: float
) -> Interval | None:
    """`both_interval` of a fit to sums [draws, 1] of each group's nats and of the weight. It is nan where it cannot be
    made: such a draw counts as `least` in the lower limit and as `most` in the upper one, so that what many draws do
    not allow stays open. A limit at -`most` or `most` is infinite."""

    def filled(value: float) -> Interval | None:
        return both_interval(lambda *sums: np.nan_to_num(fit(*sums), nan=value), results, *groups, finer=1)

    low, high = filled(least), filled(most)
    if low is None or high is None:
        return None
    return Interval(low.low if low.low > -most else -math.inf, high.high if high.high < most else math.inf)


def gain_ends(results: Results, base: pd.DataFrame, rows: pd.DataFrame, along: str) -> dict[str, Any]:
    """Where on the axis `along` the gain of the rows, averaged over seeds, falls below zero (`zero_crossing`), with the
    interval over seeds and documents together; its limits end at the first and the last value of the axis."""
    at, points = zip(*rows.groupby(along), strict=True)

    def ends(frozen: Floats, *sums: Floats) -> Floats:
        nats, size = np.concatenate(sums[:-1], axis=-1), sums[-1]
        return np.clip(crossings(at, perplexity(frozen, size)[..., None] - np.exp(nats / size)), at[0], at[-1])

    found = zero_crossing(at, np.array([own["gain"].mean() for own in points]))
    interval = None if found["side"] else both_interval(ends, results, base, *points, finer=1)  # not graded
    return {**found, "low": interval.low if interval else math.nan, "high": interval.high if interval else math.nan}


def limits(name: str, interval: Interval | None) -> dict[str, float]:
    """An interval as two columns, nan where there is none."""
    low, high = interval or Interval(np.nan, np.nan)
    return {f"{name}_low": low, f"{name}_high": high}


def split(results: Results) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measurements of the frozen model, of what was trained, and those beside them (home text, second protocol)."""
    rows = results.table[results.table["kind"] == "measure"]
    apart = rows["beside"].notna() if "beside" in rows else pd.Series(False, rows.index)
    own = rows[~apart]
    return own[own["method"] == "none"], own[own["method"] != "none"], rows[apart]


def gains(
    results: Results, base: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str], beside: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A row per group: parameters, mean perplexity and gain, intervals over seeds, over documents, and over both; what
    it is worth `beside`, in percent of perplexity."""
    found = []
    for point, group in rows.groupby(list(by), sort=False):
        own = group["gain"].tolist()
        found.append({
            **elsewhere(results, beside, dict(zip(by, point, strict=True))),
            **dict(zip(by, point, strict=True)), "seeds": len(group), "parameters": round(group["parameters"].mean()),
            "perplexity": group["perplexity"].mean(), "gain": group["gain"].mean(),
            **limits("seed", mean_interval(own)), **limits("document", documents_interval(results, base, group)),
            **limits("both", both_interval(perplexity_difference, results, base, group)),
        })  # fmt: skip
    return pd.DataFrame(found)


def elsewhere(results: Results, beside: pd.DataFrame | None, point: Mapping[str, object]) -> dict[str, float]:
    """Gains on the home text and by the second protocol, in percent of the frozen model's perplexity there, with their
    intervals over documents; nothing where nothing was measured."""
    found: dict[str, float] = {}
    for name, rows in () if beside is None or beside.empty else beside.groupby("beside", sort=False):
        frozen, own = rows[rows["method"] == "none"], rows[rows["method"] != "none"]
        for column, value in point.items():
            own = own[own[column] == value]
        if not len(own):
            continue
        size, arrays = weight(results, frozen), (nats(results, own), nats(results, frozen))
        ratio = over_documents(perplexity_ratio, arrays, size, RESAMPLES, SEED)
        percent = None if ratio is None else Interval(100 * (1 - ratio.high), 100 * (1 - ratio.low))
        value = 100 * (1 - float(perplexity_ratio(*arrays, size)))
        found |= {f"beside_{name}": value, **limits(f"beside_{name}", percent)}
    return found


def ratio(rows: pd.DataFrame) -> pd.Series:
    """Trained parameters of each row as a multiple of the adapter's at the same sites and b; nan where it is not."""
    own = rows[rows["method"] == "cayley"].drop_duplicates(["sites", "b"]).set_index(["sites", "b"])["parameters"]
    at = pd.MultiIndex.from_frame(rows[["sites", "b"]])
    return pd.Series(rows["parameters"].to_numpy() / own.reindex(at).to_numpy(float), rows.index)


# of a gain that is none: nothing has a share of it
NOTHING_KEPT = {"kept": math.nan, **limits("seed", None), **limits("document", None), **limits("both", None)}


def gain_kept(results: Results, base: pd.DataFrame, rows: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float]:
    """(nats frozen - nats of the rows) / (nats frozen - nats of the reference), means over seeds, with the intervals
    over seeds, each against the reference of its own, over documents, and over both. NOTHING_KEPT where the reference
    gains nothing."""
    frozen, own, best = (nats(results, each) for each in (base, rows, reference))
    if frozen.sum() <= best.sum():
        return NOTHING_KEPT
    size, level = weight(results, base), frozen.sum()
    by_seed = {row["seed"]: results.unit(row["key"], "nats").sum() for row in reference.to_dict("records")}
    each = [
        (level - results.unit(row["key"], "nats").sum()) / (level - by_seed[row["seed"]])
        for row in rows.to_dict("records") if row["seed"] in by_seed
    ]  # fmt: skip
    documents = over_documents(share_of_gain, (frozen, own, best), size, RESAMPLES, SEED)
    return {
        "kept": float(share_of_gain(frozen, own, best, size)), **limits("seed", mean_interval(each)),
        **limits("document", documents), **limits("both", both_interval(share_of_gain, results, base, rows, reference)),
    }  # fmt: skip


def interval_of(row: Mapping[str, float], prefix: str = "", size: float = 1.0) -> Interval:
    """Over seeds and documents together, times `size`: what a grade looks at; nan where there is none."""
    return Interval(size * row[f"{prefix}both_low"], size * row[f"{prefix}both_high"])


def text(results: Results, base: pd.DataFrame) -> pd.DataFrame:
    """What was measured: perplexity of the frozen model, documents and their effective number."""
    size = weight(results, base)
    return pd.DataFrame([{
        "base": base["perplexity"].iloc[0], "documents": len(size), "effective": effective_number(size),
        "tokens": int(base["tokens"].iloc[0]),
    }])  # fmt: skip
