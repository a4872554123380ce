"""Levenberg-Marquardt over the angles of RY and CZ circuits, compiled: what quantum/synthesis.py runs on every block.

A circuit U(t) turns by its angles, dU / dt_k = U A_k with skew-symmetric A_k = P_k^T J P_k / 2, where P_k is the
product of the gates up to the k-th RY and J its generator. So a step towards T, one of Q and -Q, solves

    (2 S^T S + damping) step = 2 S^T w,        S [b(b-1)/2, P] the entries below the diagonal of all A_k
                                               w [b(b-1)/2] those of (U^T T - T^T U) / 2

which is least squares of |U + dU - T|_F in half as many numbers. Blocks are independent of each other, and no sum is
left to a library whose order depends on its threads: the same block has the same bits, whatever runs beside it.

Arrays are flat and rows padded to ROW numbers, so that LLVM makes vectors of loops over a row (kernels.py says how).
"""

import numpy as np
from numba import njit, prange

from qrun.quantum.kernels import WHOLE, compiled

ROW = 16  # rows are as many of these numbers as they need
ITERATIONS = 300
FIRST, LEAST, MOST = 1e-2, 1e-12, 1e8  # damping at first, at least, and when a block is given up
DONE = 1e-24  # |U - T|^2 that rounding leaves


@compiled
def _add(out, to, rows, at, width, scale, count, size):  # type: ignore[no-untyped-def]
    """`size` numbers of out from `to` on += sum_m scale[m] (row m of `rows`, from `at` on)."""
    to, size = to & WHOLE, size & WHOLE
    fours = count // 4 * 4
    for m in range(0, fours, 4):
        a, b, c, d = scale[m], scale[m + 1], scale[m + 2], scale[m + 3]
        p = at + m * width & WHOLE
        q, r, s = p + width & WHOLE, p + 2 * width & WHOLE, p + 3 * width & WHOLE
        for k in range(size):
            out[to + k] = out[to + k] + a * rows[p + k] + b * rows[q + k] + c * rows[r + k] + d * rows[s + k]
    for m in range(fours, count):
        a, p = scale[m], at + m * width & WHOLE
        for k in range(size):
            out[to + k] = out[to + k] + a * rows[p + k]


@compiled
def _crossed(out, to, halves, i, j, k, l, size):  # type: ignore[no-untyped-def]  # noqa: E741
    """`size` numbers of out from `to` on += (i j - k l) / 2, rows of halves by where they begin."""
    to, i, j, k, l, size = to & WHOLE, i & WHOLE, j & WHOLE, k & WHOLE, l & WHOLE, size & WHOLE  # noqa: E741
    for n in range(size):
        out[to + n] = out[to + n] + 0.5 * (halves[i + n] * halves[j + n] - halves[k + n] * halves[l + n])


