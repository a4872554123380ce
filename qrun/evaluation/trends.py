"""Statistics over seeds: intervals of means, ordered trends, crossings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its stats are read when first used: they take half a second
from numpy.typing import NDArray

from qrun.evaluation.intervals import Interval


def mean_interval(values: Sequence[float]) -> Interval:
    """Student-t 95 % interval of the mean over seeds; nan limits for fewer than two, which contain nothing."""
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    mean, error = float(np.mean(values)), float(scipy.stats.sem(values))
    if error == 0:
        return Interval(mean, mean)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return Interval(float(low), float(high))


def monotone_trend(table: Sequence[Sequence[float]]) -> dict[str, float]:
    """Page's test (1963) that values fall from column to column, rows (seeds) as blocks. P value, and rises between
    neighbouring column means."""
    data = np.asarray(table, float)
    violations = float((np.diff(data.mean(0)) > 0).sum())
    if data.shape[0] < 2 or data.shape[1] < 3:
        return {"p": math.nan, "violations": violations}
    return {"p": float(scipy.stats.page_trend_test(-data).pvalue), "violations": violations}


def zero_crossing(rates: Sequence[float], gains: NDArray[np.floating]) -> dict[str, Any]:
    """Rate at which gains [seeds, rates] first fall below zero, log-linear between neighbours; geometric mean and t
    interval over seeds. Where some seed's gain is negative at the smallest rate or still positive at the largest, there
    is no crossing to quote: `side` then says on which side of `bound` it lies."""
    logs = []
    for row in np.asarray(gains, float):
        falling = np.flatnonzero(row < 0)
        if len(falling) == 0:
            return {"rate": math.nan, "low": math.nan, "high": math.nan, "side": "above", "bound": rates[-1]}
        if falling[0] == 0:
            return {"rate": math.nan, "low": math.nan, "high": math.nan, "side": "below", "bound": rates[0]}
        logs.append(_log_crossing(rates, row, 0.0))
    rate, low, high = (math.exp(value) for value in (float(np.mean(logs)), *mean_interval(logs)))
    return {"rate": rate, "low": low, "high": high, "side": "", "bound": math.nan}


def sharpness(rates: Sequence[float], gains: NDArray[np.floating], quiet: Sequence[float]) -> dict[str, float]:
    """How sharply gains [seeds, rates] end, from 90 % to 10 % of the gain without gate noise (`quiet`, per seed).

    `width` is in decades of the rate. If the penalty grows as rate^p the width is log10(9)/p, so `exponent` =
    0.954/width: 1 is plain proportional damage, a sharp transition has p well above 2. nan where a seed's curve
    does not pass through both levels inside the rates.
    """
    widths = []
    for row, level in zip(np.asarray(gains, float), quiet, strict=True):
        edges = [math.nan, math.nan]
        if level > 0 and row[0] > 0.9 * level and row[-1] < 0.1 * level:
            edges = [_log_crossing(rates, row, share * level) for share in (0.9, 0.1)]
        widths.append((edges[1] - edges[0]) / math.log(10))
    low, high = mean_interval(widths)
    width = float(np.mean(widths))
    return {"width": width, "low": low, "high": high, "exponent": math.log10(9) / width if width > 0 else math.nan}


def _log_crossing(rates: Sequence[float], row: NDArray[np.floating], level: float) -> float:
    """log of the rate where a row first falls below `level`; the row starts above it."""
    k = int(np.flatnonzero(row < level)[0])
    share = (row[k - 1] - level) / (row[k - 1] - row[k])
    return math.log(rates[k - 1]) + share * (math.log(rates[k]) - math.log(rates[k - 1]))
