"""Statistics over seeds: intervals of means, ordered trends, crossings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student-t interval of the mean over seeds; (nan, nan) for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def monotone_trend(table: Sequence[Sequence[float]]) -> dict[str, float]:
    """Page's test (1963) that values fall from column to column, rows (seeds) as blocks: p value, and rises between neighbouring column means."""
    data = np.asarray(table, float)
    violations = float((np.diff(data.mean(0)) > 0).sum())
    if data.shape[0] < 2 or data.shape[1] < 3:
        return {"p": math.nan, "violations": violations}
    return {"p": float(stats.page_trend_test(-data).pvalue), "violations": violations}


def zero_crossing(rates: Sequence[float], gains: NDArray[np.floating]) -> dict[str, Any]:
    """Rate at which gains [seeds, rates] first fall below zero, log-linear between neighbours; geometric mean and t interval over seeds.

    Where some seed's gain is negative at the smallest rate or still positive at the largest, there is no crossing to quote: `side` then says on which
    side of `bound` it lies.
    """
    logs = []
    for row in np.asarray(gains, float):
        falling = np.flatnonzero(row < 0)
        if len(falling) == 0:
            return {"rate": math.nan, "low": math.nan, "high": math.nan, "side": "above", "bound": rates[-1]}
        k = int(falling[0])
        if k == 0:
            return {"rate": math.nan, "low": math.nan, "high": math.nan, "side": "below", "bound": rates[0]}
        share = row[k - 1] / (row[k - 1] - row[k])
        logs.append(math.log(rates[k - 1]) + share * (math.log(rates[k]) - math.log(rates[k - 1])))
    low, high = mean_interval(logs)
    return {"rate": math.exp(float(np.mean(logs))), "low": math.exp(low), "high": math.exp(high), "side": "", "bound": math.nan}
