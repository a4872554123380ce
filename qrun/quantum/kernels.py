"""The simulator's compiled kernels, in one file: a compiled function is kept on disk until its own file changes, and
what it calls is inside it.

    schmidt_angles            cosines and sines of the Schmidt form's angles
    prepare_and_measure       noisy preparation forwards, 64 slices side by side, and the outcome probabilities
    heisenberg                the readout backwards through a block's noisy gates

Shapes and conventions are simulator.py's.

Forwards, every array is flat and has LANES slices in a row. LLVM makes vectors of a loop over a row where it knows that
an index is not negative (which would count from the end) and can see, or check cheaply, that rows do not overlap. So
offsets pass `& WHOLE` and a loop touches few rows; the commonest strides are literals, and each literal costs compile
time. Chunks are always of LANES slices, the last one filled up, so that the bits of a slice do not depend on what is
computed beside it.
"""

import math

import numpy as np
from numba import njit, prange

from qrun.quantum.encoding import EMPTY
from qrun.quantum.gates import CZ, RY, RZ, SX

LANES = 64  # slices side by side
TOGETHER = 64  # blocks of a task, which runs them one after another
LINE = 16  # numbers of neighbouring blocks that are loaded and stored together: a cache line
WHOLE = 2**40 - 1
FAST = {"contract", "nsz"}
compiled = njit(cache=True, fastmath=FAST, error_model="numpy")
inlined = njit(inline="always", fastmath=FAST, error_model="numpy")
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


@inlined
def _half(c, s, rows):  # type: ignore[no-untyped-def]
    """Principal square roots of the unit numbers c + i s, in place; each branch avoids cancellation near -1."""
    half = c.dtype.type(0.5)
    for k in range(rows * LANES):
        large = np.sqrt(half + half * abs(c[k]))
        small = half * abs(s[k]) / large
        near = c[k] >= 0
        c[k] = large if near else small
        s[k] = math.copysign(small if near else large, s[k])


@compiled
def _angles(weights, at, masks, shape, level, c, s, ct, st):  # type: ignore[no-untyped-def]
    """cos and sin of a level's RY angles, in circuit order, from its weights."""
    count = 1 << level
    at, size, begin = at & WHOLE, count * LANES & WHOLE, (count - 1) * LANES & WHOLE
    one, zero, least = weights.dtype.type(1), weights.dtype.type(0), weights.dtype.type(EMPTY)
    for k in range(size):
        left, right = weights[at + k], weights[at + size + k]
        power = left * left + right * right
        empty = power < least
        inverse = one / np.sqrt(one if empty else power)
        ct[k] = one if empty else left * inverse
        st[k] = zero if empty or right == 0 else right * inverse  # -0 would pick another branch below
    if level == 0:
        for k in range(LANES):
            a, b = ct[k], st[k]
            ct[k], st[k] = a * a - b * b, a * b + a * b
    for _ in range(level - 1):
        _half(ct, st, count)
    if level > 0:
        _pairs(ct, st, 1, count)
    if level > 1:
        _pairs(ct, st, 2, count)
    if level > 2:
        _pairs(ct, st, 4, count)
    for step in range(3, level):
        _pairs(ct, st, 1 << step, count)
    for j in range(count):
        to, there = begin + (j * LANES & WHOLE), masks[shape, level, j] * LANES & WHOLE
        for k in range(LANES):
            c[to + k], s[to + k] = ct[there + k], st[there + k]


@inlined
def _pairs(c, s, step, count):  # type: ignore[no-untyped-def]
    """(u, v) -> (u v, u / v): a pass of a Walsh-Hadamard transform of the arguments."""
    for top in range(0, count, 2 * step):
        for node in range(top, top + step):
            i = node * LANES & WHOLE
            for k in range(i, i + LANES):
                a, b, p, q = c[k], s[k], c[k + step * LANES], s[k + step * LANES]
                c[k], s[k] = a * p - b * q, a * q + b * p
                c[k + step * LANES], s[k + step * LANES] = a * p + b * q, b * p - a * q


