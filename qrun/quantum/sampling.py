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
ROWS = 64  # circuits whose shots are drawn side by side
MASS, LEFT, COUNT, SURE, SHARE, PLACE, HEIGHT = (k * ROWS for k in range(7))  # their parts of one array
TRIALS, CHANCE, DRAWN, NEAR, BELOW, ODDS, BOUND = (k * ROWS for k in range(7))  # those of rows that are tested
FEW = 20  # shots below which every draw is by inversion


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
    table = _log_factorials(min(int(each.max(initial=1)), TABLE - 1).bit_length())
    _multinomial(p, each, np.uint64(key), first, table, out)
    return out.reshape(tokens, blocks, outcomes)


@cache
def _log_factorials(bits: int) -> NDArray[np.float64]:
    """log k! for k below 2^bits."""
    return np.array([math.lgamma(k + 1) for k in range(1 << bits)])


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


@njit(cache=True, error_model="numpy")
def _squeezed(work, states):  # type: ignore[no-untyped-def]
    """For ROWS draws of Binomial(left, share of the mass) at once: the count that the first pair of uniforms gives,
    whether `_binomial` takes it without another look, and the stream's state behind the pair. No branch and few arrays,
    so that LLVM makes a vector of the loop."""
    for i in range(ROWS):
        mass, n = work[MASS + i], work[LEFT + i]
        share = min(work[SHARE + i] / (mass if mass > 0.0 else 1.0), 1.0) if mass > 0.0 else 1.0
        chance = 1.0 - share if share > 0.5 else share
        spread = np.sqrt(n * chance * (1.0 - chance))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * chance
        state, u = _next(states[i])
        state, v = _next(state)
        u -= 0.5
        us = 0.5 - abs(u)
        k = np.floor((2 * a / us + b) * u + (n * chance + 0.5))
        work[COUNT + i] = n - k if share > 0.5 else k
        work[PLACE + i], work[HEIGHT + i] = us, v
        tried = 1.0 if n * chance >= 10.0 else 0.0
        sure = tried if us >= 0.07 else 0.5 * tried
        work[SURE + i] = sure if v <= 0.92 - 4.2 / b else 0.5 * tried
        states[ROWS + i] = state


@njit(cache=True, inline="always")
def _log(x):  # type: ignore[no-untyped-def]
    """log x to 2e-16, without a branch: 2 artanh((m - 1) / (m + 1)) of the mantissa m in (0.7, 1.42)."""
    bits = np.float64(x).view(np.int64)
    half = (bits - 0x3FE6A09E667F3BCD) >> 52  # powers of two from sqrt(1/2) on
    m = np.int64(bits - (half << 52)).view(np.float64)
    z = (m - 1.0) / (m + 1.0)
    w = z * z
    tail = 1 / 15 + w * (1 / 17 + w * (1 / 19 + w * (1 / 21)))
    tail = 1 / 5 + w * (1 / 7 + w * (1 / 9 + w * (1 / 11 + w * (1 / 13 + w * tail))))
    return half * 0.6931471805599453 + (2 * z + 2 * z * w * (1 / 3 + w * tail))


