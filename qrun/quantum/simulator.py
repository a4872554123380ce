"""The fast noisy simulator: exact gate-level noise for millions of small circuits.

A block circuit is a preparation, different for every slice, and Q, the same for all slices of a block. So

    p(slice) = r(slice) @ O(block)          r [4^n] Pauli expectations of the noisy prepared state,  O [4^n, 2^n]

O is the readout, errors included, carried backwards through Q's noisy gates (Heisenberg picture), once per block. r is
simulated forwards, 128 slices at a time so that every inner loop runs over slices and is vectorised. No angle is
computed: cosines and sines come from the slice by products and square roots (quantum/preparation.py for the Schmidt
form; at each node of the level-by-level tree u = (left + i right) / norm, RY angles are halves of halves of arg u,
hence complex square roots, and their Gray-code combinations are products, a Walsh-Hadamard transform in the exponent).
The state grows with the circuit: a qubit joins it when its first gate comes.

Pauli index: digit d_q in {I, X, Y, Z} = {0, 1, 2, 3} of qubit q has stride 4^q; in r qubits count in the order in which
they join.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qrun.quantum.circuits import CZ, RY, RZ, SX, Circuits
from qrun.quantum.encoding import EMPTY, gray_controls
from qrun.quantum.places import Places
from qrun.quantum.preparation import Preparation, schmidt_turns

Array = NDArray[Any]
# CZ on the pair (a, b), index 4 a + b: expectation of string i comes from string SOURCE[i] with SIGN[i]; it is its own
# inverse and transpose.
SOURCE = np.array([0, 13, 14, 3, 7, 10, 9, 4, 11, 6, 5, 8, 12, 1, 2, 15])
SIGN = np.array([1, 1, 1, 1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, 1, 1.0])


@dataclass(frozen=True)
class Prepared:
    """Circuits of B blocks at their places, ready for slices: O [B, 4^n, 2^n] in the order of the state's qubits, and
    the gates before it. Arithmetic is that of O's dtype."""

    preparation: Preparation
    circuits: Circuits
    places: Places
    waits: Array
    matrices: Array
    rank: Array  # position of each qubit in the state
    masks: Array  # signs of the level-by-level angles


def prepare(preparation: Preparation, circuits: Circuits, places: Places, dtype: Any = np.float32) -> Prepared:
    """Carry the readout of every block backwards to where its last angle of the slice is."""
    n = circuits.qubits
    waits, last = places.waits(circuits)
    one, two, waiting = places.tables
    out = np.empty((len(circuits), 4**n, 2**n))
    seen = [_measurement(n, places, p) for p in range(len(places))]
    for block in range(len(circuits)):
        out[block] = seen[places.of(block)][:, circuits.outcomes(block)]
    _heisenberg(
        circuits.kind, circuits.first, circuits.second, circuits.angle, circuits.offsets, circuits.split, one, two,
        waiting, waits, last, n, out,
    )  # fmt: skip
    joined: list[int] = []
    for first, second, _, _ in preparation.steps:
        joined += [q for q in (first, second) if q >= 0 and q not in joined]
    rank = np.array([joined.index(q) for q in range(n)])
    strings = np.arange(4**n)
    order = np.bitwise_or.reduce([(strings >> 2 * rank[q] & 3) << 2 * q for q in range(n)])
    masks = np.zeros((n, 2**n), np.int64)
    for level in range(n):
        masks[level, : 1 << level] = gray_controls(level)[0]
    if preparation.masks:
        masks[n - 1, : 1 << n - 1] = preparation.masks
    return Prepared(preparation, circuits, places, waits.astype(dtype), out[:, order].astype(dtype), rank, masks)


