"""The fast simulator in torch, for a GPU: the mathematics of simulator.py, one tensor operation per gate over all
circuits at once.

probabilities(units, matrices, noise)       tensors on one device, in the dtype of `matrices`
"""

import numpy as np
import torch
from torch import Tensor

from qrun.quantum.encoding import gray_controls
from qrun.quantum.noise import Noise, Rates
from qrun.quantum.simulator import SIGN, SOURCE

STATE = 2**28  # numbers of a Pauli state held at once


def probabilities(units: Tensor, matrices: Tensor, noise: Noise) -> Tensor:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n] under O [B, 4^n, 2^n]."""
    blocks, strings, _ = matrices.shape
    rows = max(1, STATE // (strings * blocks))
    return torch.cat([_measure(part.to(matrices.dtype), matrices, noise) for part in units.split(rows)])


def _measure(units: Tensor, matrices: Tensor, noise: Noise) -> Tensor:
    tokens, blocks, dim = units.shape
    state = _prepare(units.reshape(-1, dim).T.contiguous(), noise)
    return torch.einsum("snb,bsk->nbk", state.view(-1, tokens, blocks), matrices)


def _prepare(amplitudes: Tensor, noise: Noise) -> Tensor:
    """Noisy prepared states [4^n, L] as Pauli expectations, from amplitudes [2^n, L]."""
    n = amplitudes.shape[0].bit_length() - 1
    tree = [amplitudes]
    for _ in range(n - 1):
        half = tree[0].shape[0] // 2
        tree.insert(0, torch.hypot(tree[0][:half], tree[0][half:]))
    state = torch.ones_like(amplitudes[:1])
    one, two = noise.rates(1), noise.rates(2)
    for level in range(n):
        zero = torch.zeros_like(state)
        state = torch.cat([state, zero, zero, state])
        turns = _turns(tree[level], level)
        for j, control in enumerate(gray_controls(level)[1]):
            if control >= 0:
                state = _cz(state, control, level, two)
            state = _ry(state, level, turns[j], one)
    return state


def _turns(weights: Tensor, level: int) -> Tensor:
    """exp(i angle) of the level's rotations in circuit order, [2^level, L] complex."""
    count = 1 << level
    left, right = weights[:count], weights[count:]
    size = torch.hypot(left, right)
    node = torch.complex(
        torch.where(size > 0, left / size, 1), torch.where(size > 0, right / size, 0)
    )  # by parts: the sign of a zero picks the branch
    node = node * node if level == 0 else node
    for _ in range(level - 1):
        node = torch.sqrt(node)
    step = 1
    while step < count:
        pairs = node.view(-1, 2, step, node.shape[-1])
        u, v = pairs[:, 0], pairs[:, 1]
        node = torch.stack([u * v, u * v.conj()], 1).view(count, -1)
        step *= 2
    return node[list(gray_controls(level)[0])]


def _ry(state: Tensor, qubit: int, turn: Tensor, rates: Rates) -> Tensor:
    t, l, shift = rates.transverse, rates.longitudinal, rates.shift  # noqa: E741
    i, x, y, z = state.view(4, 4**qubit, -1)
    c, s = turn.real, turn.imag
    return torch.cat([i, t * t * (x * c + z * s), t * (l * y + shift * i), l * t * (z * c - x * s) + shift * i])


def _cz(state: Tensor, control: int, qubit: int, rates: Rates) -> Tensor:
    index = np.arange(state.shape[0])
    a, b = index // 4**control % 4, index // 4**qubit % 4
    source = SOURCE[4 * a + b]
    rest = index - a * 4**control - b * 4**qubit
    factor = SIGN[4 * a + b] * np.where((a > 0) | (b > 0), rates.keep, 1.0)
    moved = state[torch.as_tensor(rest + source // 4 * 4**control + source % 4 * 4**qubit, device=state.device)]
    moved = moved * torch.as_tensor(factor, dtype=state.dtype, device=state.device)[:, None]
    for q in (control, qubit):
        i, x, y, z = moved.view(-1, 4, 4**q, state.shape[-1]).unbind(1)
        relaxed = [i, rates.transverse * x, rates.transverse * y, rates.longitudinal * z + rates.shift * i]
        moved = torch.stack(relaxed, 1).view(state.shape)
    return moved
