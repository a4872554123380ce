"""Devices: who runs the block circuits. All take the same two calls and pass one conformance suite.

    prepared = device.prepare(blocks)                       blocks [B, b, b]; synthesis, transpilation, readout
                                                            matrices: once per set of blocks
    p = device.run(prepared, units, mask, key, first)       units [N, B, b] -> frequencies or probabilities [N, B, b]

shots     exact probabilities (Q x)^2, multinomial shots        noisy      gate-level noise, fast (simulator.py)
pennylane default.qubit, default.mixed, lightning.qubit         aer        Aer's density matrix, or pennylane-qiskit's
                                                                device
fake      SamplerV2 on a fake IBM backend, offline              ibm        SamplerV2 on a real one (hardware.py)

`shots=None` gives exact probabilities where the device can. Circuits of zero slices (mask False) are not run.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numba import njit, prange

from qrun.config.noise import Noise
from qrun.errors import InputError
from qrun.quantum.cache import BlockCache, digest
from qrun.quantum.circuits import Gates, append, append_preparation, check_orthogonal, synthesise
from qrun.quantum.encoding import Floats, preparation_angles, qubits
from qrun.quantum.noise import aer_noise_model
from qrun.quantum.sampling import sample
from qrun.quantum.simulator import probabilities, readout_matrices

MOST_QUBITS = 6


class Device(ABC):
    """Common checks and shots. Subclasses give exact probabilities, or override `run` where only counts exist."""

    name = "device"

    def __init__(self, noise: Noise, shots: int | None, dtype: Any = np.float32) -> None:
        if shots is not None and shots < 1:
            raise InputError(f"device.shots={shots}: give 1 or more, or null for exact probabilities")
        self.noise, self.shots, self.dtype = noise, shots, dtype

    def prepare(self, blocks: Floats) -> Any:
        """Check the blocks and do what is needed once.

        Raises InputError for a b that is no circuit or a block that is not orthogonal.
        """
        n = qubits(blocks.shape[-1])
        if n > MOST_QUBITS:
            raise InputError(f"device={self.name}: blocks of {n} qubits; devices here run up to {MOST_QUBITS}")
        check_orthogonal(blocks)
        return self._prepare(np.asarray(blocks))

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, first: int) -> Floats:
        """Frequencies (probabilities without shots) [N, B, b].

        `key` and `first` place the circuits in their stream of shots.
        """
        p = self._probabilities(prepared, units, mask)
        return p if self.shots is None else sample(p, self.shots, key, first * units.shape[1])

    def _prepare(self, blocks: Floats) -> Any:
        return blocks

    @abstractmethod
    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats: ...


class ShotsDevice(Device):
    """No noise but that of counting."""

    name = "shots"

    def _prepare(self, blocks: Floats) -> Any:
        return blocks.astype(self.dtype)

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        out = np.empty(units.shape, self.dtype)
        _squares(prepared, np.ascontiguousarray(units, self.dtype), out)
        return out


class NoisyDevice(Device):
    """The fast simulator.

    Synthesised gates are kept on disk by Q's digest, readout matrices by that and the noise's.
    """

    name = "noisy"

    def __init__(
        self,
        noise: Noise,
        shots: int | None,
        dtype: Any = np.float32,
        cache: BlockCache | None = None,
        accelerator: str | None = None,
    ) -> None:
        super().__init__(noise, shots, dtype)
        self.cache = cache or BlockCache(None)
        self.accelerator = accelerator  # a torch device such as cuda; None is the compiled kernel on the processor

    def _prepare(self, blocks: Floats) -> Any:
        if blocks.shape[-1] <= 8:  # up to three qubits they are made faster than read
            return readout_matrices(self.gates(blocks), self.noise, self.dtype)
        key = f"{digest(blocks)}-{self.noise.digest}-{np.dtype(self.dtype).name}"
        return self.cache.array("readout", key, lambda: readout_matrices(self.gates(blocks), self.noise, self.dtype))

    def gates(self, blocks: Floats) -> list[Gates]:
        return self.cache.gates(digest(blocks), lambda: [synthesise(block) for block in blocks])

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        if self.accelerator is None:
            return probabilities(units, prepared, self.noise)
        import torch

        from qrun.quantum import accelerated

        tensors = [torch.as_tensor(array, device=self.accelerator) for array in (units, prepared)]
        return accelerated.probabilities(tensors[0], tensors[1], self.noise).cpu().numpy()


class PennyLaneDevice(Device):
    """PennyLane as a reference.

    Q as gates on default.mixed where there is noise, as a matrix on the pure-state devices where there is none.
    """

    name = "pennylane"

    def __init__(self, noise: Noise, shots: int | None, backend: str | None = None) -> None:
        super().__init__(noise, shots, np.float64)
        self.backend = backend or ("default.qubit" if _gates_ideal(noise) else "default.mixed")
        if self.backend not in ("default.qubit", "default.mixed", "lightning.qubit"):
            raise InputError(f"device.backend={self.backend}: use default.qubit, default.mixed or lightning.qubit")
        if self.backend != "default.mixed" and not _gates_ideal(noise):
            raise InputError(f"device.backend={self.backend}: pure states cannot hold gate noise; use default.mixed")

    def _prepare(self, blocks: Floats) -> Any:
        return [(block, synthesise(block)) for block in blocks]

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        import pennylane as qml

        from qrun.quantum.pennylane import block_tape

        n = qubits(units.shape[-1])
        device = qml.device(self.backend, wires=n)
        out = np.full(units.shape, 1 / 2**n)
        for j, (block, gates) in enumerate(prepared):
            node = qml.QNode(block_tape(block, gates, self.noise), device)
            rows = np.flatnonzero(mask[:, j])
            size = max(1, 2**16 // 4**n)
            for part in np.array_split(rows, max(1, -(-len(rows) // size))):
                if self.backend == "lightning.qubit":  # runs a broadcast circuit by circuit and is fastest that way
                    out[part, j] = [node(preparation_angles(units[i, j])) for i in part]
                elif len(part):
                    out[part, j] = node(preparation_angles(units[part, j]))
        return after_measurement(out, self.noise)


class AerDevice(Device):
    """Aer's density matrix with save_probabilities.

    `backend=pennylane` goes through pennylane-qiskit's device instead, one circuit at a time.
    """

    name = "aer"

    def __init__(self, noise: Noise, shots: int | None, backend: str | None = None) -> None:
        super().__init__(noise, shots, np.float64)
        self.backend = backend or "density_matrix"
        if self.backend not in ("density_matrix", "pennylane"):
            raise InputError(f"device.backend={self.backend}: use density_matrix or pennylane")
        self.model = aer_noise_model(noise)

    def _prepare(self, blocks: Floats) -> Any:
        return [synthesise(block) for block in blocks]

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        n = qubits(units.shape[-1])
        out = np.full(units.shape, 1 / 2**n)
        for j, gates in enumerate(prepared):
            rows = np.flatnonzero(mask[:, j])
            if len(rows):
                out[rows, j] = (self._pennylane if self.backend == "pennylane" else self._aer)(
                    gates, preparation_angles(units[rows, j]), n
                )
        return after_measurement(out, self.noise)

    def _aer(self, gates: Gates, angles: Floats, n: int) -> Floats:
        from qiskit import QuantumCircuit
        from qiskit_aer import AerSimulator

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

        from qrun.quantum.pennylane import block_tape

        device = qml.device("qiskit.aer", wires=n, noise_model=self.model, method="density_matrix")
        shots = self.shots or 8192
        node = qml.set_shots(qml.QNode(block_tape(None, gates, Noise()), device), shots)
        return np.array([node(row) for row in angles])

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, first: int) -> Floats:
        if self.backend != "pennylane":
            return super().run(prepared, units, mask, key, first)
        if self.shots is None:
            raise InputError(
                "device.shots=null: pennylane-qiskit's device only counts; use backend=density_matrix for exact "
                "probabilities"
            )
        return self._probabilities(prepared, units, mask)


def after_measurement(p: Floats, noise: Noise) -> Floats:
    """Global depolarising and readout errors on outcome probabilities [..., 2^n].

    What gate-level references leave out.
    """
    n = qubits(p.shape[-1])
    p = (1 - noise.block) * p + noise.block / 2**n
    up, down = noise.read_1_given_0, noise.read_0_given_1
    confusion = np.ones((1, 1))
    for _ in range(n):
        confusion = np.kron(np.array([[1 - up, down], [up, 1 - down]]), confusion)
    return p @ confusion.T


def _gates_ideal(noise: Noise) -> bool:
    return noise.sx == noise.cz == 0 and not noise.t1_us and not noise.t2_us


@njit(cache=True, parallel=True)
def _squares(blocks, units, out):  # type: ignore[no-untyped-def]
    """(Q_j x_nj)^2."""
    tokens, count, dim = units.shape
    for n in prange(tokens):
        for j in range(count):
            for a in range(dim):
                total = units.dtype.type(0)
                for b in range(dim):
                    total += blocks[j, a, b] * units[n, j, b]
                out[n, j, a] = total * total