def _measurement(n: int, places: Places, place: int) -> Array:
    """Readout with its errors as Pauli coefficients [4^n, 2^n], outcomes by qubits, after the circuit's one
    depolarising channel, if there is one."""
    total: Array = np.ones((1, 1))
    for noise in places.one[place]:
        zero, one = np.array(noise.confusion).T  # read outcomes [2] of |0> and of |1>
        total = np.kron(np.array([zero + one, 0 * one, 0 * one, zero - one]) / 2, total)
    total[1:] *= 1 - places.block
    return total


def probabilities(units: Array, prepared: Prepared) -> Array:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n]."""
    tokens, _, dim = units.shape
    circuits, n, dtype = prepared.circuits, prepared.circuits.qubits, prepared.matrices.dtype
    one, two, waiting = (table.astype(dtype) for table in prepared.places.tables)
    turns = np.stack([np.cos(circuits.angle), np.sin(circuits.angle)], 1).astype(dtype)
    out = np.empty((tokens, len(circuits), dim), dtype)
    lanes = 128 if tokens > 64 else 32 if tokens > 8 else 8
    _prepare_and_measure(
        np.ascontiguousarray(units, dtype), prepared.matrices, circuits.kind, circuits.first, circuits.second, turns,
        circuits.parameter, circuits.offsets, circuits.split, one, two, waiting, prepared.waits, prepared.rank,
        prepared.masks, prepared.preparation.schmidt, n, lanes, out,
    )  # fmt: skip
    return out


@njit(cache=True)
def _idle(o, stride, transverse, longitudinal, shift):  # type: ignore[no-untyped-def]
    """Relaxation of a qubit, transposed, on observables o [4^n, 2^n]."""
    for base in range(o.shape[0]):
        if (base // stride) % 4:
            continue
        for k in range(o.shape[1]):
            o[base, k] += shift * o[base + 3 * stride, k]
            o[base + stride, k] *= transverse
            o[base + 2 * stride, k] *= transverse
            o[base + 3 * stride, k] *= longitudinal


@njit(cache=True)
def _wait(o, qubit, place, nanoseconds, waiting):  # type: ignore[no-untyped-def]
    if nanoseconds > 0:
        stay = np.exp(-nanoseconds * waiting[place, qubit, 0])
        _idle(o, 4**qubit, np.exp(-nanoseconds * waiting[place, qubit, 1]), stay, 1 - stay)


@njit(cache=True)
def _turned_z(o, stride, c, s):  # type: ignore[no-untyped-def]
    """RZ, transposed."""
    for base in range(o.shape[0]):
        if (base // stride) % 4:
            continue
        x, y = base + stride, base + 2 * stride
        for k in range(o.shape[1]):
            o[x, k], o[y, k] = c * o[x, k] + s * o[y, k], c * o[y, k] - s * o[x, k]


@njit(cache=True)
def _flipped(o, stride, half, rates):  # type: ignore[no-untyped-def]
    """Noisy SX (half a turn) or X, transposed."""
    transverse, longitudinal, shift = rates
    for base in range(o.shape[0]):
        if (base // stride) % 4:
            continue
        x, y, z = base + stride, base + 2 * stride, base + 3 * stride
        for k in range(o.shape[1]):
            ox, oy, oz = transverse * o[x, k], transverse * o[y, k], longitudinal * o[z, k]
            o[base, k] += shift * o[z, k]
            o[x, k] = ox
            o[y, k] = oz if half else -oy
            o[z, k] = -oy if half else -oz


@njit(cache=True)
def _paired(o, low, high, keep):  # type: ignore[no-untyped-def]
    """CZ and the depolarising of its pair, transposed."""
    pair = np.empty((16, o.shape[1]))
    for base in range(o.shape[0]):
        if (base // low) % 4 or (base // high) % 4:
            continue
        for i in range(16):
            for k in range(o.shape[1]):
                pair[i, k] = o[base + (i // 4) * low + (i % 4) * high, k]
        for i in range(16):
            factor = SIGN[i] * (keep if i else 1.0)
            at = base + (i // 4) * low + (i % 4) * high
            for k in range(o.shape[1]):
                o[at, k] = factor * pair[SOURCE[i], k]


@njit(cache=True, parallel=True)
def _heisenberg(kind, first, second, angle, offsets, split, one, two, waiting, waits, last, n, out):  # type: ignore[no-untyped-def]
    for block in prange(out.shape[0]):
        o, place = out[block], block % one.shape[0]
        for q in range(n):
            _wait(o, q, place, last[block, q], waiting)
        for g in range(offsets[block + 1] - 1, split[block] - 1, -1):
            a, b = first[g], second[g]
            stride = 4**a
            if kind[g] == CZ:
                for qubit, other in ((a, b), (b, a)):
                    transverse, longitudinal, shift, _ = two[place, qubit, other]
                    _idle(o, 4**qubit, transverse, longitudinal, shift)
                _paired(o, stride, 4**b, two[place, a, b, 3])
                _wait(o, b, place, waits[g, 1], waiting)
            elif kind[g] == RZ:
                _turned_z(o, stride, np.cos(angle[g]), np.sin(angle[g]))
            elif kind[g] == RY:  # rz(pi) sx rz(angle + pi) sx, backwards
                _turned_z(o, stride, -1.0, 0.0)
                _flipped(o, stride, True, one[place, a])
                _turned_z(o, stride, -np.cos(angle[g]), -np.sin(angle[g]))
                _flipped(o, stride, True, one[place, a])
            else:
                _flipped(o, stride, kind[g] == SX, one[place, a])
            _wait(o, a, place, waits[g, 0], waiting)


@njit(cache=True)
def _half(c, s, lanes):  # type: ignore[no-untyped-def]
    """Principal square roots of the unit numbers c + i s, in place; each branch avoids cancellation near -1."""
    half = c.dtype.type(0.5)
    for i in range(c.shape[0]):
        for k in range(lanes):
            large = np.sqrt(half * (1 + abs(c[i, k])))
            small = half * abs(s[i, k]) / large
            near = c[i, k] >= 0
            c[i, k] = large if near else small
            s[i, k] = np.copysign(small if near else large, s[i, k])


@njit(cache=True)
def _angles(weight, masks, level, c, s, ct, st, lanes):  # type: ignore[no-untyped-def]
    """cos and sin of a level's RY angles, in circuit order, from the tree's weights [2^(level+1), lanes] (amplitudes on
    the last level)."""
    count = 1 << level
    one, zero, least = weight.dtype.type(1), weight.dtype.type(0), weight.dtype.type(EMPTY)
    for node in range(count):
        for k in range(lanes):
            left, right = weight[node, k], weight[node + count, k]
            power = left * left + right * right
            empty = power < least
            inverse = one / np.sqrt(one if empty else power)
            ct[node, k] = one if empty else left * inverse
            st[node, k] = zero if empty or right == 0 else right * inverse  # -0 would pick another branch below
    if level == 0:
        for k in range(lanes):
            a, b = ct[0, k], st[0, k]
            ct[0, k], st[0, k] = a * a - b * b, a * b + a * b
    for _ in range(level - 1):
        _half(ct[:count], st[:count], lanes)
    step = 1
    while step < count:  # (u, v) -> (u v, u / v): a Walsh-Hadamard transform of the arguments
        for start in range(0, count, 2 * step):
            for i in range(start, start + step):
                j = i + step
                for k in range(lanes):
                    a, b, p, q = ct[i, k], st[i, k], ct[j, k], st[j, k]
                    ct[i, k], st[i, k] = a * p - b * q, a * q + b * p
                    ct[j, k], st[j, k] = a * p + b * q, b * p - a * q
        step *= 2
    for j in range(count):
        for k in range(lanes):
            c[j, k], s[j, k] = ct[masks[level, j], k], st[masks[level, j], k]


@njit(cache=True)
def _ry(r, stride, strings, c, s, rates, lanes):  # type: ignore[no-untyped-def]
    """Noisy RY = rz(pi) sx rz(angle + pi) sx with the noise after each sx."""
    t, l, shift = rates[0], rates[1], rates[2]  # noqa: E741
    for top in range(0, strings, 4 * stride):
        for base in range(top, top + stride):
            ri, rx, ry, rz = r[base], r[base + stride], r[base + 2 * stride], r[base + 3 * stride]
            for k in range(lanes):
                x, z = rx[k], rz[k]
                rx[k] = t * t * (x * c[k] + z * s[k])
                ry[k] = t * (l * ry[k] + shift * ri[k])
                rz[k] = l * t * (z * c[k] - x * s[k]) + shift * ri[k]


@njit(cache=True)
def _cz(r, low, high, strings, rl, rh, lanes):  # type: ignore[no-untyped-def]
    """Noisy CZ on digits of strides low < high: the pair's depolarising, then each qubit's own noise."""
    tl, ll, sl, keep = rl[0], rl[1], rl[2], rl[3]
    th, lh, sh = rh[0], rh[1], rh[2]
    ktl, kll, kth, klh = keep * tl, keep * ll, keep * th, keep * lh
    for top in range(0, strings, 4 * high):
        for middle in range(top, top + high, 4 * low):
            for b in range(middle, middle + low):
                i_x, i_y, i_z = r[b + high], r[b + 2 * high], r[b + 3 * high]
                x_i, y_i, z_i = r[b + low], r[b + 2 * low], r[b + 3 * low]
                x_x, x_y, x_z = r[b + low + high], r[b + low + 2 * high], r[b + low + 3 * high]
                y_x, y_y, y_z = r[b + 2 * low + high], r[b + 2 * low + 2 * high], r[b + 2 * low + 3 * high]
                z_x, z_y, z_z = r[b + 3 * low + high], r[b + 3 * low + 2 * high], r[b + 3 * low + 3 * high]
                ii = r[b]
                for k in range(lanes):
                    ix, iy, iz, xi, yi, zi = z_x[k], z_y[k], i_z[k], x_z[k], y_z[k], z_i[k]
                    xx, xy, yx, yy = y_y[k], -y_x[k], -x_y[k], x_x[k]
                    xz, yz, zx, zy, zz = x_i[k], y_i[k], i_x[k], i_y[k], z_z[k]
                    i_x[k], i_y[k] = kth * ix, kth * iy
                    x_i[k], y_i[k] = ktl * xi, ktl * yi
                    x_x[k], x_y[k], y_x[k], y_y[k] = ktl * th * xx, ktl * th * xy, ktl * th * yx, ktl * th * yy
                    x_z[k], y_z[k] = tl * (klh * xz + sh * keep * xi), tl * (klh * yz + sh * keep * yi)
                    z_x[k], z_y[k] = th * (kll * zx + sl * keep * ix), th * (kll * zy + sl * keep * iy)
                    i_z[k], z_i[k] = klh * iz + sh * ii[k], kll * zi + sl * ii[k]
                    z_z[k] = ll * (klh * zz + sh * keep * zi) + sl * klh * iz + sl * sh * ii[k]


@njit(cache=True)
def _relax(r, stride, strings, transverse, longitudinal, lanes):  # type: ignore[no-untyped-def]
    """A waiting qubit."""
    shift = 1 - longitudinal
    for top in range(0, strings, 4 * stride):
        for base in range(top, top + stride):
            ri, rx, ry, rz = r[base], r[base + stride], r[base + 2 * stride], r[base + 3 * stride]
            for k in range(lanes):
                rx[k] *= transverse
                ry[k] *= transverse
                rz[k] = longitudinal * rz[k] + shift * ri[k]


@njit(cache=True)
def _turns(tree, masks, schmidt, n, c, s, ct, st, lanes):  # type: ignore[no-untyped-def]
    """Cosines and sines [2^n - 1, lanes] of the slice's angles."""
    first = 0
    if schmidt:
        schmidt_turns(tree[2], c, s, lanes)
        first = 3
    for level in range(first, n):
        begin, end = (1 << level) - 1, (2 << level) - 1
        _angles(tree[level], masks, level, c[begin:end], s[begin:end], ct, st, lanes)


