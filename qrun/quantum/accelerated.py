"""The fast simulator in torch, for a GPU: the mathematics of simulator.py, one tensor operation per gate over all
circuits at once.

probabilities(units, prepared)       units on the GPU, the rest is brought there once
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.quantum.kernels import SIGN, SOURCE
from qrun.quantum.simulator import Prepared

STATE = 2**28  # numbers of a Pauli state held at once
ITEMS = 6  # of them needed at once, at most


def probabilities(units: Tensor, prepared: Prepared) -> Tensor:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n]."""
    matrices = torch.as_tensor(prepared.matrices, device=units.device)
    blocks, strings, _ = matrices.shape
    rows = max(1, _room(units.device, matrices.dtype) // (strings * blocks))
    while True:
        try:
            return torch.cat([_measure(part.to(matrices.dtype), matrices, prepared) for part in units.split(rows)])
        except torch.cuda.OutOfMemoryError:  # others use the device too
            if rows == 1:
                raise
            rows = max(1, rows // 2)
            torch.cuda.empty_cache()


def _room(device: torch.device, dtype: torch.dtype) -> int:
    """Numbers of a state that fit into what the device has free."""
    if device.type != "cuda":
        return STATE
    free, _ = torch.cuda.mem_get_info(device)
    return min(STATE, int(0.8 * free) // (ITEMS * dtype.itemsize))


def _measure(units: Tensor, matrices: Tensor, prepared: Prepared) -> Tensor:
    out = torch.empty_like(units)
    for shape in range(len(prepared.preparations)):
        here = np.flatnonzero(prepared.circuits.shape == shape)
        if len(here):
            state = _prepare(units[:, here], prepared, shape, here)
            out[:, here] = torch.einsum("snb,bsk->nbk", state, matrices[here])
    return out


def _prepare(units: Tensor, prepared: Prepared, shape: int, here: NDArray[np.int64]) -> Tensor:
    """Noisy prepared states [4^n, N, B'] as Pauli expectations, of the blocks `here` that have one coupling."""
    tokens, blocks, _ = units.shape
    circuits, preparation = prepared.circuits, prepared.preparations[shape]
    place = here % len(prepared.places)
    one, two, waiting = (
        torch.as_tensor(table[place], dtype=units.dtype, device=units.device) for table in prepared.places.tables
    )
    turns = _turns(units.permute(2, 0, 1), prepared, shape)
    state = units.new_ones(1, tokens, blocks)
    joined: list[int] = []
    for step, (first, second, parameter, _) in enumerate(preparation.steps):
        gates = circuits.offsets[here] + step  # every block's circuit begins with these steps
        waits = torch.as_tensor(prepared.waits[gates], dtype=units.dtype, device=units.device)
        on = [first] if second < 0 else [first, second]
        for side, qubit in enumerate(on):
            if qubit not in joined:
                joined.append(qubit)
                zero = torch.zeros_like(state)
                state = torch.cat([state, zero, zero, state])
            if prepared.waits[gates, side].any():
                stay, coherent = torch.exp(-waits[:, side] * waiting[:, qubit].T)
                state = _own(state, joined.index(qubit), coherent, stay, 1 - stay)
        if second < 0:
            angle = torch.as_tensor(circuits.angle[gates], dtype=units.dtype, device=units.device)
            turn = torch.polar(torch.ones_like(angle), angle)
            turn = turn * turns[parameter] if parameter >= 0 else turn.expand(tokens, blocks)
            state = _ry(state, joined.index(first), turn, one[:, first].T)
        else:
            a, b = joined.index(first), joined.index(second)
            state = _cz(state, a, b, two[:, first, second, 3])
            for qubit, other in ((first, second), (second, first)):
                transverse, longitudinal, shift, _ = two[:, qubit, other].T
                state = _own(state, joined.index(qubit), transverse, longitudinal, shift)
    return state


def _turns(amplitudes: Tensor, prepared: Prepared, shape: int) -> Tensor:
    """exp(i angle) of the slice's angles [2^n - 1, N, B] in circuit order, from amplitudes [2^n, N, B]."""
    n, parts = prepared.circuits.qubits, []
    tree = [amplitudes]
    for _ in range(n - 1):
        half = tree[0].shape[0] // 2
        tree.insert(0, torch.hypot(tree[0][:half], tree[0][half:]))
    if prepared.preparations[shape].schmidt:
        parts.append(_schmidt(tree[2]))
    for level in range(3 * len(parts), n):
        count = 1 << level
        left, right = tree[level][:count] + 0.0, tree[level][count:] + 0.0
        size = torch.hypot(left, right)
        node = torch.complex(torch.where(size > 0, left / size, 1), torch.where(size > 0, right / size, 0))
        node = node * node if level == 0 else node
        for _ in range(level - 1):
            node = torch.sqrt(node)
        step = 1
        while step < count:
            pairs = node.view(-1, 2, step, *node.shape[1:])
            u, v = pairs[:, 0], pairs[:, 1]
            node = torch.stack([u * v, u * v.conj()], 1).view(count, *node.shape[1:])
            step *= 2
        parts.append(node[prepared.masks[shape, level, :count].tolist()])
    return torch.cat(parts)


def _schmidt(x: Tensor) -> Tensor:
    """exp(i angle) [7, N, B] of the Schmidt form, from slices [8, N, B]: preparation.schmidt_turns, step for step."""
    a, b = x[0::2], x[1::2]
    turn = _unit((a * a).sum(0) - (b * b).sum(0), 2 * (a * b).sum(0))
    half = _half(turn)
    u, v = half.real * a + half.imag * b, half.real * b - half.imag * a
    first = torch.linalg.vector_norm(u, dim=0)
    u = u / first
    v = v - (u * v).sum(0) * u
    second = torch.linalg.vector_norm(v, dim=0)
    sizes = _unit(first, second)
    w = torch.where(second > 0, v / second, 0)
    m = torch.stack([
        -w[0] * u[3] + w[3] * u[0] - w[1] * u[2] + w[2] * u[1],
        -w[0] * u[1] + w[1] * u[0] - w[2] * u[3] + w[3] * u[2],
        -w[0] * u[2] + w[2] * u[0] - w[3] * u[1] + w[1] * u[3],
    ])  # fmt: skip
    length = torch.linalg.vector_norm(m, dim=0)
    m = torch.where(length > 0, m / length, m.new_tensor([0.0, 1.0, 0.0])[:, None, None])
    tilt, around = _unit(m[1], torch.hypot(m[0], m[2])), _unit(-m[0], m[2])
    c, h = _half(tilt), _half(around)
    lw, ly, lz, lx = c.real * h.real, c.real * h.imag, c.imag * h.real, c.imag * h.imag
    rw = lw * u[0] + lx * u[3] + ly * u[1] + lz * u[2]
    rx = lw * u[3] - lx * u[0] - ly * u[2] + lz * u[1]
    rz = lw * u[1] - ly * u[0] - lz * u[3] + lx * u[2]
    ry = lw * u[2] - lz * u[0] - lx * u[1] + ly * u[3]
    total, difference = _unit(rw, ry), _unit(rz, rx)
    middle = _unit(torch.hypot(rw, ry), torch.hypot(rz, rx))
    return torch.stack([
        sizes * sizes, turn, total * difference.conj(), middle * middle, tilt, around, total * difference,
    ])  # fmt: skip


def _unit(real: Tensor, imaginary: Tensor) -> Tensor:
    """The phase of a number, 1 for zero."""
    size = torch.hypot(real, imaginary)
    return torch.complex(torch.where(size > 0, real / size, 1), torch.where(size > 0, imaginary / size, 0))


def _half(turn: Tensor) -> Tensor:
    """The square root with real part of 0 or more."""
    large = torch.sqrt((1 + turn.real.abs()) / 2)
    small = turn.imag.abs() / (2 * large)
    near = turn.real >= 0
    return torch.complex(torch.where(near, large, small), torch.copysign(torch.where(near, small, large), turn.imag))


def _ry(state: Tensor, digit: int, turn: Tensor, rates: Tensor) -> Tensor:
    t, l, shift = rates  # noqa: E741
    i, x, y, z = _digit(state, digit)
    c, s = turn.real, turn.imag
    moved = [i, t * t * (x * c + z * s), t * (l * y + shift * i), l * t * (z * c - x * s) + shift * i]
    return torch.stack(moved, 1).view(state.shape)


def _own(state: Tensor, digit: int, transverse: Tensor, longitudinal: Tensor, shift: Tensor) -> Tensor:
    """A qubit's own noise, or its wait."""
    i, x, y, z = _digit(state, digit)
    return torch.stack([i, transverse * x, transverse * y, longitudinal * z + shift * i], 1).view(state.shape)


def _digit(state: Tensor, digit: int) -> tuple[Tensor, ...]:
    return state.view(-1, 4, 4**digit, *state.shape[1:]).unbind(1)


def _cz(state: Tensor, first: int, second: int, keep: Tensor) -> Tensor:
    index = np.arange(state.shape[0])
    a, b = index // 4**first % 4, index // 4**second % 4
    source = SOURCE[4 * a + b]
    rest = index - a * 4**first - b * 4**second
    moved = state[torch.as_tensor(rest + source // 4 * 4**first + source % 4 * 4**second, device=state.device)]
    sign = torch.as_tensor(SIGN[4 * a + b], dtype=state.dtype, device=state.device)[:, None, None]
    together = torch.as_tensor((a > 0) | (b > 0), device=state.device)[:, None, None]
    return moved * torch.where(together, sign * keep, sign)
