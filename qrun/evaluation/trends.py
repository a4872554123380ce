"""Statistics over seeds: intervals of means, ordered trends, crossings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its stats are read when first used: they take half a second
from numpy.typing import NDArray

from qrun.evaluation.intervals import Floats, Interval

ENDS = math.log10(9)  # decades from 90 % to 10 % of a gain under a penalty proportional to the rate
POWERS = np.geomspace(0.02, 50, 160)  # between which an exponent is looked for


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
    """Exponent and factor of y = factor x^exponent, per row of y [seeds, x]: mean and t interval of the exponent over
    seeds, geometric mean of the factor; nan where a row has no `log_line`."""
    slopes, factors = log_line(x, y)
    low, high = mean_interval(slopes.tolist())
    return {
        "exponent": float(slopes.mean()), "exponent_low": low, "exponent_high": high,
        "factor": math.exp(float(factors.mean())),
    }  # fmt: skip


def log_line(x: Sequence[float], y: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Slope and intercept [...] of the least-squares line through the logarithms of y [..., x] over those of x, by the
    values above 0; nan where there are fewer than three."""
    some = y > 0
    count = np.where(some.sum(-1) > 2, some.sum(-1), np.nan)
    across, up = np.where(some, np.log(x), 0), np.log(np.where(some, y, 1))
    middle = across.sum(-1) / count
    apart = np.where(some, across - middle[..., None], 0)
    slope = (apart * up).sum(-1) / np.square(apart).sum(-1)
    return slope, up.sum(-1) / count - slope * middle


def sharpness(rates: Sequence[float], gains: NDArray[np.floating], quiet: Sequence[float]) -> dict[str, float]:
    """How sharply gains [seeds, rates] end: mean and t interval of the `widths` over seeds, and the exponent p of the
    mean: 1 for plain proportional damage, well above 2 for a sharp transition. nan where a seed has no width."""
    found = widths(rates, np.asarray(gains, float), np.asarray(quiet, float))
    low, high = mean_interval(found.tolist())
    width = float(found.mean())
    return {"width": width, "low": low, "high": high, "exponent": ENDS / width if width > 0 else math.nan}


def widths(rates: Sequence[float], gains: Floats, quiet: Floats) -> Floats:
    """Decades of the rate from 90 % to 10 % of each gain [..., rates]: log10(9) / p of the least-squares
    gain(r) = g (1 - (r / r_c)^p), with g [...] the gain without gate noise (`quiet`), over the points above -g, behind
    which damage saturates. nan where a curve does not pass through both levels inside the rates, or has fewer than
    three such points.

    For a given p the rest is a line through 0, so that only p is looked for: on a grid, then by Newton's method.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = gains / quiet[..., None]
        used = (share > -1).astype(float)
        ends = (quiet > 0) & (share[..., 0] > 0.9) & (share.min(-1) < 0.1) & (used.sum(-1) > 2)
        lost, logs = np.where(used > 0, 1 - share, 0), np.log(np.asarray(rates) / rates[-1])
        powers = np.exp(np.outer(logs, POWERS))
        at = np.square(lost @ powers) / (used @ np.square(powers))  # what of the squared losses a power explains
        start = p = POWERS[np.where(ends[..., None], at, 0).argmax(-1)]
        step = POWERS[1] / POWERS[0]
        for _ in range(6):
            power = used * np.exp(p[..., None] * logs)
            a0, a1, a2 = (lost * power @ logs**k for k in range(3))
            b0, b1, b2 = (np.square(power) @ logs**k for k in range(3))
            slope, bend = a1 / a0 - b1 / b0, a2 / a0 - (a1 / a0) ** 2 - 2 * (b2 / b0 - (b1 / b0) ** 2)
            p = np.clip(np.where(bend < 0, p - slope / bend, p), start / step, start * step)
        return np.where(ends, ENDS / p, np.nan)


def _log_crossing(rates: Sequence[float], row: NDArray[np.floating], level: float) -> float:
    """log of the rate where a row first falls below `level`; the row starts above it."""
    k = int(np.flatnonzero(row < level)[0])
    share = (row[k - 1] - level) / (row[k - 1] - row[k])
    return math.log(rates[k - 1]) + share * (math.log(rates[k]) - math.log(rates[k - 1]))
