"""Intervals for differences of perplexities.

Documents are the unit: tokens of one document are not independent. Both models are measured on the same documents, so
each resample draws documents once and evaluates both; the spread of document difficulty cancels in the difference.
With few effective documents a bootstrap interval is too narrow (ten real documents: 85 % for a nominal 95 %), so below
LEAST there is none.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
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
    """sum / sum of weights, and its standard error over documents (a ratio estimate's: Cochran 1977, 2.11)."""
    total, count = weight.sum(), len(weight)
    mean = float(sums.sum() / total)
    spread = np.square(sums - mean * weight).sum() * count / max(count - 1, 1)
    return mean, float(np.sqrt(spread) / total)


def units_needed(difference: float, deviation: float, power: float = 0.8) -> int:
    """Independent units at which a mean of that size is told from 0 at 95 % with that power: (z / d)^2."""
    z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(power)
    return int(np.ceil((z * deviation / difference) ** 2))


def perplexity_difference(a: Floats, b: Floats, weight: Floats, axis: int = -1) -> Floats:
    """exp(sum a / sum w) - exp(sum b / sum w) along an axis: nats a, b and token (or word) counts w per document."""
    total = weight.sum(axis)
    return np.exp(a.sum(axis) / total) - np.exp(b.sum(axis) / total)


def perplexity(a: Floats, weight: Floats, axis: int = -1) -> Floats:
    """exp(sum a / sum w)."""
    return np.exp(a.sum(axis) / weight.sum(axis))


def perplexity_ratio(a: Floats, b: Floats, weight: Floats, axis: int = -1) -> Floats:
    """PPL_a / PPL_b."""
    return np.exp((a.sum(axis) - b.sum(axis)) / weight.sum(axis))


def recovery(compressed: Floats, adapted: Floats, reference: Floats, weight: Floats, axis: int = -1) -> Floats:
    """(PPL_compressed - PPL_adapted) / (PPL_compressed - PPL_reference)."""
    total = weight.sum(axis)
    p, q, s = (np.exp(x.sum(axis) / total) for x in (compressed, adapted, reference))
    return (p - q) / (p - s)


def share_of_gain(base: Floats, measured: Floats, exact: Floats, weight: Floats, axis: int = -1) -> Floats:
    """(nats_base - nats_measured) / (nats_base - nats_exact), in nats; the weights, tokens of a document, cancel."""
    return (base.sum(axis) - measured.sum(axis)) / (base.sum(axis) - exact.sum(axis))


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


def over_seeds_and_documents(
    statistic: Callable[..., Floats], arrays: Sequence[Floats], weight: Floats, resamples: int, seed: int
) -> Interval | None:
    """Percentile interval of statistic(*arrays, weight) over seeds and documents drawn together (Owen and Eckles 2012,
    arXiv:1106.2125). An array is [documents], or [seeds, documents] and then averaged over the seeds drawn, the same
    for all such arrays. Of few seeds a bootstrap knows too little: what a draw of S seeds moves is widened by
    t(S - 1) / z * sqrt(S / (S - 1)), so that seeds alone give about Student's interval. None below two seeds and below
    LEAST effective documents."""
    many = {len(array) for array in arrays if array.ndim == 2}
    if len(many) != 1 or (count := many.pop()) < 2 or effective_number(weight) < LEAST:
        return None
    seeds, drawn = _draws(count, len(weight), resamples, seed)
    widened = scipy.stats.t.ppf(0.975, count - 1) / scipy.stats.norm.ppf(0.975) * np.sqrt(count / (count - 1))
    shares = 1 / count + widened * (seeds - 1 / count)
    rows = [np.atleast_2d(array) for array in (*arrays, np.asarray(weight, float))]
    products = drawn @ np.concatenate(rows).T  # [resamples, rows]: the draws are read once
    parts = np.split(products, np.cumsum([len(each) for each in rows])[:-1], axis=1)
    # every statistic is one of sums over documents, so that it takes [resamples, 1] as it takes [documents]
    sums = ((shares * part).sum(1, keepdims=True) if part.shape[1] == count else part for part in parts)
    found = statistic(*sums)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high)) if np.isfinite([low, high]).all() else None


@lru_cache(maxsize=2)
def _draws(count: int, size: int, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Shares of each seed [resamples, count], and how often each document was drawn [resamples, size]: the same for all
    intervals of a page, and for all of its fits, which are fewer."""
    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(count, np.full(count, 1 / count), resamples) / count
    return seeds, rng.multinomial(size, np.full(size, 1 / size), resamples).astype(float)


def paired_interval(a: Floats, b: Floats, weight: NDArray[np.number], resamples: int, seed: int) -> Interval | None:
    """Of the perplexity difference over paired documents."""
    return over_documents(perplexity_difference, (a, b), weight.astype(float), resamples, seed)
