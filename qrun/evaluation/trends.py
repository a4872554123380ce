"""Statistics over seeds: intervals of means, ordered trends, crossings, power laws, lines through several groups."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its stats are read when first used: they take half a second
from numpy.typing import NDArray

from qrun.evaluation.intervals import Floats, Interval

ENDS = math.log10(9)  # decades from 90 % to 10 % of a gain under a penalty proportional to the rate
FISHER = 40  # steps of Fisher's scoring
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


def crossings(rates: Sequence[float], gains: NDArray[np.floating]) -> Floats:
    """Rate [...] at which gains [..., rates] first fall below zero, on the straight line between neighbours, which is
    exact for damage in proportion to the rate; 0 where the first is below, infinity where none is."""
    at, below = np.asarray(rates, float), gains < 0
    k = np.maximum(below.argmax(-1), min(1, len(at) - 1))  # of one rate there is no neighbour, and no crossing
    before, behind = (np.take_along_axis(gains, i[..., None], -1)[..., 0] for i in (k - 1, k))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = at[k - 1] + (at[k] - at[k - 1]) * before / (before - behind)
    return np.where(below.any(-1), np.where(below[..., 0], 0.0, found), np.inf)


def zero_crossing(rates: Sequence[float], gains: NDArray[np.floating]) -> dict[str, Any]:
    """Rate at which gains [rates] first fall below zero. Where they do not, or begin there, there is no crossing to
    quote: `side` then says on which side of `bound` it lies."""
    rate = float(crossings(rates, gains))
    if 0 < rate < math.inf:
        return {"rate": rate, "side": "", "bound": math.nan}
    side, bound = ("above", rates[-1]) if rate else ("below", rates[0])
    return {"rate": math.nan, "side": side, "bound": bound}


def power_law(x: Sequence[float], y: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Exponent and factor [...] of y = factor x^exponent, y [..., x]: the quasi-likelihood whose variance is in
    proportion to the mean (Wedderburn 1974). So values at 0 and below count as they are, and small ones do not outweigh
    large ones as they do in a line through logarithms. nan where there is no such law, as below 0 on the whole."""
    logs, y = np.log(np.asarray(x, float)), np.asarray(y, float)
    with np.errstate(all="ignore"):
        slope, level = np.ones(y.shape[:-1]), np.log(y.sum(-1) / np.sum(x))
        for _ in range(FISHER):
            mean = np.exp(level[..., None] + slope[..., None] * logs)
            s0, s1, s2 = (mean @ logs**k for k in range(3))
            g0, g1 = ((y - mean) @ logs**k for k in range(2))
            whole = s0 * s2 - s1 * s1
            steps = (s2 * g0 - s1 * g1) / whole, (s0 * g1 - s1 * g0) / whole
            level, slope = level + np.clip(steps[0], -0.5, 0.5), slope + np.clip(steps[1], -0.5, 0.5)
        settled = np.abs(steps[1]) < 1e-8
    return np.where(settled, slope, np.nan), np.where(settled, np.exp(level), np.nan)


class Line(NamedTuple):
    """A slope that all groups share, and what the line says of one further observation of one of them."""

    slope: float
    slope_interval: Interval
    value: float
    interval: Interval  # of a new observation, not of the line
    freedom: int


def common_line(x: Sequence[float], groups: Sequence[str], y: Sequence[float], at: float, group: str) -> Line | None:
    """Least squares of y = a_group + s x, and its prediction for `group` at x = `at`, with 95 % intervals by Student's
    t over points - groups - 1 degrees of freedom; intervals are nan where none is left. None where the group has no
    point, or no group has two x."""
    names = list(dict.fromkeys(groups))
    spans = [np.ptp([v for v, own in zip(x, groups, strict=True) if own == name]) for name in names]
    if group not in names or max(spans) == 0:
        return None
    design = np.array([[*(float(own == name) for name in names), v] for v, own in zip(x, groups, strict=True)])
    point = np.array([*(float(group == name) for name in names), at])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ np.asarray(y, float)
    freedom = len(design) - len(found)
    value, slope, reach = float(point @ found), float(found[-1]), np.array([math.nan, math.nan])
    if freedom > 0:
        variance = float(np.square(design @ found - y).sum()) / freedom
        errors = np.array([inverse[-1, -1], 1 + point @ inverse @ point])
        reach = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance * errors)
    about = [Interval(middle - float(r), middle + float(r)) for middle, r in zip((slope, value), reach, strict=True)]
    return Line(slope, about[0], value, about[1], freedom)


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
