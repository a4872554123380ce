"""`device=aer`: Aer's density matrix as a reference, every gate with its noise's Kraus operators."""

from functools import reduce
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qrun.errors import InputError
from qrun.quantum.circuits import Circuits
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.gates import BASIS, CZ, RY, RZ, SX
from qrun.quantum.noise import Noise
from qrun.quantum.places import Error, Places, everywhere
from qrun.quantum.synthesis import Written
from qrun.quantum.wiring import Wiring

try:
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel, kraus_error
except ImportError as error:
    raise InputError("device=aer: needs Qiskit Aer: pip install 'qrun-adapters[references]'") from error


def open(setting: Setting) -> Device:
    return AerDevice(setting.wiring, setting.config.shots, setting.config.backend)


class AerDevice(Device):
    """Aer's density matrix with save_probabilities. `backend=pennylane` goes through pennylane-qiskit's device instead,
    one circuit at a time."""

    name = "aer"

    def __init__(self, wiring: Wiring, shots: int | None, backend: str | None = None) -> None:
        super().__init__(wiring, shots, np.float64)
        self.backend = backend or "density_matrix"
        if self.backend not in ("density_matrix", "pennylane"):
            raise InputError(f"device.backend={self.backend}: use density_matrix or pennylane")
        waits = wiring.noise.t1_us or wiring.noise.t2_us or wiring.noise.calibration
        if self.backend == "pennylane" and waits:
            possible = "its noise model knows gates and not what waits; use backend=density_matrix"
            raise InputError(f"device.backend=pennylane, noise={wiring.noise.name}: {possible}")
        if self.backend == "pennylane" and find_spec("pennylane_qiskit") is None:
            raise InputError(
                "device.backend=pennylane: needs pennylane-qiskit: pip install 'qrun-adapters[references]'"
            )

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> Circuits:
        return self.circuits(blocks, turned, written)

    def _probabilities(self, prepared: Circuits, units: Floats, mask: np.ndarray) -> Floats:
        n = qubits(units.shape[-1])
        places, preparations = self.places(n), self.wiring.preparations(n)
        simulate = self._pennylane if self.backend == "pennylane" else self._aer
        out = np.full(units.shape, 1 / 2**n)
        for j in range(len(prepared)):
            rows = np.flatnonzero(mask[:, j])
            if len(rows):
                found = simulate(prepared, j, preparations[prepared.shape[j]].angles(units[rows, j]), places)
                out[rows, j] = places.measured(found, prepared, j)
        return out

    def _aer(self, prepared: Circuits, block: int, angles: Floats, places: Places) -> NDArray[np.float64]:
        """All slices as bindings of one circuit: a hundred times the speed of a circuit each, the same numbers."""
        free = ParameterVector("t", angles.shape[1])
        circuit = noisy_circuit(prepared, block, free, places)
        circuit.save_probabilities()
        simulator = AerSimulator(method="density_matrix", runtime_parameter_bind_enable=True)
        values = {parameter: angles[:, k].tolist() for k, parameter in enumerate(free)}
        result = simulator.run([circuit], parameter_binds=[values]).result()
        return np.array([result.data(row)["probabilities"] for row in range(len(angles))])

    def _pennylane(self, prepared: Circuits, block: int, angles: Floats, places: Places) -> NDArray[np.float64]:
        import pennylane as qml

        from qrun.quantum.devices.pennylane import block_tape

        n = prepared.qubits
        quiet = everywhere(Noise(), n)  # the noise is in Aer's model
        model = noise_model(self.noise)
        device = qml.device("qiskit.aer", wires=n, noise_model=model, method="density_matrix")
        node = qml.set_shots(qml.QNode(block_tape(prepared, block, quiet, physical=True), device), self.shots)
        return np.array([node(row) for row in angles])

    def _run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        if self.backend != "pennylane":
            return super()._run(prepared, units, mask, key, numbers)
        if self.shots is None:
            possible = "use backend=density_matrix for exact probabilities"
            raise InputError(f"device.shots=null: pennylane-qiskit's device only counts; {possible}")
        return self._probabilities(prepared, units, mask)


def noisy_circuit(circuits: Circuits, block: int, angles: Any, places: Places) -> QuantumCircuit:
    """A block circuit with explicit errors around every gate, up to the reading; angles of a slice, or parameters."""
    waits, last = places.waits(circuits)
    circuit, place = QuantumCircuit(circuits.qubits), places.of(block)

    def act(errors: list[Error]) -> None:
        for on, operators in errors:
            # Qiskit counts the first qubit as the lowest; operators on both are the same with qubits exchanged
            circuit.append(kraus_error(operators).to_instruction(), on)

    for g in range(circuits.offsets[block], circuits.offsets[block + 1]):
        kind, first, second = circuits.kind[g], int(circuits.first[g]), int(circuits.second[g])
        before, after = places.errors(place, first, second, waits[g])
        act(before)
        turn = circuits.angle[g] + (angles[circuits.parameter[g]] if circuits.parameter[g] >= 0 else 0)
        if kind == CZ:
            circuit.cz(first, second)
            act(after)
        elif kind == RZ:
            circuit.rz(turn, first)
        elif kind == RY:
            for rotation in (turn + np.pi, np.pi):
                circuit.sx(first)
                act(after)
                circuit.rz(rotation, first)
        else:
            (circuit.sx if kind == SX else circuit.x)(first)
            act(after)
    for q in range(circuits.qubits):
        act([([q], operators) for operators in places.waiting(place, q, last[block, q])])
    return circuit


def noise_model(noise: Noise) -> NoiseModel:
    """The noise of gates, the same on all qubits."""
    model = NoiseModel(basis_gates=list(BASIS[:4]))
    for count, gates in ((1, ["sx", "x"]), (2, ["cz"])):
        errors = [kraus_error(operators) for operators in noise.kraus(count)]
        if errors:
            model.add_all_qubit_quantum_error(reduce(lambda first, then: first.compose(then), errors), gates)
    return model
