"""Block circuits: prepare x/|x| on n qubits, apply Q, measure; the gates are those of the places they get.

    block_circuits(blocks, edges, synthesis)     Circuits of many blocks on one coupling
    to_qiskit(circuits, j, angles)               what a processor is sent; angles free if None

Two ways to write Q (`synthesis`): "line", exact RY and CZ on the coupling's own edges (quantum/synthesis.py), up to
four qubits (twice as many CZ for rotations of less than about 1e-4, where that form is singular); "qiskit", the Cartan
decomposition for n = 2 and quantum Shannon decomposition beyond, transpiled to the coupling at level 3. Blocks of
determinant -1, and n > 4, are Qiskit's, which is exact to 1e-9 far from the identity and to 1e-4 near it. The
preparation is quantum/preparation.py's; its last RY and Q's first on a qubit are one.

Basis of a processor: {rz, sx, x, cz}; RY(t) = rz(pi) sx rz(t + pi) sx, right to left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import special_ortho_group

from qrun.errors import InputError
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.gates import BASIS, CZ, RY, RZ, SX, X
from qrun.quantum.preparation import Preparation, Step, preparation
from qrun.quantum.synthesis import CZS, Ansatz, Edges, ansatz, synthesise_angles

COLUMNS = ("kind", "first", "second", "angle", "parameter")


@dataclass(frozen=True)
class Circuits:
    """Circuits of B blocks, their gates one after another. Block j is written for coupling shape[j] of its wiring's.

    kind, first, second (-1 for one-qubit gates) [G]; angle [G] of rz and ry; parameter [G]: the angle of the slice that
    is added, or -1. Block j has gates offsets[j] to offsets[j + 1]; from split[j] on no gate has a parameter. Bit i of
    the index of block j's outcome is read from qubit wires[j, i].
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
        return Circuits(self.qubits, self.shape[chosen], self.wires[chosen], offsets, split, *columns)

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
        return Circuits(n, self.shape, self.wires, self.offsets + grown, self.split + grown[:-1], *columns)

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


def block_circuits(blocks: Floats, edges: Edges, synthesis: str = "line") -> Circuits:
    """Circuits of orthogonal blocks [B, b, b] on qubits coupled by `edges`. Global phases are dropped."""
    n = qubits(blocks.shape[-1])
    check_orthogonal(blocks)
    left, _, right = np.linalg.svd(np.asarray(blocks, float))
    prepared = preparation(n, edges)
    place = on_wires(n, prepared.wires)
    nearest = np.empty_like(left)  # float32 blocks are 1e-7 off the nearest orthogonal matrix
    nearest[:, place[:, None], place] = left @ right
    solved = np.zeros(len(blocks), bool)
    shape = ansatz(n, edges)
    proper = np.linalg.det(nearest) > 0
    angles = np.empty((len(blocks), n + 2 * len(shape.pairs)))
    if synthesis == "line" and n <= max(CZS) and proper.any():
        angles[proper], solved[proper] = synthesise_angles(nearest[proper], shape)
    pattern, rows = _joined(prepared, [shape])
    parts, wires = [], np.tile(np.array(prepared.wires), (len(blocks), 1))
    for j in range(len(blocks)):
        if solved[j]:
            table = pattern.copy()
            table[rows, 3] += angles[j]
        elif synthesis == "line" and proper[j] and shape.pairs and (two := _two_steps(nearest[j], shape)) is not None:
            table, at = _joined(prepared, [shape, shape])
            np.add.at(table[:, 3], at, two)
        else:
            found, moved = _qiskit(nearest[j], n, edges)
            table, wires[j] = np.vstack([_rows(prepared.steps), found]), np.array(moved)[wires[j]]
        parts.append(table)
    offsets = np.cumsum([0, *(len(table) for table in parts)])
    ends = [np.flatnonzero(table[:, 4] >= 0)[-1] + 1 for table in parts]
    split = offsets[:-1] + np.array(ends)
    kind, first, second, angle, parameter = np.concatenate(parts).T
    alike, on = np.zeros(len(blocks), np.int64), (first.astype(np.int8), second.astype(np.int8))
    gates = kind.astype(np.int8), *on, angle.copy(), parameter.astype(np.int16)
    return Circuits(n, alike, wires, offsets, split, *gates)


