"""`device=aer`: Aer's density matrix as a reference, with the noise's Kraus operators as errors."""

from functools import reduce
from importlib.util import find_spec
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, kraus_error

from qrun.errors import InputError
from qrun.quantum.circuits import BASIS, Gates, append, append_preparation, synthesise
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, preparation_angles, qubits
from qrun.quantum.noise import Noise


def open(setting: Setting) -> Device:
    return AerDevice(setting.noise, setting.config.shots, setting.config.backend)


class AerDevice(Device):
    """Aer's density matrix with save_probabilities. `backend=pennylane` goes through pennylane-qiskit's device instead,
    one circuit at a time."""

    name = "aer"

    def __init__(self, noise: Noise, shots: int | None, backend: str | None = None) -> None:
        super().__init__(noise, shots, np.float64)
        self.backend = backend or "density_matrix"
        if self.backend not in ("density_matrix", "pennylane"):
            raise InputError(f"device.backend={self.backend}: use density_matrix or pennylane")
        if self.backend == "pennylane" and find_spec("pennylane_qiskit") is None:
            raise InputError("device.backend=pennylane: needs pennylane-qiskit: pip install 'qrun-adapters[plugin]'")
        self.model = aer_noise_model(noise)

    def _prepare(self, blocks: Floats) -> Any:
        return [synthesise(block) for block in blocks]

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        n = qubits(units.shape[-1])
        out = np.full(units.shape, 1 / 2**n)
        simulate = self._pennylane if self.backend == "pennylane" else self._aer
        for j, gates in enumerate(prepared):
            rows = np.flatnonzero(mask[:, j])
            if len(rows):
                out[rows, j] = simulate(gates, preparation_angles(units[rows, j]), n)
        return self.noise.measured(out)

    def _aer(self, gates: Gates, angles: Floats, n: int) -> Floats:
        simulator = AerSimulator(method="density_matrix", noise_model=self.model)
        circuits = []
        for row in angles:
            circuit = QuantumCircuit(n)
            append_preparation(circuit, row, list(range(n)))
            append(circuit, gates)
            circuit.save_probabilities()
            circuits.append(circuit)
        result = simulator.run(circuits).result()
        return np.array([result.data(i)["probabilities"] for i in range(len(circuits))])

    def _pennylane(self, gates: Gates, angles: Floats, n: int) -> Floats:
        import pennylane as qml

        from qrun.quantum.devices.pennylane import block_tape

        device = qml.device("qiskit.aer", wires=n, noise_model=self.model, method="density_matrix")
        shots = self.shots or 8192
        node = qml.set_shots(qml.QNode(block_tape(None, gates, Noise()), device), shots)
        return np.array([node(row) for row in angles])

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, first: int) -> Floats:
        if self.backend != "pennylane":
            return super().run(prepared, units, mask, key, first)
        if self.shots is None:
            possible = "use backend=density_matrix for exact probabilities"
            raise InputError(f"device.shots=null: pennylane-qiskit's device only counts; {possible}")
        return self._probabilities(prepared, units, mask)


def aer_noise_model(noise: Noise) -> Any:
    """The noise of gates for Aer; readout and `block` act on probabilities (`Noise.measured`)."""
    model = NoiseModel(basis_gates=list(BASIS))
    for count, gates in ((1, ["sx", "x"]), (2, ["cz"])):
        errors = [kraus_error(operators) for operators in noise.kraus(count)]
        if errors:
            model.add_all_qubit_quantum_error(reduce(lambda first, then: first.compose(then), errors), gates)
    return model
