"""From counts to Q x: what calibration takes out of frequencies, and where signs come from.

    frequencies f [N, B, b] of a setting -> calibrated probabilities p -> magnitudes |x| sqrt(p) -> signs

Calibration. A block's circuit is taken to have one depolarising rate and its qubits independent readout errors,

    f = M ((1 - l) p + l / b),        M = M_n x ... x M_1,  M_i = [[1 - e0, e1], [e0, 1 - e1]]

so p = (M^-1 f - l / b) / (1 - l), projected on the simplex (the nearest distribution). `Rates` holds M_i^-1 and 1 - l;
they come from circuits that are counted beside the data: all |0> and all |1> per place for M, known slices per block
for l. This is linear and knows nothing of x.

Signs. Counts carry none. `two_settings` counts again after RY(pi/2) on every qubit (R), half the shots each, and takes
the signs s that explain the second setting best, s = argmax sum_k |R (s o sqrt p)|_k sqrt(p'_k), which is least squares
since all norms are 1; one sign per slice, the global one, is that of <s o sqrt p, x>. Up to b = 8 every pattern is
tried in Gray-code order; beyond, single and double flips from the signs of x until none is better.

`soft` and `posterior` lean on x: what they keep of a gain is in part what x knew already, and the second falls back on
the frozen model as noise grows. y_i = m tanh(x_i m / s^2); and the mean of y_i under y_i ~ N(x_i, s^2) and
m ~ N(|y_i|, v), with s^2 = |Q - 1|^2 / b^2 and v = 1 / (4 shots (1 - l)^2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Floats = NDArray[np.floating]
LEAST_KEPT = 0.02  # 1 - l below which a circuit tells nothing
SMALL = 8  # block dimension up to which every pattern of signs is tried
SLICES = 8  # known slices a block, for its depolarising rate


@dataclass(frozen=True)
class Rates:
    """What calibration knows of B blocks in one setting."""

    inverse: NDArray[np.float64]  # [B, n, 2, 2], per bit of a slice's index
    kept: NDArray[np.float64]  # [B], 1 - depolarising rate of the circuit


@cache
def rotation(qubits: int) -> NDArray[np.float64]:
    """R [b, b]: RY(pi/2) on every qubit, the last layer of the second setting."""
    total = np.ones((1, 1))
    for _ in range(qubits):
        total = np.kron(np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2), total)
    return total


@cache
def known_slices(blocks: int, dim: int) -> NDArray[np.float64]:
    """Unit slices [SLICES, B, b] whose outcomes are known, always the same."""
    slices = np.random.default_rng(0).normal(size=(SLICES, blocks, dim))
    return np.asarray(slices / np.linalg.norm(slices, axis=-1, keepdims=True))


def fitted(frequencies: Floats, expected: Floats, inverse: NDArray[np.float64]) -> Rates:
    """Rates from the counts [S, B, b] of known slices and their probabilities without noise, by least squares."""
    read = np.array(frequencies, np.float64)
    _unread(read.reshape(-1, read.shape[-1]), inverse, read.shape[1])
    uniform = 1 / read.shape[-1]
    ideal = expected - uniform
    kept = (ideal * (read - uniform)).sum((0, 2)) / np.square(ideal).sum((0, 2))
    return Rates(inverse, np.clip(kept, LEAST_KEPT, 1.0))


def inverse_confusion(confusion: Floats) -> NDArray[np.float64]:
    """Inverses of readout matrices [..., 2, 2], columns true and rows read. Errors of a half and more cannot be undone;
    they are left in."""
    determinant = confusion[..., 0, 0] - confusion[..., 0, 1]
    usable = np.where((determinant > LEAST_KEPT)[..., None, None], confusion, np.eye(2))
    return np.linalg.inv(usable)


def magnitudes(frequencies: Floats, rates: Rates | None) -> Floats:
    """sqrt of calibrated probabilities [N, B, b]; of the frequencies as they are without rates."""
    if rates is None:
        return np.sqrt(np.maximum(frequencies, 0))
    out = np.ascontiguousarray(frequencies).copy()
    flat, kept = out.reshape(-1, out.shape[-1]), rates.kept.astype(out.dtype)
    _magnitudes(flat, rates.inverse.astype(out.dtype), kept, out.shape[1])
    return out


def with_signs(size: Floats, reference: Floats) -> Floats:
    """Magnitudes with the signs of a reference; sign(0) = +1."""
    return np.where(reference < 0, -size, size)


def from_two_settings(size: Floats, turned: Floats, units: Floats) -> Floats:
    """Magnitudes [N, B, b] with the signs that explain those of the second setting."""
    dim = size.shape[-1]
    out = np.empty_like(size)
    found = rotation(dim.bit_length() - 1).astype(size.dtype)
    size, turned, units = (np.ascontiguousarray(a, size.dtype).reshape(-1, dim) for a in (size, turned, units))
    (_every_pattern if dim <= SMALL else _best_flips)(size, turned, units, found, out.reshape(-1, dim))
    return out


def spread(blocks: Floats) -> NDArray[np.float64]:
    """s [B, 1]: how far a block moves an entry of a unit slice, root mean square."""
    moved = np.square(blocks - np.eye(blocks.shape[-1])).sum((1, 2))
    return np.sqrt(np.maximum(moved, 1e-12))[:, None] / blocks.shape[-1]


def soft(size: Floats, units: Floats, sigma: Floats) -> Floats:
    """m tanh(x m / s^2)."""
    return size * np.tanh(np.clip(units * size / sigma**2, -30, 30))


def posterior(size: Floats, units: Floats, sigma: Floats, variance: Floats) -> Floats:
    """Mean of y under y ~ N(x, s^2) and m ~ N(|y|, v): two modes, one for each sign."""
    total = sigma**2 + variance
    plus = 0.5 * (1 + np.tanh(np.clip(size * units / total, -30, 30)))
    mean = (units * variance + np.stack([size, -size]) * sigma**2) / total
    return plus * mean[0] + (1 - plus) * mean[1]


def combined(rates: Sequence[Rates | None]) -> dict[str, float]:
    """Means over blocks, for a record."""
    known = [rate.kept for rate in rates if rate is not None]
    return {"kept": float(np.mean(np.concatenate(known)))} if known else {}


@njit(cache=True)
def _unread_row(row, inverse):  # type: ignore[no-untyped-def]
    """M^-1 row, in place."""
    for bit in range(inverse.shape[0]):
        stride = 1 << bit
        a, b, c, d = inverse[bit, 0, 0], inverse[bit, 0, 1], inverse[bit, 1, 0], inverse[bit, 1, 1]
        for k in range(row.shape[0]):
            if not k & stride:
                low, high = row[k], row[k | stride]
                row[k], row[k | stride] = a * low + b * high, c * low + d * high


@njit(cache=True)
def _unread(rows, inverse, blocks):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        _unread_row(rows[i], inverse[i % blocks])


@njit(cache=True, parallel=True)
def _magnitudes(rows, inverse, kept, blocks):  # type: ignore[no-untyped-def]
    """Calibrated, projected on the simplex (Michelot's method) and rooted, in place."""
    dim = rows.shape[1]
    for i in prange(rows.shape[0]):
        row, j = rows[i], i % blocks
        _unread_row(row, inverse[j])
        uniform = (1 - kept[j]) / dim
        for k in range(dim):
            row[k] = (row[k] - uniform) / kept[j]
        left, total = dim, row.dtype.type(0)
        for k in range(dim):
            total += row[k]
        while True:
            shift, before = (total - 1) / left, left
            left, total = 0, row.dtype.type(0)
            for k in range(dim):
                if row[k] > shift:
                    left += 1
                    total += row[k]
            if left >= before:  # exactly, it only falls; rounding may let it swing
                break
        for k in range(dim):
            row[k] = np.sqrt(max(row[k] - shift, row.dtype.type(0)))


@njit(cache=True, inline="always")
def _agreement(image, turned):  # type: ignore[no-untyped-def]
    total = image.dtype.type(0)
    for k in range(image.shape[0]):
        total += abs(image[k]) * turned[k]
    return total


@njit(cache=True, inline="always")
def _write(size, signs, x, out):  # type: ignore[no-untyped-def]
    """Signed magnitudes, with the global sign of <., x>."""
    overlap = size.dtype.type(0)
    for k in range(size.shape[0]):
        out[k] = size[k] if signs[k] > 0 else -size[k]
        overlap += out[k] * x[k]
    if overlap < 0:
        for k in range(size.shape[0]):
            out[k] = -out[k]


@njit(cache=True, parallel=True)
def _every_pattern(size, turned, x, r, out):  # type: ignore[no-untyped-def]
    rows, dim = size.shape
    for i in prange(rows):
        image = np.zeros(dim, size.dtype)
        for k in range(dim):
            for a in range(dim):
                image[k] += r[k, a] * size[i, a]
        pattern, best, chosen = 0, _agreement(image, turned[i]), 0
        for step in range(1, 1 << (dim - 1)):
            flip = 0
            while not step >> flip & 1:
                flip += 1
            pattern ^= 1 << flip
            change = (-2 if pattern >> flip & 1 else 2) * size[i, flip]
            for k in range(dim):
                image[k] += change * r[k, flip]
            found = _agreement(image, turned[i])
            if found > best:
                best, chosen = found, pattern
        signs = np.ones(dim, np.int8)
        for k in range(dim):
            if chosen >> k & 1:
                signs[k] = -1
        _write(size[i], signs, x[i], out[i])


@njit(cache=True, parallel=True)
def _best_flips(size, turned, x, r, out):  # type: ignore[no-untyped-def]
    rows, dim = size.shape
    for i in prange(rows):
        signs, image, trial = np.ones(dim, np.int8), np.zeros(dim, size.dtype), np.zeros(dim, size.dtype)
        for a in range(dim):
            if x[i, a] < 0:
                signs[a] = -1
            for k in range(dim):
                image[k] += signs[a] * size[i, a] * r[k, a]
        best = _agreement(image, turned[i])
        while True:
            first, second = -1, -1
            for a in range(dim):
                for b in range(a, dim):  # b = a flips a alone
                    for k in range(dim):
                        trial[k] = image[k] - 2 * signs[a] * size[i, a] * r[k, a]
                        if b > a:
                            trial[k] -= 2 * signs[b] * size[i, b] * r[k, b]
                    found = _agreement(trial, turned[i])
                    if found > best * (1 + 1e-6):
                        best, first, second = found, a, b
            if first < 0:
                break
            for a in (first, second) if second > first else (first, -1):
                if a >= 0:
                    for k in range(dim):
                        image[k] -= 2 * signs[a] * size[i, a] * r[k, a]
                    signs[a] = -signs[a]
        _write(size[i], signs, x[i], out[i])
