"""The fast noisy simulator: exact gate-level noise for millions of small circuits.

A block circuit is a preparation, different for every slice, and Q, the same for all slices of a block. So

    p(slice) = r(slice) @ O(block)          r [4^n] Pauli expectations of the noisy prepared state,  O [4^n, 2^n]

O is the readout, errors included, carried backwards through Q's noisy gates (Heisenberg picture), once per block. r is
simulated forwards, 128 slices at a time so that every inner loop runs over slices and is vectorised. No angle is
computed: with u = (left + i right) / norm at each node of the encoding tree, RY angles are halves of halves of arg u,
hence complex square roots, and their Gray-code combinations are products (a Walsh-Hadamard transform in the exponent).
Level k touches only qubits 0..k, so the state grows with the circuit.

Pauli index: digit d_q in {I, X, Y, Z} = {0, 1, 2, 3} of qubit q has stride 4^q.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qrun.quantum.circuits import CZ, RZ, SX, Gates
from qrun.quantum.encoding import gray_controls
from qrun.quantum.noise import Noise, Rates

Array = NDArray[Any]
# CZ on the pair (a, b), index 4 a + b: expectation of string i comes from string SOURCE[i] with SIGN[i]; it is its own
# inverse and transpose.
SOURCE = np.array([0, 13, 14, 3, 7, 10, 9, 4, 11, 6, 5, 8, 12, 1, 2, 15])
SIGN = np.array([1, 1, 1, 1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, 1, 1.0])


def readout_matrices(gates: list[Gates], noise: Noise, dtype: Any = np.float32) -> Array:
    """O [B, 4^n, 2^n] of every block's gates under the noise. Columns of O are the measured outcomes as observables of
    the prepared state."""
    n = gates[0].qubits
    offsets = np.cumsum([0, *(len(g.kind) for g in gates)])
    kind, first, second, angle = (
        np.concatenate([getattr(g, key) for g in gates]) for key in ("kind", "first", "second", "angle")
    )
    out = np.empty((len(gates), 4**n, 2**n))
    _heisenberg(kind, first, second, angle, offsets, noise.rates(1), noise.rates(2), _measurement(n, noise), n, out)
    return out.astype(dtype)


def _measurement(n: int, noise: Noise) -> Array:
    """Readout with its errors as Pauli coefficients [4^n, 2^n], after the circuit's one depolarising channel, if
    there is one."""
    zero, one = np.array(noise.confusion).T  # read outcomes [2] of |0> and of |1>
    single = np.array([zero + one, 0 * one, 0 * one, zero - one]) / 2
    total: Array = np.ones((1, 1))
    for _ in range(n):
        total = np.kron(single, total)
    total[1:] *= 1 - noise.block
    return total


def probabilities(units: Array, matrices: Array, noise: Noise) -> Array:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n] under O [B, 4^n, 2^n], in the arithmetic of O's
    dtype."""
    tokens, blocks, dim = units.shape
    n = dim.bit_length() - 1
    dtype = matrices.dtype
    one, two = (Rates(*np.array(noise.rates(qubits), dtype)) for qubits in (1, 2))
    masks = np.zeros((n, dim), np.int64)
    controls = np.zeros((n, dim), np.int64)
    for level in range(n):
        masks[level, : 1 << level], controls[level, : 1 << level] = gray_controls(level)
    out = np.empty((tokens, blocks, dim), dtype)
    lanes = 128 if tokens > 64 else 32 if tokens > 8 else 8
    _prepare_and_measure(np.ascontiguousarray(units, dtype), matrices, one, two, masks, controls, n, lanes, out)
    return out


