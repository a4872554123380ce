"""Shots: multinomial counts from probabilities, the same bits for any batch split and any number of threads.

Each circuit draws from its own counter-based stream (splitmix64, Steele et al. 2014), keyed by seed, stream and the
circuit's number. A multinomial is a chain of binomials, each by inversion or by transformed rejection (BTRS, Hoermann
1993): exact distributions, no normal approximation.
"""

import hashlib
import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qrun.errors import RunFailed

TABLE = 2**17  # factorials that are looked up


def stream_key(seed: int, name: str) -> int:
    """63-bit key of one stream of shots, for example of one site."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


Shots = int | NDArray[np.int64]


def sample(probabilities: NDArray[Any], shots: Shots, key: int, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Frequencies counts / shots of probabilities [N, B, b], same dtype and shape; shots of all, or [N, B]. `numbers`
    [N]: row n, block j is circuit numbers[n] B + j of the stream. Raises RunFailed for probabilities that are not
    finite."""
    if not np.isfinite(probabilities).all():
        raise RunFailed("a circuit's outcome probabilities are not finite; no shots are drawn from them")
    tokens, blocks, outcomes = probabilities.shape
    p = np.ascontiguousarray(probabilities).reshape(-1, outcomes)
    first = (np.asarray(numbers, np.uint64)[:, None] * np.uint64(blocks) + np.arange(blocks, dtype=np.uint64)).ravel()
    out = np.empty_like(p)
    each = np.broadcast_to(np.asarray(shots, np.int64), (tokens, blocks)).ravel()
    _multinomial(p, each, np.uint64(key), first, _log_factorials(min(int(each.max(initial=1)), TABLE)), out)
    return out.reshape(tokens, blocks, outcomes)


@cache
def _log_factorials(most: int) -> NDArray[np.float64]:
    """log k! for k = 0 .. most."""
    return np.array([math.lgamma(k + 1) for k in range(most + 1)])


@njit(cache=True, inline="always")
def _next(state):  # type: ignore[no-untyped-def]
    """Advance a stream; returns (state, uniform in (0, 1))."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, (np.float64(z >> np.uint64(11)) + 0.5) * 2.0**-53


@njit(cache=True, inline="always")
def _log_factorial(k, table):  # type: ignore[no-untyped-def]
    return table[int(k)] if k < table.shape[0] else math.lgamma(k + 1)


@njit(cache=True)
def _binomial(n, p, state, table):  # type: ignore[no-untyped-def]
    """One draw of Binomial(n, p) for 0 < p <= 1/2; returns (state, k)."""
    q = 1.0 - p
    if n * p < 10.0:
        ratio, mass = p / q, math.exp(n * math.log1p(-p))
        state, u = _next(state)
        k = 0
        while u > mass and k < n:
            u -= mass
            k += 1
            mass *= ratio * (n - k + 1) / k
        return state, k
    spread = math.sqrt(n * p * q)
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    centre, limit, alpha, mode = n * p + 0.5, 0.92 - 4.2 / b, (2.83 + 5.1 / b) * spread, math.floor((n + 1) * p)
    while True:
        state, u = _next(state)
        state, v = _next(state)
        u -= 0.5
        us = 0.5 - abs(u)
        k = math.floor((2 * a / us + b) * u + centre)
        if us >= 0.07 and v <= limit:
            return state, int(k)
        if k < 0 or k > n:
            continue
        v = math.log(v * alpha / (a / (us * us) + b))
        bound = (
            _log_factorial(mode, table)
            + _log_factorial(n - mode, table)
            - _log_factorial(k, table)
            - _log_factorial(n - k, table)
            + (k - mode) * math.log(p / q)
        )
        if v <= bound:
            return state, int(k)


@njit(cache=True, parallel=True)
def _multinomial(p, each, key, first, table, out):  # type: ignore[no-untyped-def]
    rows, outcomes = p.shape
    for row in prange(rows):
        # a row's stream starts where a hash of (key, number) says, so neighbours share nothing
        state, _ = _next(key ^ (first[row] * np.uint64(0xD1342543DE82EF95)))
        z = (state ^ (state >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        state = z ^ (z >> np.uint64(32))
        mass = 0.0
        for k in range(outcomes):
            mass += max(p[row, k], 0.0)
        left = shots = max(each[row], 1)
        for k in range(outcomes - 1):
            here = max(p[row, k], 0.0)
            count = 0
            if left > 0 and here > 0.0:
                share = min(here / mass, 1.0) if mass > 0.0 else 1.0
                if share >= 1.0:
                    count = left
                elif share <= 0.5:
                    state, count = _binomial(left, share, state, table)
                else:
                    state, count = _binomial(left, 1.0 - share, state, table)
                    count = left - count
            out[row, k] = count / shots
            left -= count
            mass -= here
        out[row, outcomes - 1] = left / shots