@compiled
def _circuit(angles, gates, matrix, halves, slopes, width):  # type: ignore[no-untyped-def]
    """U [b, b], and S in rows of `width`. halves [2, b/2, b, width] are the rows of P_k that its RY turns, those whose
    bit is 0 and those whose bit is 1."""
    b, count = matrix.shape[0], 0
    for i in range(b):
        for j in range(b):
            matrix[i, j] = 1 if i == j else 0
    for g in range(gates.shape[0]):
        bit = 1 << gates[g, 0]
        if gates[g, 1] >= 0:
            both = bit | 1 << gates[g, 1]
            for r in range(b):
                if r & both == both:
                    for j in range(b):
                        matrix[r, j] = -matrix[r, j]
            continue
        c, s, at = np.cos(angles[count] / 2), np.sin(angles[count] / 2), count
        for r in range(b):
            if r & bit:
                continue
            for j in range(b):
                low, high = matrix[r, j], matrix[r | bit, j]
                matrix[r, j], matrix[r | bit, j] = c * low - s * high, s * low + c * high
                halves[at], halves[at + b * b // 2 * width] = matrix[r, j], matrix[r | bit, j]
                at += width
        count += 1
    for k in range(len(slopes)):
        slopes[k] = 0
    to, far = 0, b * b // 2 * width
    for i in range(1, b):
        for j in range(i):
            for r in range(0, b // 2 * b * width, b * width):
                one, two = r + i * width, r + j * width
                _crossed(slopes, to, halves, far + one, two, one, far + two, width)
            to += width


@compiled
def _step(slopes, rest, damping, count, width, normal, scale, step):  # type: ignore[no-untyped-def]
    """The step [width] of the module's docstring, by Cholesky's method; of S and w twice what is meant."""
    rows = len(rest)
    for k in range(width):
        step[k] = 0
    _add(step, 0, slopes, 0, width, rest, rows, width)
    for i in range(count):
        begin = i // ROW * ROW
        row = i * width + begin
        for k in range(row, row + width - begin):
            normal[k] = 0
        for c in range(rows):
            scale[c] = slopes[c * width + i]
        _add(normal, row, slopes, begin, width, scale, rows, width - begin)
        normal[i * width + i] += damping
        for m in range(i):
            scale[m] = -normal[m * width + i]
        _add(normal, row, normal, begin, width, scale, i, width - begin)
        root = 1 / np.sqrt(max(normal[i * width + i], LEAST**2))
        for k in range(i, count):
            normal[i * width + k] *= root
        step[i] *= root
        for k in range(i + 1, count):
            step[k] -= normal[i * width + k] * step[i]
    for i in range(count - 1, -1, -1):
        for k in range(i + 1, count):
            step[i] -= normal[i * width + k] * step[k]
        step[i] /= normal[i * width + i]


@compiled
def _loss(matrix, block, sign):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            total += (matrix[i, j] - sign * block[i, j]) ** 2
    return total


@compiled
def _descend(block, angles, gates, least):  # type: ignore[no-untyped-def]
    """One block, until a step gains less than that share of the loss."""
    b, count = len(block), len(angles)
    width, pairs = -(-count // ROW) * ROW, b * (b - 1) // 2
    matrix, found = np.empty((b, b)), np.empty((b, b))
    slopes, steeper, halves = np.empty(pairs * width), np.empty(pairs * width), np.zeros(b * b * width)
    rest, normal, scale = np.empty(pairs), np.empty(count * width), np.empty(max(count, pairs))
    step, trial = np.empty(width), np.empty(count)
    for k in range(count):
        trial[k] = angles[k]
    _circuit(trial, gates, matrix, halves, slopes, width)
    sign = 1.0 if _loss(matrix, block, 1.0) <= _loss(matrix, block, -1.0) else -1.0
    loss, damping = _loss(matrix, block, sign), FIRST
    for _ in range(ITERATIONS):
        at = 0
        for i in range(1, b):
            for j in range(i):
                total = 0.0
                for r in range(b):
                    total += matrix[r, i] * block[r, j] - matrix[r, j] * block[r, i]
                rest[at] = sign * total / 2
                at += 1
        _step(slopes, rest, damping / 2, count, width, normal, scale, step)
        for k in range(count):
            trial[k] = angles[k] + step[k]
        _circuit(trial, gates, found, halves, steeper, width)
        now = _loss(found, block, sign)
        if now < loss:
            stalled = now > LEAST and loss - now < least * loss
            loss, damping = now, max(0.3 * damping, LEAST)
            for k in range(count):
                angles[k] = trial[k]
            matrix, found, slopes, steeper = found, matrix, steeper, slopes
        else:
            stalled, damping = False, 5 * damping
        if loss < DONE or damping > MOST or stalled:
            break


@njit(cache=True, parallel=True)
def descend(blocks, angles, gates, least):  # type: ignore[no-untyped-def]
    """Angles [B, P], in place, of circuits of less |circuit - Q|_F to blocks [B, b, b], up to the sign of each start;
    gates [G, 2] as Ansatz.gates has them."""
    for block in prange(len(blocks)):
        _descend(blocks[block], angles[block], gates, least)