@njit(cache=True, parallel=True)
def _heisenberg(kind, first, second, angle, offsets, one, two, measurement, n, out):  # type: ignore[no-untyped-def]
    strings, outcomes = 4**n, 2**n
    for block in prange(out.shape[0]):
        o = out[block]
        o[:, :] = measurement
        pair = np.empty((16, outcomes))
        for g in range(offsets[block + 1] - 1, offsets[block] - 1, -1):
            if kind[g] == CZ:
                low, high = 4 ** first[g], 4 ** second[g]
                for base in range(strings):
                    if (base // low) % 4 or (base // high) % 4:
                        continue
                    for a in range(4):
                        for b in range(4):
                            for k in range(outcomes):
                                pair[4 * a + b, k] = o[base + a * low + b * high, k]
                    for a in range(4):  # relaxation of the second qubit, transposed
                        for k in range(outcomes):
                            pair[4 * a, k] += two.shift * pair[4 * a + 3, k]
                            pair[4 * a + 1, k] *= two.transverse
                            pair[4 * a + 2, k] *= two.transverse
                            pair[4 * a + 3, k] *= two.longitudinal
                    for b in range(4):  # and of the first
                        for k in range(outcomes):
                            pair[b, k] += two.shift * pair[12 + b, k]
                            pair[4 + b, k] *= two.transverse
                            pair[8 + b, k] *= two.transverse
                            pair[12 + b, k] *= two.longitudinal
                    for i in range(16):
                        factor = SIGN[i] * (two.keep if i else 1.0)
                        at = base + (i // 4) * low + (i % 4) * high
                        for k in range(outcomes):
                            o[at, k] = factor * pair[SOURCE[i], k]
                continue
            stride = 4 ** first[g]
            c, s = np.cos(angle[g]), np.sin(angle[g])
            for base in range(strings):
                if (base // stride) % 4:
                    continue
                x, y, z = base + stride, base + 2 * stride, base + 3 * stride
                if kind[g] == RZ:
                    for k in range(outcomes):
                        o[x, k], o[y, k] = c * o[x, k] + s * o[y, k], c * o[y, k] - s * o[x, k]
                else:
                    for k in range(outcomes):
                        ox, oy, oz = one.transverse * o[x, k], one.transverse * o[y, k], one.longitudinal * o[z, k]
                        o[base, k] += one.shift * o[z, k]
                        o[x, k] = ox
                        o[y, k] = oz if kind[g] == SX else -oy
                        o[z, k] = -oy if kind[g] == SX else -oz


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
    """cos and sin of the level's RY angles, in circuit order, from the tree's weights [2^(level+1), lanes]
    (amplitudes on the last level)."""
    count = 1 << level
    one = weight.dtype.type(1)
    for node in range(count):
        for k in range(lanes):
            left, right = weight[node, k], weight[node + count, k]
            norm = np.sqrt(left * left + right * right)
            empty = norm == 0
            inverse = one / (one if empty else norm)
            ct[node, k] = one if empty else left * inverse
            st[node, k] = right * inverse
    if level == 0:
        for k in range(lanes):
            a, b = ct[0, k], st[0, k]
            ct[0, k], st[0, k] = a * a - b * b, 2 * a * b
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
    t, l, shift = rates.transverse, rates.longitudinal, rates.shift  # noqa: E741
    for top in range(0, strings, 4 * stride):
        for base in range(top, top + stride):
            ri, rx, ry, rz = r[base], r[base + stride], r[base + 2 * stride], r[base + 3 * stride]
            for k in range(lanes):
                x, z = rx[k], rz[k]
                rx[k] = t * t * (x * c[k] + z * s[k])
                ry[k] = t * (l * ry[k] + shift * ri[k])
                rz[k] = l * t * (z * c[k] - x * s[k]) + shift * ri[k]


@njit(cache=True)
def _cz(r, low, high, rates, lanes):  # type: ignore[no-untyped-def]
    """Noisy CZ on digits of strides low < high, the state ending at 4 * high strings."""
    t, l, shift, keep = rates.transverse, rates.longitudinal, rates.shift, rates.keep  # noqa: E741
    kt, kl = keep * t, keep * l
    for middle in range(0, high, 4 * low):
        for base in range(middle, middle + low):
            b = base
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
                i_x[k], i_y[k] = kt * ix, kt * iy
                x_i[k], y_i[k] = kt * xi, kt * yi
                x_x[k], x_y[k], y_x[k], y_y[k] = kt * t * xx, kt * t * xy, kt * t * yx, kt * t * yy
                x_z[k], y_z[k] = t * (kl * xz + shift * keep * xi), t * (kl * yz + shift * keep * yi)
                z_x[k], z_y[k] = t * (kl * zx + shift * keep * ix), t * (kl * zy + shift * keep * iy)
                i_z[k], z_i[k] = kl * iz + shift * ii[k], kl * zi + shift * ii[k]
                z_z[k] = l * (kl * zz + shift * keep * iz) + shift * l * keep * zi + shift * shift * ii[k]


@njit(cache=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _prepare_and_measure(units, matrices, one, two, masks, controls, n, lanes, out):  # type: ignore[no-untyped-def]
    tokens, blocks, dim = units.shape
    chunks = (tokens + lanes - 1) // lanes
    dtype, zero = units.dtype, units.dtype.type(0)
    for task in prange(chunks * blocks):
        block, begin = task // chunks, (task % chunks) * lanes
        here = min(lanes, tokens - begin)
        tree = np.zeros((n, dim, lanes), dtype)
        r = np.empty((4**n, lanes), dtype)
        c, s = np.empty((dim // 2, lanes), dtype), np.empty((dim // 2, lanes), dtype)
        ct, st = np.empty((dim // 2, lanes), dtype), np.empty((dim // 2, lanes), dtype)
        for k in range(here):
            for i in range(dim):
                tree[n - 1, i, k] = units[begin + k, block, i]
        for level in range(n - 2, -1, -1):
            size = 2 << level
            for i in range(size):
                for k in range(lanes):
                    a, b = tree[level + 1, i, k], tree[level + 1, i + size, k]
                    tree[level, i, k] = np.sqrt(a * a + b * b)
        r[0] = 1
        for level in range(n):
            strings = 4**level
            for i in range(strings):
                for k in range(lanes):
                    r[i + strings, k] = zero
                    r[i + 2 * strings, k] = zero
                    r[i + 3 * strings, k] = r[i, k]
            _angles(tree[level], masks, level, c, s, ct, st, lanes)
            for j in range(1 << level):
                if j > 0:
                    _cz(r, 4 ** controls[level, j], strings, two, lanes)
                _ry(r, strings, 4 * strings, c[j], s[j], one, lanes)
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