@inlined
def _weights(values, at, tree, to, size):  # type: ignore[no-untyped-def]
    """A level of the tree from the one below it."""
    for k in range(size):
        a, b = values[at + k], values[at + size + k]
        tree[to + k] = np.sqrt(a * a + b * b)


@compiled
def _turns(stage, own, tree, masks, shape, schmidt, n, c, s, ct, st):  # type: ignore[no-untyped-def]
    """Cosines and sines [2^n - 1] of the angles of the slices that begin at `own`. Level l of their tree has 2^(l+1)
    weights and begins behind those above it; the last one is the slices."""
    own, top = own & WHOLE, n - 1
    for level in range(n - 2, 1 if schmidt else -1, -1):
        size = (2 << level) * LANES & WHOLE
        to = ((2 << level) - 2) * LANES & WHOLE
        if level == n - 2:
            _weights(stage, own, tree, to, size)
        else:
            _weights(tree, to + size, tree, to, size)
    if schmidt and n == 3:
        schmidt_turns(stage, own, c, s)
    elif schmidt:
        schmidt_turns(tree, 6 * LANES, c, s)
    for level in range(3 if schmidt else 0, top):
        _angles(tree, ((2 << level) - 2) * LANES, masks, shape, level, c, s, ct, st)
    if not schmidt or n > 3:
        _angles(stage, own, masks, shape, top, c, s, ct, st)


@compiled
def _joined(r, strings, turn, table, g):  # type: ignore[no-untyped-def]
    """A qubit joins in |0> and is turned."""
    tt, ts, lt, shift = table[g, 0], table[g, 2], table[g, 3], table[g, 4]
    far = strings * LANES & WHOLE
    for i in range(0, far, LANES):
        x, y, z = i + far & WHOLE, i + 2 * far & WHOLE, i + 3 * far & WHOLE
        for k in range(LANES):
            here = r[i + k]
            r[x + k] = tt * turn[LANES + k] * here
            r[y + k] = ts * here
            r[z + k] = (lt * turn[k] + shift) * here


@inlined
def _ry(r, stride, strings, turn, table, g):  # type: ignore[no-untyped-def]
    """Noisy RY = rz(pi) sx rz(angle + pi) sx with the noise after each sx."""
    tt, tl, ts, lt, shift = table[g, 0], table[g, 1], table[g, 2], table[g, 3], table[g, 4]
    far = stride * LANES & WHOLE
    for top in range(0, strings * LANES & WHOLE, 4 * far):
        for i in range(top, top + far, LANES):
            i, x, y, z = i & WHOLE, i + far & WHOLE, i + 2 * far & WHOLE, i + 3 * far & WHOLE
            for k in range(LANES):
                here, a, b = r[i + k], r[x + k], r[z + k]
                r[x + k] = tt * (a * turn[k] + b * turn[LANES + k])
                r[z + k] = lt * (b * turn[k] - a * turn[LANES + k]) + shift * here
            for k in range(LANES):
                r[y + k] = ts * r[i + k] + tl * r[y + k]


@compiled
def _turned(r, stride, strings, turn, table, g):  # type: ignore[no-untyped-def]
    """Strides as literals spare LLVM's checks whether rows overlap, a third of the time."""
    if stride == 1:
        _ry(r, 1, strings, turn, table, g)
    elif stride == 4:
        _ry(r, 4, strings, turn, table, g)
    elif stride == 16:
        _ry(r, 16, strings, turn, table, g)
    else:
        _ry(r, stride, strings, turn, table, g)


@compiled
def _waited(r, stride, strings, coherent, stay, shift):  # type: ignore[no-untyped-def]
    """A waiting qubit."""
    far = stride * LANES & WHOLE
    for top in range(0, strings * LANES & WHOLE, 4 * far):
        i, x, z = top & WHOLE, top + far & WHOLE, top + 3 * far & WHOLE
        for k in range(2 * far):
            r[x + k] *= coherent
        for k in range(far):
            r[z + k] = stay * r[z + k] + shift * r[i + k]


