"""Amplitude encoding: a slice becomes a unit vector and a norm; quantum/estimates.py is the way back.

Preparation of a unit vector takes 2^n - 1 RY and 2^n - n - 1 CZ: level k rotates qubit k, controlled on qubits 0..k-1,
as a chain of RY and CZ in Gray-code order (Moettoenen et al., quant-ph/0407010), started so that each level's first CZ
meets |0> and is left out. Little-endian: bit q of a channel's index is qubit q.
"""

from functools import cache

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qrun.errors import InputError

Floats = NDArray[np.floating]
EMPTY = 1e-30  # weight of a node of the encoding tree below which it turns nothing
ZERO = 1e-12  # a slice shorter than this needs no circuit and gives zero


def qubits(dim: int) -> int:
    """n with 2^n = dim. Raises InputError naming the nearest block dimensions that are circuits."""
    if dim < 2 or dim & (dim - 1):
        lower = 1 << max(dim.bit_length() - 1, 1)
        near = f"the nearest that do are {lower} and {2 * lower}"
        raise InputError(f"adapter.dim={dim}: no circuit has that many amplitudes; {near}")
    return dim.bit_length() - 1


def normalise(slices: Floats) -> tuple[Floats, Floats]:
    """Unit vectors [..., b] and norms [...]. Zero slices become the first basis state with norm 0. Raises InputError
    for NaN or infinity."""
    values = np.ascontiguousarray(slices)
    units, norms = np.empty_like(values), np.empty(values.shape[:-1], values.dtype)
    finite = _normalise(values.reshape(-1, values.shape[-1]), units.reshape(-1, values.shape[-1]), norms.reshape(-1))
    if not finite:
        raise InputError("a slice to encode is not finite (NaN or infinity in the hidden states)")
    return units, norms


@njit(cache=True, parallel=True, error_model="numpy")
def _normalise(slices, units, norms):  # type: ignore[no-untyped-def]
    """False if a slice is not finite."""
    rows, dim = slices.shape
    bad = 0
    for i in prange(rows):
        largest = abs(slices[i, 0])  # before squares: those of 1e19 and of 1e-23 do not exist in float32
        finite = np.isfinite(largest)
        for k in range(1, dim):
            largest = max(largest, abs(slices[i, k]))
            finite = finite and np.isfinite(slices[i, k])
        bad += 0 if finite else 1
        size = largest * 0
        for k in range(dim):
            units[i, k] = slices[i, k] / largest
            size += units[i, k] * units[i, k]
        size = np.sqrt(size)
        norms[i] = size * largest
        if largest < ZERO:
            norms[i] = 0
            for k in range(dim):
                units[i, k] = 1 if k == 0 else 0
        else:
            for k in range(dim):
                units[i, k] /= size
    return bad == 0


@cache
def gray_controls(level: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Per rotation j of a level. The sign mask g_j and the control of the CZ before it (-1 for the first, which is left
    out)."""
    count = 1 << level
    gray = [i ^ (i >> 1) for i in range(count)]
    masks = tuple(gray[count - 1 - j] for j in range(count))
    controls = (-1, *((masks[j - 1] ^ masks[j]).bit_length() - 1 for j in range(1, count)))
    return masks, controls


def node_angles(left: Floats, right: Floats) -> Floats:
    """2 arctan(right / left), and 0 where both are so small that nothing is there to turn; -0 counts as 0."""
    empty = left**2 + right**2 < EMPTY
    return np.where(empty, 0.0, 2 * np.arctan2(right + 0.0, left + 0.0))


def preparation_angles(units: Floats) -> Floats:
    """RY angles [..., 2^n - 1] of the preparation, level by level, in the order of the circuit."""
    n = qubits(units.shape[-1])
    levels = []
    for level in range(n):
        count = 1 << level
        if level == n - 1:
            left, right = units[..., :count], units[..., count:]
        else:
            weight = (units**2).reshape(*units.shape[:-1], -1, 2 * count).sum(-2)
            left, right = np.sqrt(weight[..., :count]), np.sqrt(weight[..., count:])
        alpha = node_angles(left, right)
        masks, _ = gray_controls(level)
        signs = np.array([[(-1) ** bin(s & g).count("1") for g in masks] for s in range(count)])
        levels.append(alpha @ signs / count)
    return np.concatenate(levels, axis=-1)