@njit(cache=True, error_model="numpy")
def _tested(work, dense, rows, table):  # type: ignore[no-untyped-def]
    """The other look, at rows that `_squeezed` was not sure of: SURE becomes 1 where the count is taken."""
    count = 0
    for i in range(ROWS):
        sure = work[SURE + i]
        rows[count] = i
        count += int(4 * sure * (1 - sure))  # no branch: nothing could predict it
    for i in range(count):
        row = rows[i] & (ROWS - 1)
        dense[TRIALS + i], dense[DRAWN + i] = work[LEFT + row], work[COUNT + row]
        dense[CHANCE + i], dense[ODDS + i] = work[SHARE + row], work[MASS + row]
        dense[NEAR + i], dense[BELOW + i] = work[PLACE + row], work[HEIGHT + row]
    for i in range(count):
        n, share, us = dense[TRIALS + i], min(dense[CHANCE + i] / dense[ODDS + i], 1.0), dense[NEAR + i]
        p = 1.0 - share if share > 0.5 else share
        spread = np.sqrt(n * p * (1.0 - p))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * p
        dense[DRAWN + i] = n - dense[DRAWN + i] if share > 0.5 else dense[DRAWN + i]
        dense[BELOW + i] = dense[BELOW + i] * ((2.83 + 5.1 / b) * spread) / (a / (us * us) + b)
        dense[CHANCE + i], dense[ODDS + i] = p, p / (1.0 - p)
    for i in range(count):
        n, k = dense[TRIALS + i], min(max(dense[DRAWN + i], 0.0), dense[TRIALS + i])
        mode = np.floor((n + 1) * dense[CHANCE + i])
        last = table.shape[0] - 1
        dense[BOUND + i] = (
            table[int(mode) & last] + table[int(n - mode) & last] - table[int(k) & last] - table[int(n - k) & last]
        )
        dense[NEAR + i] = k - mode
    for i in range(count):
        dense[BOUND + i] = dense[BOUND + i] + dense[NEAR + i] * _log(dense[ODDS + i]) - _log(dense[BELOW + i])
    for i in range(count):
        k = dense[DRAWN + i]
        there = 1.0 if k >= 0.0 else 0.5
        there = there if k <= dense[TRIALS + i] else 0.5
        work[SURE + rows[i]] = there if dense[BOUND + i] >= 0.0 else 0.5


@njit(cache=True, parallel=True, error_model="numpy")
def _multinomial(p, each, key, first, table, out):  # type: ignore[no-untyped-def]
    rows, outcomes = p.shape
    for chunk in prange(-(-rows // ROWS)):
        begin, most = chunk * ROWS, 0
        here = min(ROWS, rows - begin)
        states, work = np.zeros(2 * ROWS, np.uint64), np.zeros(7 * ROWS)
        dense, tested = np.zeros(7 * ROWS), np.zeros(ROWS + 1, np.int64)
        for i in range(here):
            # a row's stream starts where a hash of (key, number) says, so neighbours share nothing
            state, _ = _next(key ^ (first[begin + i] * np.uint64(0xD1342543DE82EF95)))
            z = (state ^ (state >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            states[i] = z ^ (z >> np.uint64(32))
            work[LEFT + i] = max(each[begin + i], 1)
            most = max(most, each[begin + i])
            for k in range(outcomes):
                work[MASS + i] += max(p[begin + i, k], 0.0)
        for k in range(outcomes - 1):
            for i in range(here):
                work[SHARE + i] = max(p[begin + i, k], 0.0)
            if most >= FEW:
                _squeezed(work, states)
                if most < table.shape[0]:
                    _tested(work, dense, tested, table)
            for i in range(here):
                share = work[SHARE + i]
                if work[SURE + i] == 1.0:
                    states[i], count = states[ROWS + i], work[COUNT + i]
                else:
                    if work[SURE + i] > 0.0 and most < table.shape[0]:
                        states[i] = states[ROWS + i]  # that pair is not taken
                    states[i], count = _drawn(share, work[MASS + i], int(work[LEFT + i]), states[i], table)
                out[begin + i, k] = count / max(each[begin + i], 1)
                work[LEFT + i] -= count
                work[MASS + i] -= share
        for i in range(here):
            out[begin + i, outcomes - 1] = work[LEFT + i] / max(each[begin + i], 1)


@njit(cache=True, error_model="numpy")
def _drawn(p, mass, left, state, table):  # type: ignore[no-untyped-def]
    """Binomial(left, p / mass) by itself; returns (state, count)."""
    if left <= 0 or p <= 0.0:
        return state, 0.0
    share = min(p / mass, 1.0) if mass > 0.0 else 1.0
    if share >= 1.0:
        return state, float(left)
    state, count = _binomial(left, min(share, 1.0 - share), state, table)
    return state, float(count if share <= 0.5 else left - count)
