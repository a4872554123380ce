"""Intervals for differences of perplexities.

Documents are the unit: tokens of one document are not independent. Both models are measured on the same documents, so
each resample draws documents once and evaluates both; the spread of document difficulty cancels in the difference.
With few effective documents a bootstrap interval is too narrow (ten real documents: 85 % for a nominal 95 %), so below
LEAST there is none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its stats are read when first used: they take half a second
from numpy.typing import NDArray

LEAST = 20.0  # effective documents behind an interval
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    def words(self, form: str = "+.3f") -> str:
        """`[+0.100, +0.200]`."""
        return f"[{self.low:{form}}, {self.high:{form}}]"


def effective_number(weight: Sequence[float] | NDArray[np.number]) -> float:
    """Kish's effective number of units, (sum w)^2 / sum w^2: as many equal units would carry the same information."""
    w = np.asarray(weight, float)
    return float(w.sum() ** 2 / np.square(w).sum())


def mean_error(sums: Floats, weight: Floats) -> tuple[float, float]:
    """sum / sum of weights, and its standard error over documents (a ratio estimate's: Cochran 1977, 2.11); nan of one
    document."""
    total, count = weight.sum(), len(weight)
    mean = float(sums.sum() / total)
    if count < 2:
        return mean, np.nan
    spread = np.square(sums - mean * weight).sum() * count / (count - 1)
    return mean, float(np.sqrt(spread) / total)


def perplexity_difference(a: Floats, b: Floats, weight: Floats, axis: int = -1) -> Floats:
    """exp(sum a / sum w) - exp(sum b / sum w) along an axis: nats a, b and token (or word) counts w per document."""
    total = weight.sum(axis)
    return np.exp(a.sum(axis) / total) - np.exp(b.sum(axis) / total)


def perplexity(a: Floats, weight: Floats, axis: int = -1) -> Floats:
    """exp(sum a / sum w)."""
    return np.exp(a.sum(axis) / weight.sum(axis))


def over_documents(
    statistic: Callable[..., Floats], arrays: Sequence[Floats], weight: Floats, resamples: int, seed: int
) -> Interval | None:
    """BCa bootstrap interval (Efron 1987) of statistic(*arrays, weight) over paired documents. None below LEAST
    effective documents and where the bootstrap degenerates; of zero width where the first two arrays are equal, where
    BCa is undefined."""
    if len(weight) < 2 or effective_number(weight) < LEAST:
        return None
    if len(arrays) > 1 and np.array_equal(arrays[0], arrays[1]):
        value = float(statistic(*arrays, weight))
        return Interval(value, value)
    result = scipy.stats.bootstrap(
        (*arrays, np.asarray(weight, float)), statistic, paired=True, vectorized=True, n_resamples=resamples,
        method="BCa", rng=np.random.default_rng(seed), batch=max(1, 2**22 // len(weight)),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(float(low), float(high)) if np.isfinite([low, high]).all() else None


def paired_interval(a: Floats, b: Floats, weight: NDArray[np.number], resamples: int, seed: int) -> Interval | None:
    """Of the perplexity difference over paired documents."""
    return over_documents(perplexity_difference, (a, b), weight.astype(float), resamples, seed)