@inlined
def _exchanged(r, p, q, size, own, a, b):  # type: ignore[no-untyped-def]
    """(p, q) -> (own q, a p + b q), `size` numbers from each on. The order of loads decides the last bit."""
    p, q = p & WHOLE, q & WHOLE
    for k in range(size):
        y, x = r[q + k], r[p + k]
        r[p + k], r[q + k] = own * y, a * x + b * y


@inlined
def _cz(r, low, high, strings, table, g):  # type: ignore[no-untyped-def]
    """Noisy CZ on digits of strides low < high: the pair's depolarising, then each qubit's own noise."""
    kh, kl, kk, lkh, lsh = table[g, 0], table[g, 1], table[g, 2], table[g, 3], table[g, 4]
    hkl, hsl, ih, sh, il = table[g, 5], table[g, 6], table[g, 7], table[g, 8], table[g, 9]
    sl, both, z_i, i_z, none = table[g, 10], table[g, 11], table[g, 12], table[g, 13], table[g, 14]
    l, h, zero = low * LANES & WHOLE, high * LANES & WHOLE, r.dtype.type(0)  # noqa: E741
    for top in range(0, strings * LANES & WHOLE, 4 * h):
        for i in range(top, top + h, 4 * l):
            i, p, q, z = i & WHOLE, i + 3 * l & WHOLE, i + 3 * h & WHOLE, i + 3 * l + 3 * h & WHOLE
            for k in range(l):
                ii, zi, iz, zz = r[i + k], r[p + k], r[q + k], r[z + k]
                r[p + k], r[q + k] = il * zi + sl * ii, ih * iz + sh * ii
                r[z + k] = both * zz + z_i * zi + i_z * iz + none * ii
            for d in (1, 2):  # X or Y of a qubit beside I or Z of the other one, then both
                _exchanged(r, i + d * h, p + d * h, l, kh, hkl, hsl)
                _exchanged(r, i + d * l, q + d * l, l, kl, lkh, lsh)
            _exchanged(r, i + l + h, i + 2 * l + 2 * h, l, kk, kk, zero)
            _exchanged(r, i + l + 2 * h, i + 2 * l + h, l, -kk, -kk, zero)


@compiled
def _coupled(r, low, high, strings, table, g):  # type: ignore[no-untyped-def]
    if low == 1 and high == 16:
        _cz(r, 1, 16, strings, table, g)
    elif low == 1 and high == 64:
        _cz(r, 1, 64, strings, table, g)
    else:
        _cz(r, low, high, strings, table, g)


@compiled
def _read(r, matrices, block, out, to):  # type: ignore[no-untyped-def]
    """out [b] = r [4^n] @ o [4^n, b] from row `to` on, four strings and four (of two: two) outcomes at a time."""
    strings, outcomes = matrices.shape[1], matrices.shape[2]
    zero = out.dtype.type(0)
    for k in range(to, to + outcomes * LANES):
        out[k] = zero
    for string in range(0, strings, 4):
        i = string * LANES & WHOLE
        for outcome in range(0, outcomes, 4):
            j = to + outcome * LANES & WHOLE
            a0, b0 = matrices[block, string, outcome], matrices[block, string, outcome + 1]
            a1, b1 = matrices[block, string + 1, outcome], matrices[block, string + 1, outcome + 1]
            a2, b2 = matrices[block, string + 2, outcome], matrices[block, string + 2, outcome + 1]
            a3, b3 = matrices[block, string + 3, outcome], matrices[block, string + 3, outcome + 1]
            if outcomes == 2:
                for k in range(LANES):
                    x0, x1, x2, x3 = r[i + k], r[i + LANES + k], r[i + 2 * LANES + k], r[i + 3 * LANES + k]
                    out[j + k] = out[j + k] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                    out[j + LANES + k] = out[j + LANES + k] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
                continue
            c0, d0 = matrices[block, string, outcome + 2], matrices[block, string, outcome + 3]
            c1, d1 = matrices[block, string + 1, outcome + 2], matrices[block, string + 1, outcome + 3]
            c2, d2 = matrices[block, string + 2, outcome + 2], matrices[block, string + 2, outcome + 3]
            c3, d3 = matrices[block, string + 3, outcome + 2], matrices[block, string + 3, outcome + 3]
            for k in range(LANES):
                x0, x1, x2, x3 = r[i + k], r[i + LANES + k], r[i + 2 * LANES + k], r[i + 3 * LANES + k]
                out[j + k] = out[j + k] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                out[j + LANES + k] = out[j + LANES + k] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
                out[j + 2 * LANES + k] = out[j + 2 * LANES + k] + c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
                out[j + 3 * LANES + k] = out[j + 3 * LANES + k] + d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3


