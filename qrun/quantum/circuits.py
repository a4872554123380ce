"""Block circuits: prepare x/|x| on n qubits, apply Q, measure; the gates are those of the places they get.

    block_circuits(blocks, edges, synthesis)     Circuits of many blocks on one coupling
    to_qiskit(circuits, j, angles)               what a processor is sent; angles free if None

Ways to write Q (`synthesis`):

    line      exact RY and CZ on the coupling's own edges (quantum/synthesis.py), up to four qubits (twice as many CZ
              for rotations of less than about 1e-4, where that form is singular)
    qiskit    the Cartan decomposition for n = 2, quantum Shannon decomposition beyond, transpiled to the coupling at
              level 3; exact to 1e-9 far from the identity and to 1e-4 near it
    merged    n = 3: Q = Q' G with G of SO(4) on two qubits, done to the slice before it is encoded; Q' has 11 CZ for 14
    direct    Q x is encoded and Q has no gate: what preparation and reading alone would do, a control

Under line and merged a block of determinant -1 is one of determinant 1 and a reflection; n > 4 is Qiskit's. The
preparation is quantum/preparation.py's; its last RY and Q's first on a qubit are one.

`reference` adds a qubit, bit 0 of the index, that Q leaves alone (estimates.py's reference amplitude).

Basis of a processor: {rz, sx, x, cz}; RY(t) = rz(pi) sx rz(t + pi) sx, right to left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from qrun.errors import InputError
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.gates import BASIS, CZ, RY, RZ, SX, X
from qrun.quantum.preparation import Preparation, Step, preparation
from qrun.quantum.synthesis import CZS, MERGED, Ansatz, Edges, Written, ansatz, path, synthesise_angles, unitary

COLUMNS = ("kind", "first", "second", "angle", "parameter")


@dataclass(frozen=True)
class Circuits:
    """Circuits of B blocks, their gates one after another. Block j is written for coupling shape[j] of its wiring's.

    kind, first, second (-1 for one-qubit gates) [G]; angle [G] of rz and ry; parameter [G]: the angle of the slice that
    is added, or -1. Block j has gates offsets[j] to offsets[j + 1]; from split[j] on no gate has a parameter. Bit i of
    the index of block j's outcome is read from qubit wires[j, i]. What is encoded is before[j] x, if that is given.
    """

    qubits: int
    shape: NDArray[np.int64]
    wires: NDArray[np.int64]
    offsets: NDArray[np.int64]
    split: NDArray[np.int64]
    kind: NDArray[np.int8]
    first: NDArray[np.int8]
    second: NDArray[np.int8]
    angle: NDArray[np.float64]
    parameter: NDArray[np.int16]
    before: NDArray[np.float64] | None = None  # [B, 2^n, 2^n]

    def __len__(self) -> int:
        return len(self.split)

    def take(self, blocks: Sequence[int] | NDArray[np.integer]) -> "Circuits":
        """These blocks, in this order."""
        spans = [np.arange(self.offsets[j], self.offsets[j + 1]) for j in blocks]
        offsets = np.cumsum([0, *(len(span) for span in spans)])
        split = offsets[:-1] + (self.split - self.offsets[:-1])[np.asarray(blocks, int)]
        rows = np.concatenate(spans)
        columns = (getattr(self, name)[rows] for name in COLUMNS)
        chosen = np.asarray(blocks, int)
        before = None if self.before is None else self.before[chosen]
        found = Circuits(self.qubits, self.shape[chosen], self.wires[chosen], offsets, split, *columns)
        return replace(found, before=before)

    def encoded(self, units: Floats) -> Floats:
        """What is prepared [N, B, 2^n] for unit slices [N, B, 2^n]."""
        if self.before is None:
            return units
        return np.matmul(units.swapaxes(0, 1), self.before.swapaxes(1, 2).astype(units.dtype)).swapaxes(0, 1)

    def turned(self) -> "Circuits":
        """With RY(pi/2) on every qubit before the reading (estimates.py's second setting), one with a last RY."""
        n, blocks = self.qubits, np.repeat(np.arange(len(self)), np.diff(self.offsets))
        last = np.full((len(self), n), -1)
        for on in (self.first, self.second):
            acts = np.flatnonzero(on >= 0)
            np.maximum.at(last, (blocks[acts], on[acts]), acts)
        joins = (last >= 0) & (self.kind[last] == RY)
        angle = self.angle.copy()
        angle[last[joins]] += np.pi / 2
        block, qubit = np.nonzero(~joins)
        where, none = self.offsets[block + 1], np.full(len(block), -1)
        added = np.full(len(block), RY), qubit, none, np.full(len(block), np.pi / 2), none
        own: list[NDArray[Any]] = [self.kind, self.first, self.second, angle, self.parameter]
        columns: list[NDArray[Any]] = [np.insert(old, where, new) for old, new in zip(own, added, strict=True)]
        grown = np.append(0, np.cumsum((~joins).sum(1)))
        offsets, split = self.offsets + grown, self.split + grown[:-1]
        return replace(Circuits(n, self.shape, self.wires, offsets, split, *columns), before=self.before)

    def counts(self) -> dict[str, int]:
        """Gates of all blocks in the processor's basis; an ry is two sx and two rz."""
        found = np.bincount(self.kind, minlength=5)
        return {
            "rz": int(found[RZ] + 2 * found[RY]), "sx": int(found[SX] + 2 * found[RY]), "x": int(found[X]),
            "cz": int(found[CZ]),
        }  # fmt: skip

    def outcomes(self, block: int) -> NDArray[np.int64]:
        """Outcome, by qubits, [2^n] of each index of a slice."""
        return on_wires(self.qubits, self.wires[block])


def on_wires(n: int, wires: Sequence[int]) -> NDArray[np.int64]:
    """The index [2^n] whose bit wires[i] is bit i of the position."""
    index = np.arange(2**n)
    return np.bitwise_or.reduce([(index >> i & 1) << wire for i, wire in enumerate(wires)])


def check_orthogonal(blocks: Floats) -> None:
    """Raise InputError if a block [.., b, b] is not orthogonal to 1e-4: only unitary matrices are circuits."""
    finite = np.isfinite(blocks).all()
    error = np.abs(np.swapaxes(blocks, -1, -2) @ blocks - np.eye(blocks.shape[-1])).max() if finite else np.inf
    if not error < 1e-4:
        raise InputError(f"a block is not orthogonal (max|Q^T Q - I| = {error:.2g}) and so is no circuit")


def with_reference(blocks: Floats) -> NDArray[np.float64]:
    """Q on all bits of the index but the first, [B, 2b, 2b]."""
    return np.kron(blocks, np.eye(2)).astype(np.float64)


@dataclass(frozen=True)
class Frame:
    """The qubits of Q in a circuit: a coupling of their own, the circuit's qubit of each, and the qubit among them that
    has bit i of the index of Q."""

    edges: Edges
    qubits: tuple[int, ...]
    wires: tuple[int, ...]


def frame(prepared: Preparation, edges: Edges, reference: bool) -> Frame:
    """Of all qubits, or of those beside the reference, along a path. Raises InputError where they are no path."""
    if not reference:
        return Frame(edges, tuple(range(prepared.qubits)), prepared.wires)
    joined_by = {*edges, *((b, a) for a, b in edges)}
    for order in permutations(prepared.wires[1:]) if prepared.qubits <= 4 else ():
        if all(pair in joined_by for pair in pairwise(order)):
            return Frame(path(len(order)), order, tuple(order.index(wire) for wire in prepared.wires[1:]))
    raise InputError(
        f"adapter.dim={2 ** (prepared.qubits - 1)}: signs=reference has circuits for b = 2, 4 and 8 on a path"
    )


def block_circuits(
    blocks: Floats, edges: Edges, synthesis: str = "line", reference: bool = False, written: Written | None = None
) -> Circuits:
    """Circuits of orthogonal blocks [B, b, b] on qubits coupled by `edges`, one more than Q's with a reference. Global
    phases are dropped. `written` are circuits that the blocks have already: they are taken on a line that couples their
    qubits. Raises InputError for blocks or couplings that the synthesis does not have."""
    n = qubits(blocks.shape[-1]) + reference
    check_orthogonal(blocks)
    prepared = preparation(n, edges)
    own = frame(prepared, edges, reference)
    left, _, right = np.linalg.svd(np.asarray(blocks, float))
    exact = left @ right  # float32 blocks are 1e-7 off the nearest orthogonal matrix
    if synthesis == "direct":
        parts = [_rows(prepared.steps)] * len(blocks)
        wires = np.tile(np.array(prepared.wires), (len(blocks), 1))
        return _collected(n, parts, wires, with_reference(exact) if reference else exact)
    if synthesis == "merged":
        return _merged(exact, prepared, edges, reference)
    place = on_wires(n - reference, own.wires)
    nearest = np.empty_like(exact)
    nearest[:, place[:, None], place] = exact
    shape = ansatz(n - reference, own.edges)
    if written is not None and synthesis == "line" and suits(written[1], own):
        gates = [(own.wires[a], own.wires[b] if b >= 0 else -1) for a, b in written[1].gates()]
        table, rows = _joined(prepared, gates, own)
        parts = [table.copy() for _ in blocks]
        for part, angles in zip(parts, written[0], strict=True):
            np.add.at(part[:, 3], rows, angles)
        return _collected(n, parts, np.tile(np.array(prepared.wires), (len(blocks), 1)))
    solved, angles = np.zeros(len(blocks), bool), np.empty((len(blocks), shape.angles))
    reflected = solved.copy()
    if exactly := synthesis == "line" and n - reference <= max(CZS):
        reflected = np.linalg.det(nearest) < 0
        nearest[reflected, -1] *= -1  # Q = R P with P of determinant 1 and R = diag(1, .., 1, -1)
        angles, solved = synthesise_angles(nearest, shape)
    pattern, rows = _joined(prepared, shape.gates(), own)
    parts, wires = [], np.tile(np.array(prepared.wires), (len(blocks), 1))
    for j in range(len(blocks)):
        rest = [_reflection(n - reference, own.edges)] if reflected[j] else []
        if solved[j]:
            table = pattern.copy()
            table[rows, 3] += angles[j]
        elif exactly and (two := _two_steps(nearest[j], shape)) is not None:
            table, at = _joined(prepared, [*shape.gates(), *shape.gates()], own)
            np.add.at(table[:, 3], at, two)
        else:
            table = _rows(prepared.steps)
            rest = [_qiskit(nearest[j], n - reference, own.edges), *rest]
        for found, moved in rest:
            table, wires[j] = _followed(table, wires[j], found, moved, own)
        parts.append(table)
    return _collected(n, parts, wires)


def suits(shape: Ansatz, own: Frame) -> bool:
    """Whether an order of gates on bits runs on the qubits that have them."""
    coupled = {*own.edges, *((b, a) for a, b in own.edges)}
    return {(own.wires[a], own.wires[b]) for a, b in shape.pairs} <= coupled


def _merged(blocks: NDArray[np.float64], prepared: Preparation, edges: Edges, reference: bool) -> Circuits:
    """Q = Q' G on a path of three; where none is found G = 1 and Q' = Q."""
    if len(blocks[0]) != 8 or edges != path(3) or reference:
        raise InputError(
            f"device.circuit=merged: for b = 8 on a path, without a reference; b = {len(blocks[0])} has circuit=line"
        )
    angles, solved = synthesise_angles(blocks, MERGED)
    solved &= np.linalg.det(blocks) > 0
    first = Ansatz(3, MERGED.pairs[:2])
    gates = [gate for a, b in MERGED.pairs[2:] for gate in ((a, b), (a, -1), (b, -1))]
    pattern, rows = _joined(prepared, gates, frame(prepared, edges, False))
    before = np.where(solved[:, None, None], unitary(angles[:, : first.angles], first), np.eye(8))
    plain = block_circuits(blocks[~solved], edges) if not solved.all() else None
    parts, others, wires = [], iter(range(len(blocks))), np.tile(np.arange(3), (len(blocks), 1))
    for j in range(len(blocks)):
        table = pattern.copy()
        if solved[j]:
            np.add.at(table[:, 3], rows, angles[j, first.angles :])
        else:
            assert plain is not None
            one = plain.take([next(others)])
            wires[j] = one.wires[0]
            table = np.stack([getattr(one, name) for name in COLUMNS], 1).astype(float)
        parts.append(table)
    return _collected(3, parts, wires, before)


def _collected(
    n: int, parts: Sequence[NDArray[np.float64]], wires: NDArray[np.int64], before: NDArray[np.float64] | None = None
) -> Circuits:
    """Circuits of one coupling from their rows of COLUMNS."""
    offsets = np.cumsum([0, *(len(table) for table in parts)])
    ends = [np.flatnonzero(table[:, 4] >= 0)[-1] + 1 for table in parts]
    split = offsets[:-1] + np.array(ends)
    kind, first, second, angle, parameter = np.concatenate(parts).T
    alike, on = np.zeros(len(parts), np.int64), (first.astype(np.int8), second.astype(np.int8))
    gates = kind.astype(np.int8), *on, angle.copy(), parameter.astype(np.int16)
    return Circuits(n, alike, wires, offsets, split, *gates, before=before)


def joined(parts: Sequence[Circuits]) -> Circuits:
    """The blocks of all parts, each part of a coupling of its own."""
    starts = np.cumsum([0, *(len(part.kind) for part in parts)])[:-1]
    shape = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    wires = np.concatenate([part.wires for part in parts])
    moved = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=True)]
    split = [part.split + start for part, start in zip(parts, starts, strict=True)]
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS]
    offsets = np.append(np.concatenate(moved), len(columns[0]))
    before = [part.before for part in parts if part.before is not None]
    encoded = np.concatenate(before) if before else None
    found = Circuits(parts[0].qubits, shape, wires, offsets, np.concatenate(split), *columns)
    return replace(found, before=encoded)


