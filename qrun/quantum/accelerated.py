"""The fast simulator in torch, for a GPU: the mathematics of simulator.py, one tensor operation per gate over all
circuits at once.

loaded = load(prepared, device)      what blocks and places say, brought to the GPU once
probabilities(units, loaded)         units on the same GPU
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.quantum.circuits import Circuits
from qrun.quantum.kernels import SIGN, SOURCE
from qrun.quantum.simulator import Prepared

STATE = 2**28  # numbers of a Pauli state held at once
ITEMS = 6  # of them needed at once, at most


@dataclass(frozen=True)
class Step:
    """A gate of the preparation, the same for all blocks of a coupling. `digits`: its qubits in the state; `joins`: how
    many it brings in; `waits`: transverse and longitudinal decay [B'] of each, if any waits; `noise`: its rates;
    `turn`: exp(i angle) of an RY; `source`, `sign`: where a CZ takes each string from."""

    digits: tuple[int, ...]
    joins: int
    waits: tuple[tuple[Tensor, Tensor] | None, ...]
    noise: tuple[Tensor, ...]
    parameter: int = -1
    turn: Tensor | None = None
    source: Tensor | None = None
    sign: Tensor | None = None


@dataclass(frozen=True)
class Form:
    """The blocks `here` that have one coupling, and the steps before Q."""

    here: Tensor
    schmidt: bool
    masks: Sequence[Sequence[int]]
    steps: Sequence[Step]


@dataclass(frozen=True)
class Loaded:
    """simulator.Prepared on a GPU."""

    circuits: Circuits
    matrices: Tensor
    forms: Sequence[Form]
    before: Tensor | None


def load(prepared: Prepared, device: str | torch.device) -> Loaded:
    """Bring blocks and noise to a device."""
    matrices = torch.as_tensor(prepared.matrices, device=device)
    shapes = [np.flatnonzero(prepared.circuits.shape == index) for index in range(len(prepared.preparations))]
    forms = [_form(prepared, index, here, matrices) for index, here in enumerate(shapes) if len(here)]
    before = prepared.circuits.before
    return Loaded(prepared.circuits, matrices, forms, None if before is None else torch.as_tensor(before).to(matrices))


def _form(prepared: Prepared, shape: int, here: NDArray[np.int64], like: Tensor) -> Form:
    def tensor(values: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(values).to(like)

    circuits, preparation = prepared.circuits, prepared.preparations[shape]
    one, two, waiting = (tensor(table[here % len(prepared.places)]) for table in prepared.places.tables)
    joined: list[int] = []
    steps = []
    for number, (first, second, parameter, _) in enumerate(preparation.steps):
        gates = circuits.offsets[here] + number  # every block's circuit begins with these steps
        on = [first] if second < 0 else [first, second]
        new = [qubit for qubit in on if qubit not in joined]
        joined += new
        digits = tuple(joined.index(qubit) for qubit in on)
        waits: list[tuple[Tensor, Tensor] | None] = []
        for side, qubit in enumerate(on):
            waited = prepared.waits[gates, side]
            stay, coherent = torch.exp(-tensor(waited) * waiting[:, qubit].T)
            waits.append((coherent, stay) if waited.any() else None)
        if second < 0:
            angle = tensor(circuits.angle[gates])
            turn = torch.polar(torch.ones_like(angle), angle)
            steps.append(Step(digits, len(new), tuple(waits), (one[:, first].T,), parameter, turn))
        else:
            source, sign = _string_map(len(joined), digits, two[:, first, second, 3])
            noise = tuple(two[:, a, b, :3].T for a, b in ((first, second), (second, first)))
            steps.append(Step(digits, len(new), tuple(waits), noise, source=source, sign=sign))
    masks = [prepared.masks[shape, level, : 1 << level].tolist() for level in range(circuits.qubits)]
    return Form(torch.as_tensor(here, device=like.device), preparation.schmidt, masks, steps)


def _string_map(qubits: int, digits: tuple[int, ...], keep: Tensor) -> tuple[Tensor, Tensor]:
    """The string [4^n] that a CZ moves to each place, and its sign [4^n, 1, B'] with the noise on both together."""
    (first, second), index = digits, np.arange(4**qubits)
    a, b = index // 4**first % 4, index // 4**second % 4
    source = SOURCE[4 * a + b]
    rest = index - a * 4**first - b * 4**second
    moved = rest + source // 4 * 4**first + source % 4 * 4**second
    sign = torch.as_tensor(SIGN[4 * a + b]).to(keep)[:, None, None]
    together = torch.as_tensor((a > 0) | (b > 0), device=keep.device)[:, None, None]
    return torch.as_tensor(moved, device=keep.device), torch.where(together, sign * keep, sign)


def probabilities(units: Tensor, loaded: Loaded) -> Tensor:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n]."""
    blocks, strings, _ = loaded.matrices.shape
    rows = max(1, _room(units.device, loaded.matrices.dtype) // (strings * blocks))
    while True:
        try:
            return torch.cat([_measure(part.to(loaded.matrices.dtype), loaded) for part in units.split(rows)])
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


def _measure(units: Tensor, loaded: Loaded) -> Tensor:
    if loaded.before is not None:
        units = torch.einsum("jab,njb->nja", loaded.before, units)
    out = torch.empty_like(units)
    for form in loaded.forms:
        state = _prepare(units[:, form.here], form)
        out[:, form.here] = torch.einsum("snb,bsk->nbk", state, loaded.matrices[form.here])
    return out


def _prepare(units: Tensor, form: Form) -> Tensor:
    """Noisy prepared states [4^n, N, B'] as Pauli expectations."""
    tokens, blocks, _ = units.shape
    turns = _turns(units.permute(2, 0, 1), form)
    state = units.new_ones(1, tokens, blocks)
    for step in form.steps:
        for _ in range(step.joins):
            zero = torch.zeros_like(state)
            state = torch.cat([state, zero, zero, state])
        for digit, wait in zip(step.digits, step.waits, strict=True):
            if wait is not None:
                state = _own(state, digit, *wait, 1 - wait[1])
        if step.turn is not None:
            whole = step.turn * turns[step.parameter] if step.parameter >= 0 else step.turn.expand(tokens, blocks)
            state = _ry(state, step.digits[0], whole, step.noise[0])
        else:
            assert step.source is not None and step.sign is not None
            state = state[step.source] * step.sign
            for digit, noise in zip(step.digits, step.noise, strict=True):
                state = _own(state, digit, *noise)
    return state


def _turns(amplitudes: Tensor, form: Form) -> Tensor:
    """exp(i angle) of the slice's angles [2^n - 1, N, B] in circuit order, from amplitudes [2^n, N, B]."""
    n, parts = len(form.masks), []
    tree = [amplitudes]
    for _ in range(n - 1):
        half = tree[0].shape[0] // 2
        tree.insert(0, torch.hypot(tree[0][:half], tree[0][half:]))
    if form.schmidt:
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
        parts.append(node[list(form.masks[level])])
    return torch.cat(parts)


def _schmidt(x: Tensor) -> Tensor:
    """exp(i angle) [7, N, B] of the Schmidt form, from slices [8, N, B]: kernels.schmidt_turns, step for step."""
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