@compiled
def _load(values, at, apart, here, stage, width):  # type: ignore[no-untyped-def]
    """Side by side: `width` neighbours of `here` slices that lie `apart`."""
    apart = apart & WHOLE
    for j in range(width):
        i, to = at + j & WHOLE, j * LANES & WHOLE
        for k in range(here):
            stage[to + k] = values[i + k * apart]


@compiled
def _store(stage, values, at, apart, here, width):  # type: ignore[no-untyped-def]
    """The way back."""
    apart = apart & WHOLE
    for j in range(width):
        i, to = at + j & WHOLE, j * LANES & WHOLE
        for k in range(here):
            values[i + k * apart] = stage[to + k]


@compiled
def _simulate(program, table, begin, end, c, s, turn, r):  # type: ignore[no-untyped-def]
    """The noisy state r [4^n] after gates begin to end."""
    one, zero = r.dtype.type(1), r.dtype.type(0)
    strings = 1
    for k in range(LANES):
        r[k] = one
    for g in range(begin, end):
        kind, low, high, p, waits = program[g, 0], program[g, 1], program[g, 2], program[g, 3], program[g, 4]
        if waits & 1:
            _waited(r, 1 << 2 * low, strings, table[g, 15], table[g, 16], table[g, 17])
        if waits & 2:
            _waited(r, 1 << 2 * high, strings, table[g, 18], table[g, 19], table[g, 20])
        if kind == CZ:
            _coupled(r, 1 << 2 * low, 1 << 2 * high, strings, table, g)
            continue
        cosine, sine, there = table[g, 5], table[g, 6], p * LANES & WHOLE
        for k in range(LANES):
            x = c[there + k] if p >= 0 else one
            y = s[there + k] if p >= 0 else zero
            turn[k], turn[LANES + k] = x * cosine - y * sine, x * sine + y * cosine
        if 1 << 2 * low == strings:
            _joined(r, strings, turn, table, g)
            strings *= 4
        else:
            _turned(r, 1 << 2 * low, strings, turn, table, g)


@compiled
def _chunk(begin, first, last, units, matrices, program, table, offsets, shape, masks, schmidt, n, out):  # type: ignore[no-untyped-def]
    """Slices `begin` and the LANES - 1 behind it of blocks `first` to `last`."""
    tokens, blocks, dim = units.shape
    readouts, beside, here = matrices.shape[0] // blocks, max(LINE // dim, 1), min(LANES, tokens - begin)
    flat, found = units.reshape(-1), out.reshape(-1)
    tree, r = np.zeros(2 * dim * LANES, units.dtype), np.empty(dim * dim * LANES, units.dtype)
    c, s = np.empty(dim * LANES, units.dtype), np.empty(dim * LANES, units.dtype)
    ct, st = np.empty(dim * LANES, units.dtype), np.empty(dim * LANES, units.dtype)
    stage = np.zeros(beside * dim * LANES, units.dtype)
    read = np.empty(readouts * beside * dim * LANES, units.dtype)
    for j in range(beside):
        for k in range(here, LANES):
            stage[j * dim * LANES + k] = 1
    for line in range(first, last, beside):
        at, width = (begin * blocks + line) * dim, (min(line + beside, last) - line) * dim
        _load(flat, at, blocks * dim, here, stage, width)
        for block in range(line, min(line + beside, last)):
            own = (block - line) * dim * LANES
            _turns(stage, own, tree, masks, shape[block], schmidt, n, c, s, ct, st)
            _simulate(program, table, offsets[block], offsets[block + 1], c, s, ct, r)
            for readout in range(readouts):
                _read(r, matrices, readout * blocks + block, read, readout * beside * dim * LANES + own)
        for readout in range(readouts):
            mine = read[readout * beside * dim * LANES :]
            _store(mine, found, readout * tokens * blocks * dim + at, blocks * dim, here, width)


