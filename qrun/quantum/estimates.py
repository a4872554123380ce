"""From counts to Q x: what calibration takes out of frequencies, and where signs come from.

    frequencies f [N, B, b] of a setting -> calibrated probabilities p -> magnitudes |x| sqrt(p) -> signs

Calibration. A block's circuit is taken to have one depolarising rate and its qubits independent readout errors,

    f = M ((1 - l) p + l / b),        M = M_n x ... x M_1,  M_i = [[1 - e0, e1], [e0, 1 - e1]]

so p = (M^-1 f - l / b) / (1 - l), projected on the simplex (the nearest distribution). `Rates` holds M_i^-1 and 1 - l;
they come from circuits that are counted beside the data: all |0> and all |1> per place for M, known slices per block
for l. Linear up to the projection, and it knows nothing of x.

Signs. Counts carry none. `two_settings` counts again after RY(pi/2) on every qubit (R), half the shots each, and takes
the signs s that explain the second setting best, s = argmax sum_k |R (s o sqrt p)|_k sqrt(p'_k), which is least squares
since all norms are 1. Up to b = 8 every pattern is tried in Gray-code order. Beyond, exactly as well, by branch and
bound: R (low, high) = (L - H, L + H) with L and H the images of the two halves, so whatever the other half, L_k and H_k
miss one of (t + t') / 2 and |t - t'| / 2 with t and t' the roots counted for their difference and sum, and a pair of
halves agrees by at most the mean power of both settings less both squared distances. Then both settings tell y: with a
= s o sqrt p and v = sign(R a) o sqrt p', from their mean y0 ~ a + R^T v one scoring step of the likelihood of both
counts,

    min_y sum_k w_k (y - a)_k^2 + w'_k (R y - v)_k^2,        w_k = y0_k^2 / (p_k (1 - p_k) / (shots (1 - l)^2) + e)

with e the mean square error that calibration leaves (`residual`): a probability near 0 says little about its root, and
what one setting says badly the other says well. One sign per slice, the global one, is that of <y, x>.

`reference` (one setting) encodes [c u + x, c u - x] on a qubit more, bit 0 of the index, that Q leaves alone, with
u = Q^T (1, ..., 1) / sqrt(b). With A and B the calibrated roots, S = (A + B) / 2 and D = (A - B) / 2, both in units of
|x|, one of S and |D| is t = c / sqrt(b), and the other |y|: y = D where S is nearer to t, else sign(D) S. No sign is
taken from x.

`soft` and `posterior` lean on x: what they keep of a gain is in part what x knew already, and the second falls back on
the frozen model as noise grows. y_i = m tanh(x_i m / s^2); and the mean of y_i under y_i ~ N(x_i, s^2) and
m ~ N(|y_i|, v), with s^2 = |Q - 1|^2 / b^2 and v = 1 / (4 shots (1 - l)^2).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from qrun.quantum.sampling import Shots

Floats = NDArray[np.floating]
LEAST_KEPT = 0.02  # 1 - l below which a circuit tells nothing
LANES = 64  # rows that a kernel holds side by side
SMALL = 8  # block dimension up to which every pattern of signs is tried
SLACK = 1e-5  # share of a likelihood that rounding may take
SLICES = 16  # known slices a block, for its depolarising rate
REPEATS = 16  # circuits all |0> and all |1> that a place's readout errors are counted with
REFERENCE = 0.6  # c, the reference amplitude beside |x| = 1


@dataclass(frozen=True)
class Rates:
    """What calibration knows of B blocks in one setting."""

    inverse: NDArray[np.float64]  # [B, n, 2, 2], per bit of a slice's index
    kept: NDArray[np.float64]  # [B], 1 - depolarising rate of the circuit
    residual: float = 0.0  # mean square of what calibrated probabilities are off beyond counting


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


def fitted(frequencies: Floats, expected: Floats, inverse: NDArray[np.float64], shots: int | None = None) -> Rates:
    """Rates from the counts [S, B, b] of known slices and their probabilities without noise, by least squares. Blocks
    of a site are much alike, so each is drawn towards their mean by what its counts leave open (James and Stein)."""
    read = np.array(frequencies, np.float64)
    _unread(read.reshape(-1, read.shape[-1]), inverse, read.shape[1])
    uniform = 1 / read.shape[-1]
    ideal = expected - uniform
    power = np.square(ideal).sum((0, 2))
    kept = (ideal * (read - uniform)).sum((0, 2)) / power
    if shots is not None and len(kept) > 3:
        open_ = (np.square(ideal) * expected).sum((0, 2)) / (shots * np.square(power))  # variance of counting
        mean = np.average(kept, weights=power)
        real = max(0.0, float(np.square(kept - mean).sum() / (len(kept) - 1) - open_.mean()))
        kept = mean + (kept - mean) * real / (real + open_)
    rates = Rates(inverse, np.clip(kept, LEAST_KEPT, 1.0))
    found = np.square(magnitudes(frequencies.astype(np.float64), rates))
    counting = expected * (1 - expected) / (shots * np.square(rates.kept[:, None])) if shots else 0.0
    return replace(rates, residual=max(0.0, float((np.square(found - expected) - counting).mean())))


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
    """Magnitudes with the signs of a reference of the same shape; sign(0) = +1."""
    out = np.empty_like(size)
    _signed(size.reshape(-1), reference.reshape(-1), out.reshape(-1))
    return out


def tally(
    x: Floats, product: Floats, estimates: Floats, norms: Floats, constrained: bool
) -> tuple[float, float, float, float, float]:
    """Of slices x [N, B, b], their products Q x, estimates of them and norms [N, B]: how many are not zero, channels
    whose sign the rotation changes, the sums of |estimate - Q x|^2 (of sign(x) |Qx| if constrained) and of |x|^2, and
    of the angle between x and Q x, radians."""
    sums, cosines = np.empty((len(x), 4)), np.empty_like(norms)
    x, product, estimates = (np.ascontiguousarray(a) for a in (x, product, estimates))
    _tally(x, product, estimates, norms, constrained, sums, cosines)
    slices, flips, error, power = sums.sum(0).tolist()  # per row before, so that threads do not decide on the order
    return slices, flips, error, power, float(np.arccos(cosines).sum(dtype=np.float64))


def left_open(precision: Any, other: Any) -> Any:
    """Mean square error [N, B] of estimates that two settings know with these precisions [N, B, b], entry by entry:
    the trace of (diag(precision) + R^T diag(other) R)^-1."""
    out = np.empty(precision.shape[:-1])
    dim = precision.shape[-1]
    mine, others = (np.asarray(a, np.float64).reshape(-1, dim) for a in (precision, other))
    _left_open(mine, others, rotation(dim.bit_length() - 1), out.reshape(-1))
    return out


def from_two_settings(
    size: Floats, turned: Floats, units: Floats, rates: Rates | None = None, shots: Shots | None = None
) -> Floats:
    """Unit estimates [N, B, b] from magnitudes in both settings of `shots` each, or [N, B], with the signs that explain
    them."""
    dim, blocks = size.shape[-1], size.shape[1]
    out, r = np.empty_like(size), rotation(dim.bit_length() - 1).astype(size.dtype)
    m, t, x = (np.ascontiguousarray(a, size.dtype).reshape(-1, dim) for a in (size, turned, units))
    signs = np.empty(m.shape, np.int8)
    if dim <= SMALL:
        _every_pattern(m, t, r, signs)
    else:
        _branched(m, t, rotation(dim.bit_length() - 2).astype(size.dtype) / 2**0.5, signs)
    kept, floor = (np.ones(blocks), 0.0) if rates is None else (rates.kept, rates.residual)
    counting = np.ravel(np.zeros(blocks) if shots is None else 1 / (np.maximum(shots, 1) * kept**2))
    _likeliest(m, t, signs, x, r.astype(float), counting, floor + 1e-6, out.reshape(-1, dim))
    return out


def beside_reference(units: Any, blocks: Floats) -> Any:
    """Unit slices [N, B, 2b] of unit slices x [N, B, b] and the reference amplitude, arrays or tensors alike."""
    beam = REFERENCE * blocks.swapaxes(1, 2) @ np.full(blocks.shape[-1], blocks.shape[-1] ** -0.5)
    scale = (2 * (1 + REFERENCE**2)) ** -0.5
    if isinstance(units, np.ndarray):
        both: Any = np.stack([beam.astype(units.dtype) + units, beam.astype(units.dtype) - units], -1)
    else:
        import torch

        amplitude = torch.as_tensor(beam).to(units)
        both = torch.stack([amplitude + units, amplitude - units], -1)
    return scale * both.reshape(*units.shape[:2], -1)


def from_reference(size: Any) -> Any:
    """Unit estimates [N, B, b] from magnitudes [N, B, 2b], arrays or tensors alike."""
    dim = size.shape[-1] // 2
    scale, known = (2 * (1 + REFERENCE**2)) ** 0.5, REFERENCE * dim**-0.5
    plus, minus = (scale * size.reshape(*size.shape[:2], dim, 2)[..., k] for k in (0, 1))
    total, difference = (plus + minus) / 2, (plus - minus) / 2
    small = abs(total - known) <= abs(abs(difference) - known)
    y = difference * small + (total * (difference >= 0) - total * (difference < 0)) * ~small
    return y / ((y * y).sum(-1)[..., None] + 1e-30) ** 0.5


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


@njit(cache=True, parallel=True)
def _signed(size, reference, out):  # type: ignore[no-untyped-def]
    for k in prange(len(size)):
        out[k] = -size[k] if reference[k] < 0 else size[k]


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract"})
def _tally(x, product, estimates, norms, constrained, sums, cosines):  # type: ignore[no-untyped-def]
    one = norms.dtype.type(1)
    for n in prange(len(x)):
        mine, meant, found = x[n].reshape(-1), product[n].reshape(-1), estimates[n].reshape(-1)
        flips, error, count, power = 0, 0.0, 0, 0.0
        for k in range(len(mine)):
            turned = (mine[k] < 0) != (meant[k] < 0)
            flips += turned
            off = found[k] + meant[k] if constrained and turned else found[k] - meant[k]
            error += off * off
        for j in range(x.shape[1]):
            square, overlap = norms[n, j] * norms[n, j], norms[n, j] * 0
            for k in range(x.shape[2]):
                overlap += x[n, j, k] * product[n, j, k]
            real = norms[n, j] > 0
            count += real
            power += square
            cosines[n, j] = min(max(overlap / square, -one), one) if real else one
        sums[n, 0], sums[n, 1], sums[n, 2], sums[n, 3] = count, flips, error, power


@njit(cache=True, parallel=True, error_model="numpy")
def _left_open(precision, other, r, out):  # type: ignore[no-untyped-def]
    """Cholesky's L of the matrix, and the squares of the entries of L^-1."""
    dim = precision.shape[1]
    for row in prange(len(out)):
        system, column, total = np.empty((dim, dim)), np.empty(dim), 0.0
        for a in range(dim):
            for b in range(a + 1):
                here = precision[row, a] if a == b else 0.0
                for k in range(dim):
                    here += r[k, a] * other[row, k] * r[k, b]
                for k in range(b):
                    here -= system[a, k] * system[b, k]
                system[a, b] = np.sqrt(here) if a == b else here / system[b, b]
        for b in range(dim):
            for a in range(b, dim):
                here = 1.0 if a == b else 0.0
                for k in range(b, a):
                    here -= system[a, k] * column[k]
                column[a] = here / system[a, a]
                total += column[a] * column[a]
        out[row] = total


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


