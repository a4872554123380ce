"""From slices to estimates without leaving a GPU: encoding.py, sampling.py and estimates.py in torch.

    normalise, sample, magnitudes, with_signs, from_two_settings, tally, left_open

Names, arguments and results are those of these modules.

Shots are drawn from the same streams by the same formulas in float64, so counts are those of the processor but where
an ulp of a logarithm decides. Formulas and their sources stand there; here all rows move together, and rows that are
done leave.
"""

from functools import cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.errors import InputError, RunFailed
from qrun.quantum.encoding import ZERO
from qrun.quantum.estimates import Rates, rotation

PATTERNS = 2**24  # patterns of signs held at once
GOLDEN, MIX, LAST = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64
START, SPREAD = 0xD1342543DE82EF95, 0xD6E8FEB86659FD93


def normalise(slices: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [..., b] and norms [...]; zero slices become the first basis state with norm 0."""
    largest = slices.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise InputError("a slice to encode is not finite (NaN or infinity in the hidden states)")
    empty = largest < ZERO
    units = slices / torch.where(empty, 1, largest)[..., None]
    sizes = torch.linalg.vector_norm(units, dim=-1)
    units = units / torch.where(empty, 1, sizes)[..., None]
    first = torch.eye(slices.shape[-1], dtype=slices.dtype, device=slices.device)[0]
    return torch.where(empty[..., None], first, units), torch.where(empty, 0, sizes * largest)


def sample(probabilities: Tensor, shots: int | Tensor, key: int, numbers: NDArray[np.int64]) -> Tensor:
    """Frequencies counts / shots of probabilities [N, B, b]; shots of all, or [N, B]; row n, block j is circuit
    numbers[n] B + j of the stream."""
    if not bool(torch.isfinite(probabilities).all()):
        raise RunFailed("a circuit's outcome probabilities are not finite; no shots are drawn from them")
    _, blocks, outcomes = probabilities.shape
    device = probabilities.device
    rows = torch.as_tensor(numbers, device=device)[:, None] * blocks + torch.arange(blocks, device=device)
    state = _mixed(_signed(key) ^ (rows.flatten() * _signed(START)))
    state = (state ^ _right(state, 32)) * _signed(SPREAD)
    state = state ^ _right(state, 32)
    p = probabilities.reshape(-1, outcomes).double().clamp(min=0)
    mass = torch.zeros_like(p[:, 0])
    for k in range(outcomes):
        mass = mass + p[:, k]
    each = torch.as_tensor(shots, device=device).expand(probabilities.shape[:2]).reshape(-1).clamp(min=1)
    left = each.clone()
    counts = torch.empty_like(p)
    for k in range(outcomes - 1):
        share = torch.where(mass > 0, (p[:, k] / mass).clamp(max=1), 1.0)
        count = torch.where((p[:, k] > 0) & (share >= 1), left, 0)
        draws = ((left > 0) & (p[:, k] > 0) & (share < 1)).nonzero()[:, 0]
        chance = share[draws]
        small = chance <= 0.5
        state[draws], drawn = _binomial(left[draws], torch.where(small, chance, 1 - chance), state[draws])
        count[draws] = torch.where(small, drawn, left[draws] - drawn)
        counts[:, k] = count
        left = left - count
        mass = mass - p[:, k]
    counts[:, -1] = left
    return (counts / each[:, None]).to(probabilities.dtype).view(probabilities.shape)


def _signed(word: int) -> int:
    """The 64 bits of a word as torch has them."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _right(z: Tensor, by: int) -> Tensor:
    """z >> by of unsigned words."""
    return z >> by & ((1 << 64 - by) - 1)


def _mixed(state: Tensor) -> Tensor:
    """A stream's next state."""
    return state + _signed(GOLDEN)


def _uniform(z: Tensor) -> Tensor:
    """In (0, 1), of a state."""
    z = (z ^ _right(z, 30)) * _signed(MIX)
    z = (z ^ _right(z, 27)) * _signed(LAST)
    return (_right(z ^ _right(z, 31), 11).double() + 0.5) * 2.0**-53


def _binomial(n: Tensor, p: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States after, and draws of Binomial(n, p) for 0 < p <= 1/2."""
    state, count = state.clone(), torch.zeros_like(n)
    few = n * p < 10
    for chosen, draw in ((few, _by_inversion), (~few, _by_rejection)):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            state[rows], count[rows] = draw(n[rows], p[rows], state[rows])
    return state, count


def _by_inversion(n: Tensor, p: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    ratio, mass = p / (1 - p), torch.exp(n * torch.log1p(-p))
    state = _mixed(state)
    u, k = _uniform(state), torch.zeros_like(n)
    more = (u > mass) & (k < n)
    while bool(more.any()):
        u = torch.where(more, u - mass, u)
        k = k + more
        mass = torch.where(more, mass * ratio * (n - k + 1) / k, mass)
        more = more & (u > mass) & (k < n)
    return state, k


def _by_rejection(n: Tensor, p: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    out, state, rows = torch.zeros_like(n), state.clone(), torch.arange(len(n), device=n.device)
    while len(rows):
        trials, chance = n[rows].double(), p[rows]
        spread = torch.sqrt(trials * chance * (1 - chance))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * chance
        first = _mixed(state[rows])
        state[rows] = second = _mixed(first)
        u, v = _uniform(first) - 0.5, _uniform(second)
        us = 0.5 - u.abs()
        k = torch.floor((2 * a / us + b) * u + trials * chance + 0.5)
        sure = (us >= 0.07) & (v <= 0.92 - 4.2 / b)
        mode = torch.floor((trials + 1) * chance)
        bound = (
            torch.lgamma(mode + 1) + torch.lgamma(trials - mode + 1) - torch.lgamma(k.clamp(min=0) + 1)
            - torch.lgamma((trials - k).clamp(min=0) + 1) + (k - mode) * torch.log(chance / (1 - chance))
        )  # fmt: skip
        tested = torch.log(v * (2.83 + 5.1 / b) * spread / (a / (us * us) + b)) <= bound
        taken = sure | ((k >= 0) & (k <= trials) & tested)
        out[rows[taken]] = k[taken].long()
        rows = rows[~taken]
    return state, out


def magnitudes(frequencies: Tensor, rates: Rates | None) -> Tensor:
    """sqrt of calibrated probabilities [N, B, b]; of the frequencies as they are without rates."""
    if rates is None:
        return frequencies.clamp(min=0).sqrt()
    shape, dim = frequencies.shape, frequencies.shape[-1]
    inverse, kept = (torch.tensor(a).to(frequencies) for a in (rates.inverse, rates.kept[:, None]))
    p = frequencies
    for bit in range(inverse.shape[1]):
        pairs = p.reshape(*shape[:2], -1, 2, 1 << bit)
        p = torch.einsum("jab,njubl->njual", inverse[:, bit], pairs).reshape(shape)
    p = (p - (1 - kept) / dim) / kept
    falling = p.sort(-1, descending=True).values
    shifts = (falling.cumsum(-1) - 1) / torch.arange(1, dim + 1, device=p.device)
    last = (falling > shifts).sum(-1, keepdim=True) - 1
    return (p - shifts.gather(-1, last)).clamp(min=0).sqrt()


def with_signs(size: Tensor, reference: Tensor) -> Tensor:
    """Magnitudes with the signs of a reference; sign(0) = +1."""
    return torch.where(reference < 0, -size, size)


def tally(
    x: Tensor, product: Tensor, estimates: Tensor, norms: Tensor, constrained: bool
) -> tuple[float, float, float, float, float]:
    """Slices, sign flips, square error, power and angles; one transfer from a GPU."""
    real, power = norms > 0, norms.square()
    meant = torch.where(x < 0, -product.abs(), product.abs()) if constrained else product
    angles = torch.arccos(((x * product).sum(-1) / torch.where(real, power, 1)).clamp(-1, 1))[real]
    sums = [
        real.sum(), ((product < 0) != (x < 0)).sum(), (estimates - meant).square().sum(dtype=torch.float64),
        power.sum(dtype=torch.float64), angles.sum(dtype=torch.float64),
    ]  # fmt: skip
    slices, flips, error, total, angle = torch.stack([part.double() for part in sums]).tolist()
    return slices, flips, error, total, angle


def left_open(precision: Tensor, other: Tensor) -> Tensor:
    """Mean square error [N, B] of estimates that two settings know with these precisions [N, B, b]."""
    r = torch.as_tensor(rotation(precision.shape[-1].bit_length() - 1)).to(precision)
    system = torch.diag_embed(precision) + torch.einsum("ka,njk,kb->njab", r, other, r)
    return cast(Tensor, torch.linalg.inv(system).diagonal(dim1=-2, dim2=-1).sum(-1))


@cache
def _patterns(dim: int) -> NDArray[np.float64]:
    """Signs [2^(b-1), b], the last one +."""
    return np.asarray(1.0 - 2 * (np.arange(2 ** (dim - 1))[:, None] >> np.arange(dim) & 1))


def _signs(m: Tensor, t: Tensor) -> Tensor:
    """The likeliest signs [R, b]: the images of all patterns of both halves, and every sum and difference of them."""
    half = m.shape[1] // 2
    r, patterns = (torch.as_tensor(a).to(m) for a in (rotation(half.bit_length() - 1) / 2**0.5, _patterns(half)))
    low, high = ((patterns * part[:, None]) @ r.T for part in m.split(half, 1))
    same = other = torch.zeros((), dtype=m.dtype, device=m.device)
    for k in range(half):
        plus, minus = ((low[:, :, None, k] + by * high[:, None, :, k]).abs() for by in (1, -1))
        first, second = t[:, k, None, None], t[:, half + k, None, None]
        same, other = same + first * minus + second * plus, other + first * plus + second * minus
    best = torch.stack([same, other], 1).flatten(1).argmax(1)
    sign = 1 - 2 * (best // len(patterns) ** 2)
    a, b = best // len(patterns) % len(patterns), best % len(patterns)
    return torch.cat([patterns[a], sign[:, None] * patterns[b]], 1)


def from_two_settings(
    size: Tensor, turned: Tensor, units: Tensor, rates: Rates | None = None, shots: int | Tensor | None = None
) -> Tensor:
    """Unit estimates [N, B, b] from magnitudes in both settings of `shots` each, or [N, B]."""
    dim, blocks = size.shape[-1], size.shape[1]
    r = torch.as_tensor(rotation(dim.bit_length() - 1)).to(size)
    kept, floor = (np.ones(blocks), 0.0) if rates is None else (rates.kept, rates.residual)
    open_ = torch.as_tensor(kept**-2.0, device=size.device)
    counting = 0 * open_ if shots is None else open_ / torch.as_tensor(shots, device=size.device).clamp(min=1)
    noise = counting.expand(size.shape[:2]).reshape(-1, 1)
    rows = max(1, PATTERNS // 2**dim)
    flat = [part.reshape(-1, dim).split(rows) for part in (size, turned, units)]
    parts = zip(*flat, noise.split(rows), strict=True)
    return torch.cat([_joint(m, t, x, r, v, floor + 1e-6) for m, t, x, v in parts]).view(size.shape)


def _joint(m: Tensor, t: Tensor, x: Tensor, r: Tensor, noise: Tensor, floor: float) -> Tensor:
    """Rows [R, b] of unit estimates: the likeliest signs, then one scoring step of both settings' likelihoods."""
    a, turn, likely = (_signs(m, t) * m).double(), r.double(), t.double()
    v = torch.where(a @ turn.T >= 0, likely, -likely)
    y = a + v @ turn
    y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)

    def weights(z: Tensor) -> Tensor:
        p = z * z
        return p / (p * (1 - p) * noise + floor)

    own, other = weights(y), weights(y @ turn.T)
    system = torch.diag_embed(own + 1e-9) + torch.einsum("ka,rk,kb->rab", turn, other, turn)
    solved = torch.linalg.solve(system, own * a + (other * v) @ turn)
    overlap = (solved * x).sum(-1, keepdim=True)
    sign = torch.where(overlap >= 0, 1.0, -1.0)
    return cast(Tensor, (sign * solved / torch.linalg.vector_norm(solved, dim=-1, keepdim=True)).to(m.dtype))
