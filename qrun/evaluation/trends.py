"""Statistics over seeds: intervals of means, ordered trends, crossings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its stats are read when first used: they take half a second
from numpy.typing import NDArray
from scipy.optimize import least_squares

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


def power_law(x: Sequence[float], y: NDArray[np.floating]) -> dict[str, float]:
    """Exponent and factor of y = factor x^exponent: a straight line through logarithms, per row of y [seeds, x] over
    its values above 0; mean and t interval of the exponent over seeds, geometric mean of the factor. nan where a row
    has fewer than three such values."""
    lines = []
    for row in np.asarray(y, float):
        some = row > 0
        fitted = scipy.stats.linregress(np.log(np.asarray(x)[some]), np.log(row[some])) if some.sum() > 2 else None
        lines.append((fitted.slope, fitted.intercept) if fitted else (math.nan, math.nan))
    slopes, factors = zip(*lines, strict=True)
    low, high = mean_interval(slopes)
    return {
        "exponent": float(np.mean(slopes)), "exponent_low": low, "exponent_high": high,
        "factor": math.exp(float(np.mean(factors))),
    }  # fmt: skip


def sharpness(rates: Sequence[float], gains: NDArray[np.floating], quiet: Sequence[float]) -> dict[str, float]:
    """How sharply gains [seeds, rates] end: per seed gain(r) = g (1 - (r / r_c)^p), with g the gain without gate noise
    (`quiet`), by least squares over the points above -g, behind which damage saturates.

    `exponent` p is 1 for plain proportional damage, well above 2 for a sharp transition; `width` = log10(9) / p is the
    decades of the rate from 90 % to 10 % of the gain, mean and t interval over seeds. nan where a seed's curve does not
    pass through both levels inside the rates.
    """
    exponents = []
    for row, level in zip(np.asarray(gains, float), quiet, strict=True):
        if level > 0 and row[0] > 0.9 * level and row.min() < 0.1 * level:
            exponents.append(_exponent(np.asarray(rates)[row > -level], row[row > -level] / level))
        else:
            exponents.append(math.nan)
    widths = [math.log10(9) / p for p in exponents]
    low, high = mean_interval(widths)
    width = float(np.mean(widths))
    return {"width": width, "low": low, "high": high, "exponent": math.log10(9) / width if width > 0 else math.nan}


def _exponent(rates: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """p of share = 1 - (rate / r_c)^p; nan where the points do not say."""
    half = math.exp(_log_crossing(rates.tolist(), share, 0.5)) if (share < 0.5).any() else float(rates[-1])

    def miss(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 - np.exp(np.clip(np.exp(x[1]) * (np.log(rates) - x[0]), -700, 50)) - share

    found = least_squares(miss, [math.log(2 * half), 0.0])
    return float(np.exp(found.x[1])) if found.success and len(rates) > 2 else math.nan


def _log_crossing(rates: Sequence[float], row: NDArray[np.floating], level: float) -> float:
    """log of the rate where a row first falls below `level`; the row starts above it."""
    k = int(np.flatnonzero(row < level)[0])
    share = (row[k - 1] - level) / (row[k - 1] - row[k])
    return math.log(rates[k - 1]) + share * (math.log(rates[k]) - math.log(rates[k - 1]))