def joined(parts: Sequence[Circuits]) -> Circuits:
    """The blocks of all parts, each part of a coupling of its own."""
    starts = np.cumsum([0, *(len(part.kind) for part in parts)])[:-1]
    shape = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    wires = np.concatenate([part.wires for part in parts])
    moved = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=True)]
    split = [part.split + start for part, start in zip(parts, starts, strict=True)]
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS]
    offsets = np.append(np.concatenate(moved), len(columns[0]))
    return Circuits(parts[0].qubits, shape, wires, offsets, np.concatenate(split), *columns)


def _rows(steps: Sequence[Step]) -> NDArray[np.float64]:
    """Steps of RY and CZ as rows of COLUMNS."""
    kinds = [CZ if second >= 0 else RY for _, second, _, _ in steps]
    return np.array([(kind, a, b, t, k) for kind, (a, b, k, t) in zip(kinds, steps, strict=True)], float)


def _joined(prepared: Preparation, shapes: Sequence[Ansatz]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Preparation and the shapes of Q as rows of COLUMNS, neighbouring RY joined, and the row that each angle of the
    shapes is added to."""
    steps, rows = list(prepared.steps), []
    last = {q: i for i, (a, b, _, _) in enumerate(steps) for q in ((a, b) if b >= 0 else (a,))}
    for a, b in (gate for shape in shapes for gate in shape.gates()):
        if b < 0 and a in last and steps[last[a]][1] < 0:
            rows.append(last[a])
            continue
        last[a] = last[b if b >= 0 else a] = len(steps)
        if b < 0:
            rows.append(len(steps))
        steps.append((a, b, -1, 0.0))
    return _rows(steps), np.array(rows)


def _two_steps(matrix: NDArray[np.float64], shape: Ansatz) -> NDArray[np.float64] | None:
    """Angles of Q as (Q G) G^T, one shape each, with a fixed generic G: for rotations so small that one shape alone is
    not found. None if these are not found either."""
    other = generic_block(len(matrix))
    angles, solved = synthesise_angles(np.stack([other.T, matrix @ other]), shape)
    return angles.ravel() if solved.all() else None


def _qiskit(matrix: NDArray[np.float64], n: int, edges: Edges) -> tuple[NDArray[np.float64], list[int]]:
    """Q as rows of COLUMNS, by Qiskit, on the coupling, and the qubit that each qubit's state ends on."""
    from qiskit import QuantumCircuit, transpile
    from qiskit.circuit.library import CZGate, UnitaryGate
    from qiskit.synthesis import OneQubitEulerDecomposer, TwoQubitBasisDecomposer
    from qiskit.transpiler import CouplingMap

    if n == 1:
        circuit = OneQubitEulerDecomposer("ZSX")(matrix)
    elif n == 2:
        circuit = TwoQubitBasisDecomposer(CZGate(), euler_basis="ZSX")(matrix.astype(complex))
    else:
        whole = QuantumCircuit(n)
        whole.append(UnitaryGate(matrix), range(n))
        coupling = None if len(edges) == n * (n - 1) // 2 else CouplingMap([*edges, *((b, a) for a, b in edges)])
        options = {"basis_gates": list(BASIS[:4]), "optimization_level": 3, "seed_transpiler": 0}
        circuit = transpile(whole, coupling_map=coupling, initial_layout=range(n), **options)
        moved = circuit.layout.final_index_layout() if circuit.layout else list(range(n))
        return from_circuit(circuit), moved
    return from_circuit(circuit), list(range(n))


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
    return np.asarray(special_ortho_group.rvs(dim, random_state=np.random.default_rng(0)))


@cache
def generic(dim: int, edges: Edges, synthesis: str = "line") -> Circuits:
    """The circuit of a generic block, to be counted and judged."""
    return block_circuits(generic_block(dim)[None], edges, synthesis)
