"""Block circuits as gates: preparation with bound or free angles, Q synthesised by Qiskit, both in the basis {rz, sx,
x, cz}.

    synthesise(Q)            Gates of one block, exact to 1e-9, transpiled once
    block_circuit(Q, x)      a Qiskit circuit: prepare x, apply Q, measure

Synthesis is Qiskit's: two-qubit blocks by the Cartan decomposition (2 CZ for SO(4)), larger ones by quantum Shannon
decomposition at transpiler level 3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import special_ortho_group

from qrun.errors import InputError
from qrun.quantum.encoding import Floats, gray_controls, preparation_angles, qubits

BASIS = ("rz", "sx", "x", "cz")
RZ, SX, X, CZ = range(4)


@dataclass(frozen=True)
class Gates:
    """A circuit in the basis as arrays. Kind [G], first and second qubit [G] (second -1 for one-qubit gates), angle [G]
    (rz only)."""

    qubits: int
    kind: NDArray[np.int8]
    first: NDArray[np.int8]
    second: NDArray[np.int8]
    angle: NDArray[np.float64]

    def counts(self) -> dict[str, int]:
        return {name: int((self.kind == index).sum()) for index, name in enumerate(BASIS)}


def check_orthogonal(blocks: Floats) -> None:
    """Raise InputError if a block [.., b, b] is not orthogonal to 1e-4: only unitary matrices are circuits."""
    finite = np.isfinite(blocks).all()
    error = np.abs(np.swapaxes(blocks, -1, -2) @ blocks - np.eye(blocks.shape[-1])).max() if finite else np.inf
    if not error < 1e-4:
        raise InputError(f"a block is not orthogonal (max|Q^T Q - I| = {error:.2g}) and so is no circuit")


def synthesise(block: Floats) -> Gates:
    """Gates of one orthogonal block [b, b]; global phase is dropped."""
    n = qubits(block.shape[0])
    check_orthogonal(block)
    left, _, right = np.linalg.svd(np.asarray(block, dtype=float))
    return from_circuit(_decompose(left @ right, n))  # the nearest orthogonal matrix: float32 blocks are 1e-7 off


def _decompose(matrix: NDArray[np.float64], n: int) -> Any:
    from qiskit import QuantumCircuit, transpile
    from qiskit.circuit.library import CZGate, UnitaryGate
    from qiskit.synthesis import OneQubitEulerDecomposer, TwoQubitBasisDecomposer

    if n == 1:
        return OneQubitEulerDecomposer("ZSX")(matrix)
    if n == 2:
        return TwoQubitBasisDecomposer(CZGate(), euler_basis="ZSX")(matrix.astype(complex))
    circuit = QuantumCircuit(n)
    circuit.append(UnitaryGate(matrix), range(n))
    return transpile(circuit, basis_gates=list(BASIS), optimization_level=3, seed_transpiler=0)


def from_circuit(circuit: Any) -> Gates:
    """Read a Qiskit circuit that is already in the basis."""
    rows = []
    for instruction in circuit.data:
        name = instruction.operation.name
        if name in ("barrier", "measure"):
            continue
        where = [circuit.find_bit(q).index for q in instruction.qubits]
        angle = float(instruction.operation.params[0]) if name == "rz" else 0.0
        rows.append((BASIS.index(name), where[0], where[1] if len(where) > 1 else -1, angle))
    columns = np.array(rows, float).reshape(-1, 4).T
    kind, first, second = columns[:3].astype(np.int8)
    return Gates(circuit.num_qubits, kind, first, second, columns[3].copy())


def append(circuit: Any, gates: Gates) -> None:
    """Append gates to a Qiskit circuit, qubit by qubit."""
    for kind, first, second, angle in zip(gates.kind, gates.first, gates.second, gates.angle, strict=True):
        if kind == RZ:
            circuit.rz(float(angle), int(first))
        elif kind == CZ:
            circuit.cz(int(first), int(second))
        else:
            (circuit.sx if kind == SX else circuit.x)(int(first))


def append_preparation(circuit: Any, angles: Any, on: list[int]) -> None:
    """The preparation with angles (numbers or free parameters): RY(t) = rz(pi) sx rz(t + pi) sx, right to left."""
    index = 0
    for level in range(len(on)):
        for control in gray_controls(level)[1]:
            if control >= 0:
                circuit.cz(on[control], on[level])
            circuit.sx(on[level])
            circuit.rz(angles[index] + np.pi, on[level])
            circuit.sx(on[level])
            circuit.rz(np.pi, on[level])
            index += 1


def block_circuit(block: Floats, unit: Floats | None = None, measure: bool = True) -> Any:
    """Prepare `unit` (free angles `t[0..]` if None), apply the block, measure in the Z basis."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    n = qubits(block.shape[0])
    circuit = QuantumCircuit(n)
    angles = ParameterVector("t", 2**n - 1) if unit is None else preparation_angles(unit)
    append_preparation(circuit, angles, list(range(n)))
    append(circuit, synthesise(block))
    if measure:
        circuit.measure_all()
    return circuit


def preparation_and_block_counts(dim: int) -> dict[str, int]:
    """CZ, SX (with X) and qubits of a block circuit as the simulator runs it: the preparation, then a generic block."""
    n = qubits(dim)
    block = special_ortho_group.rvs(dim, random_state=np.random.default_rng(0))
    counts = synthesise(np.asarray(block)).counts()
    return {"cz": 2**n - n - 1 + counts["cz"], "sx": 2 * (2**n - 1) + counts["sx"] + counts["x"], "qubits": n}