@njit(cache=True, parallel=True)
def prepare_and_measure(  # type: ignore[no-untyped-def]
    units, matrices, program, table, offsets, shape, masks, schmidt, n, out
):
    tokens, blocks, _ = units.shape
    chunks, groups = (tokens + LANES - 1) // LANES, (blocks + TOGETHER - 1) // TOGETHER
    for task in prange(chunks * groups):
        begin, first = (task // groups) * LANES, (task % groups) * TOGETHER
        last = min(first + TOGETHER, blocks)
        _chunk(begin, first, last, units, matrices, program, table, offsets, shape, masks, schmidt, n, out)


@inlined
def _unit(a, b, one):  # type: ignore[no-untyped-def]
    """(a, b) scaled to length one, (1, 0) for zero; the larger entry first, since squares of tiny numbers vanish."""
    size = max(abs(a), abs(b))
    scale = one / size if size > TINY else size * 0
    a, b = a * scale, b * scale
    length = np.sqrt(a * a + b * b)
    ok = length > 0
    inverse = one / length if ok else length
    return a * inverse if ok else one, b * inverse


@inlined
def _half_turn(c, s, half):  # type: ignore[no-untyped-def]
    """Cosine and sine of half the angle, the half in (-pi/2, pi/2], without cancellation near -1."""
    large = np.sqrt(half + half * abs(c))
    small = half * abs(s) / large
    return (large, math.copysign(small, s)) if c >= 0 else (small, math.copysign(large, s))


@compiled
def schmidt_turns(x, at, c, s):  # type: ignore[no-untyped-def]
    """Cosines and sines [7] of SCHMIDT's angles, from unit slices [8]."""
    one, half = x.dtype.type(1), x.dtype.type(0.5)
    for k in range(LANES):
        a0, a1, a2, a3 = x[at + k], x[at + 2 * LANES + k], x[at + 4 * LANES + k], x[at + 6 * LANES + k]
        b0, b1, b2, b3 = x[at + LANES + k], x[at + 3 * LANES + k], x[at + 5 * LANES + k], x[at + 7 * LANES + k]
        # qubit 0 turned by phi so that the two rows become orthogonal, the longer one first
        across = a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3
        longer = a0 * a0 + a1 * a1 + a2 * a2 + a3 * a3 - (b0 * b0 + b1 * b1 + b2 * b2 + b3 * b3)
        c2, s2 = _unit(longer, across + across, one)
        c1, s1 = _half_turn(c2, s2, half)
        c[LANES + k], s[LANES + k] = c2, s2
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
        c[k], s[k] = p * p - q * q, p * q + p * q
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
        c[4 * LANES + k], s[4 * LANES + k] = my, flat
        c[5 * LANES + k], s[5 * LANES + k] = cy, sy
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
        c[2 * LANES + k], s[2 * LANES + k] = tc * dc + ts * ds, ts * dc - tc * ds
        c[6 * LANES + k], s[6 * LANES + k] = tc * dc - ts * ds, ts * dc + tc * ds
        p, q = _unit(p, q, one)
        c[3 * LANES + k], s[3 * LANES + k] = p * p - q * q, p * q + p * q


@compiled
def schmidt_angles(x, c, s):  # type: ignore[no-untyped-def]
    """Cosines and sines [N, 7] of SCHMIDT's angles, from unit slices [N, 8]."""
    stage, cosine, sine = np.zeros(8 * LANES, x.dtype), np.empty(7 * LANES, x.dtype), np.empty(7 * LANES, x.dtype)
    stage[:LANES] = 1
    for first in range(0, len(x), LANES):
        here = min(LANES, len(x) - first)
        _load(x.reshape(-1), first * 8, 8, here, stage, 8)
        schmidt_turns(stage, 0, cosine, sine)
        _store(cosine, c.reshape(-1), first * 7, 7, here, 7)
        _store(sine, s.reshape(-1), first * 7, 7, here, 7)