@njit(cache=True)
def _turn(image, column, by, turned, found):  # type: ignore[no-untyped-def]
    """A sign turns: image += column x by, found = sum |image| turned. A function of its own, so that lanes become
    vectors."""
    found[:] = 0
    for k in range(image.shape[0]):
        change = column[k]
        for lane in range(LANES):
            value = image[k, lane] + change * by[lane]
            image[k, lane] = value
            found[lane] += abs(value) * turned[k, lane]


@njit(cache=True)
def _keep(found, best, pattern, chosen):  # type: ignore[no-untyped-def]
    """The better pattern so far."""
    for lane in range(LANES):
        better = found[lane] > best[lane]
        best[lane] = found[lane] if better else best[lane]
        chosen[lane] = pattern if better else chosen[lane]


@njit(cache=True, parallel=True)
def _every_pattern(size, turned, r, signs):  # type: ignore[no-untyped-def]
    """Rows in lanes: all walk through the same patterns, so that the inner loops run over rows."""
    rows, dim = size.shape
    columns = np.stack((2 * r.T, -2 * r.T), 1).astype(size.dtype)  # what a sign that turns to + or to - changes
    for chunk in prange(-(-rows // LANES)):
        first = chunk * LANES
        count = min(LANES, rows - first)
        shape = (dim, LANES)
        m, t, image = np.zeros(shape, size.dtype), np.zeros(shape, size.dtype), np.zeros(shape, size.dtype)
        best, found, chosen = np.zeros(LANES, size.dtype), np.zeros(LANES, size.dtype), np.zeros(LANES, np.int32)
        for lane in range(count):
            for k in range(dim):
                m[k, lane], t[k, lane] = size[first + lane, k], turned[first + lane, k]
        for k in range(dim):
            for a in range(dim):
                for lane in range(LANES):
                    image[k, lane] += r[k, a] * m[a, lane]
            for lane in range(LANES):
                best[lane] += abs(image[k, lane]) * t[k, lane]
        pattern = 0
        for step in range(1, 1 << (dim - 1)):
            flip = 0
            while not step >> flip & 1:
                flip += 1
            pattern ^= 1 << flip
            _turn(image, columns[flip, pattern >> flip & 1], m[flip], t, found)
            _keep(found, best, pattern, chosen)
        for lane in range(count):
            for k in range(dim):
                signs[first + lane, k] = -1 if chosen[lane] >> k & 1 else 1


@njit(cache=True, error_model="numpy")
def _images(size, first, r, image):  # type: ignore[no-untyped-def]
    """Images [h, 2^(h-1)] under R [h, h] of `size` from `first` on with each pattern of signs, the last one +: bit i of
    a pattern is set where sign i is -."""
    half, filled = r.shape[0], 1
    for k in range(half):
        image[k, 0] = r[k, half - 1] * size[first + half - 1]
    for a in range(half - 1):
        for k in range(half):
            change = r[k, a] * size[first + a]
            for pattern in range(filled):
                image[k, filled + pattern] = image[k, pattern] - change
                image[k, pattern] += change
        filled *= 2


@njit(cache=True, error_model="numpy")
def _distances(image, long, short, out):  # type: ignore[no-untyped-def]
    """Per pattern, the square distance of its image's magnitudes from the nearer of two."""
    out[:] = 0
    for k in range(image.shape[0]):
        for pattern in range(out.shape[0]):
            here = abs(image[k, pattern])
            off = min(abs(here - long[k]), abs(here - short[k]))
            out[pattern] += off * off


@njit(cache=True, error_model="numpy")
def _agreement(low, high, turned, a, c):  # type: ignore[no-untyped-def]
    """sum |image| turned of two halves' patterns, for both signs between the halves."""
    same, other, half = turned.dtype.type(0), turned.dtype.type(0), low.shape[0]
    for k in range(half):
        plus, minus = abs(low[k, a] + high[k, c]), abs(low[k, a] - high[k, c])
        same += turned[k] * minus + turned[half + k] * plus
        other += turned[k] * plus + turned[half + k] * minus
    return same, other


@njit(cache=True, error_model="numpy")
def _bounded(size, turned, r, signs):  # type: ignore[no-untyped-def]
    """The likeliest signs of one row, by branch and bound over halves (the module's docstring)."""
    half = size.shape[0] // 2
    count = 1 << (half - 1)
    low, high = np.empty((half, count), size.dtype), np.empty((half, count), size.dtype)
    off_low, off_high = np.empty(count, size.dtype), np.empty(count, size.dtype)
    _images(size, 0, r, low)
    _images(size, half, r, high)
    long, short = turned[half:] + turned[:half], np.abs(turned[half:] - turned[:half])
    _distances(low, long / 2, short / 2, off_low)
    _distances(high, long / 2, short / 2, off_high)
    a, c = np.argmin(off_low), np.argmin(off_high)
    power = (size * size).sum() / 2 + (turned * turned).sum() / 2
    best, chosen, sign = size.dtype.type(-1), 0, 1
    # the likeliest pair of nearest halves first, so that most of the rest need no look
    for turn in range(2):
        for i in range(a if turn == 0 else 0, a + 1 if turn == 0 else count):
            if power - off_low[i] - off_high[c] < best * (1 - SLACK):
                continue
            for j in range(c if turn == 0 else 0, c + 1 if turn == 0 else count):
                if power - off_low[i] - off_high[j] < best * (1 - SLACK):
                    continue
                same, other = _agreement(low, high, turned, i, j)
                if max(same, other) > best:
                    best, chosen, sign = max(same, other), j * count + i, 1 if same >= other else -1
    for k in range(half):
        signs[k] = -1 if chosen % count >> k & 1 else 1
        signs[half + k] = -sign if chosen // count >> k & 1 else sign


@njit(cache=True, parallel=True)
def _branched(size, turned, r, signs):  # type: ignore[no-untyped-def]
    for i in prange(size.shape[0]):
        _bounded(size[i], turned[i], r, signs[i])


@njit(cache=True, parallel=True)
def _likeliest(size, turned, signs, x, r, counting, floor, out):  # type: ignore[no-untyped-def]
    """y from both settings: their mean, then one scoring step with weights that follow it. Rows in lanes."""
    rows, dim = size.shape
    for chunk in prange(-(-rows // LANES)):
        first = chunk * LANES
        count = min(LANES, rows - first)
        shape = (dim, LANES)  # one array each: parts of a larger one are not vectorised
        m, t, y = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        image, weight, right = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        system, total, noise = np.zeros((dim, dim, LANES)), np.zeros(LANES), np.zeros(LANES)
        for lane in range(count):
            noise[lane] = counting[(first + lane) % len(counting)]
            for k in range(dim):
                m[k, lane], t[k, lane] = signs[first + lane, k] * size[first + lane, k], turned[first + lane, k]
        for k in range(dim):
            for a in range(dim):
                for lane in range(LANES):
                    image[k, lane] += r[k, a] * m[a, lane]
            for lane in range(LANES):
                t[k, lane] = t[k, lane] if image[k, lane] >= 0 else -t[k, lane]
        for a in range(dim):
            for lane in range(LANES):
                y[a, lane] = m[a, lane]
            for k in range(dim):
                for lane in range(LANES):
                    y[a, lane] += r[k, a] * t[k, lane]
            for lane in range(LANES):
                total[lane] += y[a, lane] * y[a, lane]
        for a in range(dim):
            for lane in range(LANES):
                y[a, lane] /= np.sqrt(total[lane] + 1e-30)
                p = y[a, lane] * y[a, lane]
                weight[a, lane] = p / (p * (1 - p) * noise[lane] + floor)
                system[a, a, lane] = weight[a, lane] + 1e-9
                right[a, lane] = weight[a, lane] * m[a, lane]
        image[:] = 0
        for k in range(dim):
            for a in range(dim):
                for lane in range(LANES):
                    image[k, lane] += r[k, a] * y[a, lane]
            for lane in range(LANES):
                p = image[k, lane] * image[k, lane]
                weight[k, lane] = p / (p * (1 - p) * noise[lane] + floor)
            for a in range(dim):
                for lane in range(LANES):
                    right[a, lane] += r[k, a] * weight[k, lane] * t[k, lane]
                for b in range(a + 1):
                    both = r[k, a] * r[k, b]
                    for lane in range(LANES):
                        system[a, b, lane] += both * weight[k, lane]
        for a in range(dim):  # Cholesky, forwards, backwards
            for b in range(a + 1):
                for k in range(b):
                    for lane in range(LANES):
                        system[a, b, lane] -= system[a, k, lane] * system[b, k, lane]
                for lane in range(LANES):
                    here = system[a, b, lane]
                    system[a, b, lane] = np.sqrt(max(here, 1e-12)) if a == b else here / system[b, b, lane]
            for k in range(a):
                for lane in range(LANES):
                    right[a, lane] -= system[a, k, lane] * right[k, lane]
            for lane in range(LANES):
                right[a, lane] /= system[a, a, lane]
        total[:] = 0
        for a in range(dim - 1, -1, -1):
            for k in range(a + 1, dim):
                for lane in range(LANES):
                    right[a, lane] -= system[k, a, lane] * right[k, lane]
            for lane in range(LANES):
                right[a, lane] /= system[a, a, lane]
                total[lane] += right[a, lane] * right[a, lane]
        for lane in range(count):
            overlap = 0.0
            for a in range(dim):
                overlap += right[a, lane] * x[first + lane, a]
            scale = (1 if overlap >= 0 else -1) / np.sqrt(total[lane] + 1e-30)
            for a in range(dim):
                out[first + lane, a] = scale * right[a, lane]