@njit(cache=True, parallel=True, fastmath={"contract", "nsz"})
def _prepare_and_measure(  # type: ignore[no-untyped-def]
    units, matrices, kind, first, second, turns, parameter, offsets, split, one, two, waiting, waits, rank, masks,
    schmidt, n, lanes, out,
):  # fmt: skip
    tokens, blocks, dim = units.shape
    chunks = (tokens + lanes - 1) // lanes
    dtype, zero = units.dtype, units.dtype.type(0)
    for task in prange(chunks * blocks):
        block, begin = task // chunks, (task % chunks) * lanes
        place = block % one.shape[0]
        here = min(lanes, tokens - begin)
        tree = np.zeros((n, dim, lanes), dtype)
        r = np.empty((4**n, lanes), dtype)
        c, s = np.empty((dim, lanes), dtype), np.empty((dim, lanes), dtype)
        ct, st = np.empty((dim // 2, lanes), dtype), np.empty((dim // 2, lanes), dtype)
        for k in range(here):
            for i in range(dim):
                tree[n - 1, i, k] = units[begin + k, block, i]
        for k in range(here, lanes):
            tree[n - 1, 0, k] = 1
        for level in range(n - 2, -1, -1):
            size = 2 << level
            for i in range(size):
                for k in range(lanes):
                    a, b = tree[level + 1, i, k], tree[level + 1, i + size, k]
                    tree[level, i, k] = np.sqrt(a * a + b * b)
        _turns(tree, masks, schmidt, n, c, s, ct, st, lanes)
        r[0] = 1
        strings = 1
        for g in range(offsets[block], split[block]):
            a = first[g]
            low = 4 ** rank[a]
            if low == strings:  # a qubit joins, in |0>
                for i in range(strings):
                    for k in range(lanes):
                        r[i + strings, k] = zero
                        r[i + 2 * strings, k] = zero
                        r[i + 3 * strings, k] = r[i, k]
                strings *= 4
            if waits[g, 0] > 0:
                stay, coherent = (
                    np.exp(-waits[g, 0] * waiting[place, a, 0]),
                    np.exp(-waits[g, 0] * waiting[place, a, 1]),
                )
                _relax(r, low, strings, coherent, stay, lanes)
            if kind[g] == RY:
                cosine, sine = turns[g, 0], turns[g, 1]
                p = parameter[g]
                for k in range(lanes):
                    x = c[p, k] if p >= 0 else dtype.type(1)
                    y = s[p, k] if p >= 0 else zero
                    ct[0, k], st[0, k] = x * cosine - y * sine, x * sine + y * cosine
                _ry(r, low, strings, ct[0], st[0], one[place, a], lanes)
                continue
            b = second[g]
            high = 4 ** rank[b]
            if waits[g, 1] > 0:
                stay, coherent = (
                    np.exp(-waits[g, 1] * waiting[place, b, 0]),
                    np.exp(-waits[g, 1] * waiting[place, b, 1]),
                )
                _relax(r, high, strings, coherent, stay, lanes)
            if low < high:
                _cz(r, low, high, strings, two[place, a, b], two[place, b, a], lanes)
            else:
                _cz(r, high, low, strings, two[place, b, a], two[place, a, b], lanes)
        o = matrices[block]
        total = np.empty(lanes, dtype)
        for k in range(dim):
            total[:] = zero
            for i in range(4**n):
                factor = o[i, k]
                for lane in range(lanes):
                    total[lane] += factor * r[i, lane]
            for lane in range(here):
                out[begin + lane, block, k] = total[lane]
