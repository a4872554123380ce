"""The simulator's compiled kernels, in one file: a compiled function is kept on disk until its own file changes, and
what it calls is inside it.

    schmidt_turns, turns      cosines and sines of a preparation's angles
    prepare_and_measure       noisy preparation forwards, 8 to 128 slices at a time, and the outcome probabilities
    heisenberg                the readout backwards through a block's noisy gates

Shapes and conventions are simulator.py's.
"""

import numpy as np
from numba import njit, prange

from qrun.quantum.encoding import EMPTY
from qrun.quantum.gates import CZ, RY, RZ, SX

TINY = 1e-35  # beside a unit slice nothing; its inverse is still a number in float32
# CZ on the pair (a, b), index 4 a + b: expectation of string i comes from string SOURCE[i] with SIGN[i]; it is its own
# inverse and transpose.
SOURCE = np.array([0, 13, 14, 3, 7, 10, 9, 4, 11, 6, 5, 8, 12, 1, 2, 15])
SIGN = np.array([1, 1, 1, 1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, 1, 1.0])


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
def heisenberg(kind, first, second, angle, offsets, split, one, two, waiting, waits, last, n, out):  # type: ignore[no-untyped-def]
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
def prepare_and_measure(  # type: ignore[no-untyped-def]
    units, matrices, kind, first, second, turns, parameter, offsets, split, one, two, waiting, waits, ranks, signs,
    shape, schmidt, n, lanes, out,
):  # fmt: skip
    tokens, blocks, dim = units.shape
    chunks = (tokens + lanes - 1) // lanes
    dtype, zero = units.dtype, units.dtype.type(0)
    for task in prange(chunks * blocks):
        block, begin = task // chunks, (task % chunks) * lanes
        place = block % one.shape[0]
        rank, masks = ranks[shape[block]], signs[shape[block]]
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


@njit(cache=True, inline="always")
def _unit(a, b, one):  # type: ignore[no-untyped-def]
    """(a, b) scaled to length one, (1, 0) for zero; the larger entry first, since squares of tiny numbers vanish."""
    size = max(abs(a), abs(b))
    scale = one / size if size > TINY else size * 0
    a, b = a * scale, b * scale
    length = np.sqrt(a * a + b * b)
    ok = length > 0
    inverse = one / length if ok else length
    return a * inverse if ok else one, b * inverse


@njit(cache=True, inline="always")
def _half_turn(c, s, half):  # type: ignore[no-untyped-def]
    """Cosine and sine of half the angle, the half in (-pi/2, pi/2], without cancellation near -1."""
    large = np.sqrt(half + half * abs(c))
    small = half * abs(s) / large
    return (large, np.copysign(small, s)) if c >= 0 else (small, np.copysign(large, s))


@njit(cache=True)
def schmidt_turns(x, c, s, lanes):  # type: ignore[no-untyped-def]
    """Cosines and sines [7, lanes] of SCHMIDT's angles, from unit slices [8, lanes]."""
    one, half = x.dtype.type(1), x.dtype.type(0.5)
    for k in range(lanes):
        a0, a1, a2, a3 = x[0, k], x[2, k], x[4, k], x[6, k]
        b0, b1, b2, b3 = x[1, k], x[3, k], x[5, k], x[7, k]
        # qubit 0 turned by phi so that the two rows become orthogonal, the longer one first
        across = a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3
        longer = a0 * a0 + a1 * a1 + a2 * a2 + a3 * a3 - (b0 * b0 + b1 * b1 + b2 * b2 + b3 * b3)
        c2, s2 = _unit(longer, across + across, one)
        c1, s1 = _half_turn(c2, s2, half)
        c[1, k], s[1, k] = c2, s2
        u0, u1, u2, u3 = c1 * a0 + s1 * b0, c1 * a1 + s1 * b1, c1 * a2 + s1 * b2, c1 * a3 + s1 * b3
        v0, v1, v2, v3 = c1 * b0 - s1 * a0, c1 * b1 - s1 * a1, c1 * b2 - s1 * a2, c1 * b3 - s1 * a3
        first = np.sqrt(u0 * u0 + u1 * u1 + u2 * u2 + u3 * u3)
        u0, u1, u2, u3 = u0 / first, u1 / first, u2 / first, u3 / first
        slip = u0 * v0 + u1 * v1 + u2 * v2 + u3 * v3  # rounding
        v0, v1, v2, v3 = v0 - slip * u0, v1 - slip * u1, v2 - slip * u2, v3 - slip * u3
        size = max(max(abs(v0), abs(v1)), max(abs(v2), abs(v3)))
        inverse = one / size if size > TINY else size * 0
        w0, w1, w2, w3 = v0 * inverse, v1 * inverse, v2 * inverse, v3 * inverse
        length = np.sqrt(w0 * w0 + w1 * w1 + w2 * w2 + w3 * w3)
        p, q = _unit(first, size * length, one)
        c[0, k], s[0, k] = p * p - q * q, p * q + p * q
        # quaternions (w, x, y, z) = (00, 11, 01, 10): a = (u0, u3, u1, u2), b likewise; m = b conj(a)
        mx = -w0 * u3 + w3 * u0 - w1 * u2 + w2 * u1
        my = -w0 * u1 + w1 * u0 - w2 * u3 + w3 * u2
        mz = -w0 * u2 + w2 * u0 - w3 * u1 + w1 * u3
        size = np.sqrt(mx * mx + my * my + mz * mz)
        inverse = one / size if size > TINY else size * 0
        my = my * inverse if size > TINY else one
        mx, mz = mx * inverse, mz * inverse
        # l turns j into m: about z by the angle of (cos, sin) = (my, flat), then about y
        flat = np.sqrt(mx * mx + mz * mz)
        my, flat = _unit(my, flat, one)
        cy, sy = _unit(-mx, mz, one)
        c[4, k], s[4, k] = my, flat
        c[5, k], s[5, k] = cy, sy
        cm, sm = _half_turn(my, flat, half)
        ch, sh = _half_turn(cy, sy, half)
        lw, ly, lz, lx = cm * ch, cm * sh, sm * ch, sm * sh
        # r = conj(l) a, whose y and z stand for the other copy's z and y
        rw = lw * u0 + lx * u3 + ly * u1 + lz * u2
        rx = lw * u3 - lx * u0 - ly * u2 + lz * u1
        rz = lw * u1 - ly * u0 - lz * u3 + lx * u2
        ry = lw * u2 - lz * u0 - lx * u1 + ly * u3
        p, q = np.sqrt(rw * rw + ry * ry), np.sqrt(rz * rz + rx * rx)
        tc, ts = _unit(rw, ry, one)  # half the sum of first and last
        dc, ds = _unit(rz, rx, one)  # half of last less first
        c[2, k], s[2, k] = tc * dc + ts * ds, ts * dc - tc * ds
        c[6, k], s[6, k] = tc * dc - ts * ds, ts * dc + tc * ds
        p, q = _unit(p, q, one)
        c[3, k], s[3, k] = p * p - q * q, p * q + p * q