def _rows(steps: Sequence[Step]) -> NDArray[np.float64]:
    """Steps of RY and CZ as rows of COLUMNS."""
    kinds = [CZ if second >= 0 else RY for _, second, _, _ in steps]
    return np.array([(kind, a, b, t, k) for kind, (a, b, k, t) in zip(kinds, steps, strict=True)], float)


def _joined(
    prepared: Preparation, gates: Sequence[tuple[int, int]], own: Frame
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Preparation and the gates of Q as rows of COLUMNS, neighbouring RY joined, and the row that each angle of the
    gates is added to."""
    steps, rows = list(prepared.steps), []
    last = {q: i for i, (a, b, _, _) in enumerate(steps) for q in ((a, b) if b >= 0 else (a,))}
    for a, b in ((own.qubits[a], own.qubits[b] if b >= 0 else -1) for a, b in gates):
        if b < 0 and a in last and steps[last[a]][1] < 0:
            rows.append(last[a])
            continue
        last[a] = last[b if b >= 0 else a] = len(steps)
        if b < 0:
            rows.append(len(steps))
        steps.append((a, b, -1, 0.0))
    return _rows(steps), np.array(rows)


def _followed(
    table: NDArray[np.float64], wires: NDArray[np.int64], found: NDArray[np.float64], moved: Sequence[int], own: Frame
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows of COLUMNS and wires once more gates on Q's qubits follow, which leave the state of qubit q on moved[q]."""
    qubits = np.array(own.qubits)
    there = found.copy()
    for column in (1, 2):
        there[:, column] = np.where(found[:, column] < 0, -1, qubits[found[:, column].astype(int)])
    ends = dict(zip(own.qubits, qubits[moved].tolist(), strict=True))
    return np.vstack([table, there]), np.array([ends.get(wire, wire) for wire in wires.tolist()])


@cache
def _reflection(n: int, edges: Edges) -> tuple[NDArray[np.float64], list[int]]:
    """diag(1, .., 1, -1), a CZ of all qubits, in whatever order they lie, and where their states end: 0, 1, 8 and 25
    (on a star 18) CZ for n = 1 to 4."""
    from qiskit.circuit.library import DiagonalGate

    signs = [1.0] * (2**n - 1) + [-1.0]
    return _qiskit(np.diag(signs), n, edges) if n < 3 else _transpiled(DiagonalGate(signs), n, edges)


def _two_steps(matrix: NDArray[np.float64], shape: Ansatz) -> NDArray[np.float64] | None:
    """Angles of Q as (Q G) G^T, one shape each, with a fixed generic G: for rotations so small that one shape alone is
    not found. None if these are not found either."""
    other = generic_block(len(matrix))
    angles, solved = synthesise_angles(np.stack([other.T, matrix @ other]), shape)
    return angles.ravel() if solved.all() else None


def _qiskit(matrix: NDArray[np.float64], n: int, edges: Edges) -> tuple[NDArray[np.float64], list[int]]:
    """Q as rows of COLUMNS, by Qiskit, on the coupling, and the qubit that each qubit's state ends on."""
    from qiskit.circuit.library import CZGate, UnitaryGate
    from qiskit.synthesis import OneQubitEulerDecomposer, TwoQubitBasisDecomposer

    if n == 1:
        circuit = OneQubitEulerDecomposer("ZSX")(matrix)
    elif n == 2:
        circuit = TwoQubitBasisDecomposer(CZGate(), euler_basis="ZSX")(matrix.astype(complex))
    else:
        return _transpiled(UnitaryGate(matrix), n, edges)
    return from_circuit(circuit), list(range(n))


def _transpiled(gate: Any, n: int, edges: Edges) -> tuple[NDArray[np.float64], list[int]]:
    """A gate on n > 2 qubits, as `_qiskit` gives it."""
    from qiskit import QuantumCircuit, transpile
    from qiskit.transpiler import CouplingMap

    whole = QuantumCircuit(n)
    whole.append(gate, range(n))
    coupling = None if len(edges) == n * (n - 1) // 2 else CouplingMap([*edges, *((b, a) for a, b in edges)])
    options = {"basis_gates": list(BASIS[:4]), "optimization_level": 3, "seed_transpiler": 0}
    circuit = transpile(whole, coupling_map=coupling, initial_layout=range(n), **options)
    moved = circuit.layout.final_index_layout() if circuit.layout else list(range(n))
    return from_circuit(circuit), moved


def from_circuit(circuit: Any) -> NDArray[np.float64]:
    """A Qiskit circuit in the basis as rows of COLUMNS."""
    rows = []
    for instruction in circuit.data:
        name = instruction.operation.name
        if name in ("barrier", "measure"):
            continue
        where = [circuit.find_bit(q).index for q in instruction.qubits]
        angle = float(instruction.operation.params[0]) if name == "rz" else 0.0
        rows.append((BASIS.index(name), where[0], where[1] if len(where) > 1 else -1, angle, -1))
    return np.array(rows, float).reshape(-1, 5)


def to_qiskit(circuits: Circuits, block: int, angles: Any = None, measure: bool = True, waits: Any = None) -> Any:
    """The circuit of a block in the processor's basis, with the slice's angles [2^n - 1], or free `t[0..]`. Classical
    bit i is bit i of the slice's index. `waits` (places.Places.waits) become delays."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    n = circuits.qubits
    given = ParameterVector("t", 2**n - 1) if angles is None else [float(angle) for angle in angles]
    circuit = QuantumCircuit(n, n) if measure else QuantumCircuit(n)
    for g in range(circuits.offsets[block], circuits.offsets[block + 1]):
        kind, first, angle = circuits.kind[g], int(circuits.first[g]), float(circuits.angle[g])
        for side, qubit in enumerate((first, int(circuits.second[g]))):
            if waits is not None and waits[0][g, side] > 0:
                circuit.delay(waits[0][g, side], qubit, unit="ns")
        if kind == RY:
            turn = angle + (given[circuits.parameter[g]] if circuits.parameter[g] >= 0 else 0)
            circuit.sx(first)
            circuit.rz(turn + np.pi, first)
            circuit.sx(first)
            circuit.rz(np.pi, first)
        elif kind == RZ:
            circuit.rz(angle, first)
        elif kind == CZ:
            circuit.cz(first, int(circuits.second[g]))
        else:
            (circuit.sx if kind == SX else circuit.x)(first)
    for qubit in range(n):
        if waits is not None and waits[1][block, qubit] > 0:
            circuit.delay(waits[1][block, qubit], qubit, unit="ns")
    if measure:
        circuit.measure(circuits.wires[block].tolist(), range(n))
    return circuit


def generic_block(dim: int) -> NDArray[np.float64]:
    """A Haar-random block, always the same."""
    return np.asarray(scipy.stats.special_ortho_group.rvs(dim, random_state=np.random.default_rng(0)))


def generic_written(shape: Ansatz) -> tuple[NDArray[np.float64], Written]:
    """A block [1, b, b] of random angles, always the same, and its circuit."""
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (1, shape.angles))
    return unitary(angles, shape), (angles, shape)


@cache
def generic(
    dim: int, edges: Edges, synthesis: str = "line", reference: bool = False, shape: Ansatz | None = None
) -> Circuits:
    """The circuit of a generic block, or of random angles in an order of gates, to be counted and judged."""
    block, written = generic_written(shape) if shape else (generic_block(dim)[None], None)
    return block_circuits(block, edges, synthesis, reference, written)
