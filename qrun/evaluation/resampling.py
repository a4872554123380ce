"""What studies make of the nats per document that cells recorded: ratios, and intervals over seeds and documents.

No cell computes with it, so a change here makes no finished cell unknown (cells/keys.py).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import scipy  # its stats are read when first used: they take half a second

from qrun.evaluation.intervals import LEAST, Floats, Interval, effective_number


def units_needed(difference: float, deviation: float, power: float = 0.8) -> int:
    """Independent units at which a mean of that size is told from 0 at 95 % with that power: (z / d)^2."""
    z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(power)
    return int(np.ceil((z * deviation / difference) ** 2))


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
