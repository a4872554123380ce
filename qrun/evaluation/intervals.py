"""Intervals for differences of perplexities.

Documents are the unit: tokens of one document are not independent. Both models are measured on the same documents, so
each resample draws documents once and evaluates both; the spread of document difficulty cancels in the difference.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Floats = NDArray[np.float64]


def perplexity_difference(a: Floats, b: Floats, weight: Floats, axis: int = -1) -> Floats:
    """exp(sum a / sum weight) - exp(sum b / sum weight) along an axis.

    Nats a, b and token (or word) counts per document.
    """
    total = weight.sum(axis)
    return np.exp(a.sum(axis) / total) - np.exp(b.sum(axis) / total)


def paired_interval(
    a: Floats, b: Floats, weight: NDArray[np.integer], resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """BCa bootstrap interval (Efron 1987) of the perplexity difference over paired units.

    (nan, nan) where there are fewer than two units; (0, 0) for identical measurements, where BCa is undefined.
    """
    if len(a) < 2:
        return float("nan"), float("nan")
    if np.array_equal(a, b):
        return 0.0, 0.0
    result = bootstrap(
        (a, b, weight.astype(float)), perplexity_difference, paired=True, vectorized=True,
        n_resamples=resamples, confidence_level=level,
        method="BCa", rng=np.random.default_rng(seed), batch=max(1, 2**22 // len(a)),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def recovery_interval(
    compressed: Floats, adapted: Floats, reference: Floats, weight: Floats, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Recovery (PPL_c - PPL_a) / (PPL_c - PPL_r) and its 95 % BCa interval over paired documents.

    Nan limits for fewer than two.
    """

    def recovery(c: Floats, a: Floats, r: Floats, w: Floats, axis: int = -1) -> Floats:
        total = w.sum(axis)
        p, q, s = (np.exp(x.sum(axis) / total) for x in (c, a, r))
        return (p - q) / (p - s)

    arrays = (compressed, adapted, reference, weight.astype(float))
    value = float(recovery(*arrays))
    if len(weight) < 2 or np.array_equal(compressed, adapted):
        return value, float("nan"), float("nan")
    result = bootstrap(
        arrays,
        recovery,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
        batch=max(1, 2**22 // len(weight)),
    )
    return value, float(result.confidence_interval.low), float(result.confidence_interval.high)
