"""`device=pennylane`: PennyLane's simulators as references, and any device of an installed plugin.

    device=pennylane                                        default.qubit, or default.mixed where gates are noisy
    device=pennylane device.backend=lightning.qubit
    device=pennylane device.backend=braket.local.qubit device.options.backend=braket_sv
    device=pennylane device.backend=ionq.simulator          a plugin's own shots; its account from the environment

Simulators of PennyLane itself give exact probabilities, and shots are drawn by the program's own seeded streams; other
devices draw their own. `device.options.<word>` are keyword arguments of the device.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
from numpy.typing import NDArray

from qrun.errors import InputError, RunFailed
from qrun.quantum.circuits import Circuits
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.gates import CZ, RY, RZ, SX
from qrun.quantum.places import Error, Places
from qrun.quantum.synthesis import Written
from qrun.quantum.wiring import Wiring

BROADCASTING = ("default.qubit", "default.mixed")  # run many slices as one circuit
EXACT = (*BROADCASTING, "lightning.qubit", "lightning.gpu", "lightning.kokkos", "reference.qubit")


def open(setting: Setting) -> Device:
    config = setting.config
    return PennyLaneDevice(setting.wiring, config.shots, config.backend, config.options)


class PennyLaneDevice(Device):
    """One PennyLane device. Gate noise needs default.mixed; readout errors and the circuit's one channel act on any
    simulator's probabilities, and on no plugin's counts."""

    name = "pennylane"

    def __init__(
        self, wiring: Wiring, shots: int | None, backend: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(wiring, shots, np.float64)
        ideal = wiring.noise.gates_ideal
        self.backend = backend or ("default.qubit" if ideal else "default.mixed")
        self.exact, self.options = self.backend in EXACT, options or {}
        if self.backend not in qml.plugin_devices:
            possible = f"installed are {', '.join(sorted(qml.plugin_devices))}"
            raise InputError(f"device.backend={self.backend}: no such PennyLane device; {possible}")
        if self.backend != "default.mixed" and not ideal:
            raise InputError(f"device.backend={self.backend}: cannot hold gate noise here; use default.mixed")
        if not self.exact and not wiring.noise.ideal:
            raise InputError(f"device.backend={self.backend}: has its own noise; use noise=none")
        if not self.exact and shots is None:
            raise InputError(f"device.shots=null: {self.backend} draws its own shots; give a number")

    def _open(self, n: int) -> Any:
        try:
            return qml.device(self.backend, wires=n, **self.options)
        except Exception as error:  # a plugin raises what it likes: missing packages, accounts, unknown words
            raise InputError(f"device.backend={self.backend}: {_line(error)}") from error

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> Circuits:
        self._open(self.wiring.qubits(blocks.shape[-1]))  # what cannot be opened is told before anything runs
        return self.circuits(blocks, turned, written)

    def _probabilities(self, prepared: Circuits, units: Floats, mask: np.ndarray) -> Floats:
        n = qubits(units.shape[-1])
        device, places, preparations = self._open(n), self.places(n), self.wiring.preparations(n)
        out = np.full(units.shape, 1 / 2**n)
        for j in range(len(prepared)):
            node = qml.QNode(block_tape(prepared, j, places), device)
            node = node if self.exact else qml.set_shots(node, self.shots)
            rows = np.flatnonzero(mask[:, j])
            size = max(1, 2**16 // 4**n)
            for part in np.array_split(rows, max(1, -(-len(rows) // size))):
                if len(part):
                    found = self._execute(node, preparations[prepared.shape[j]].angles(units[part, j]))
                    out[part, j] = places.measured(found, prepared, j)
        return out

    def _execute(self, node: Any, angles: Floats) -> NDArray[np.float64]:
        try:
            if self.backend in BROADCASTING:
                return np.asarray(node(angles))
            return np.array([node(row) for row in angles])
        except Exception as error:
            raise RunFailed(f"device.backend={self.backend}: {_line(error)}") from error

    def _run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        if self.exact:
            return super()._run(prepared, units, mask, key, numbers)
        return self._probabilities(prepared, units, mask)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def block_tape(circuits: Circuits, block: int, places: Places, physical: bool = False) -> Callable[[Any], Any]:
    """angles [..., 2^n - 1] -> probabilities [..., 2^n] of outcomes by qubits, before the reading. RY stays whole where
    nothing acts inside it, unless it shall be `physical`."""
    waits, last = places.waits(circuits)
    n, place = circuits.qubits, places.of(block)

    def act(errors: list[Error]) -> None:
        for wires, operators in errors:
            qml.QubitChannel(operators, wires=wires)

    def circuit(angles: Any) -> Any:
        for g in range(circuits.offsets[block], circuits.offsets[block + 1]):
            kind, first, second = circuits.kind[g], int(circuits.first[g]), int(circuits.second[g])
            before, after = places.errors(place, first, second, waits[g])
            act(before)
            turn = circuits.angle[g] + (angles[..., circuits.parameter[g]] if circuits.parameter[g] >= 0 else 0)
            if kind == CZ:
                qml.CZ(wires=[first, second])
                act(after)
            elif kind == RZ:
                qml.RZ(turn, wires=first)
            elif kind == RY and not after and not physical:
                qml.RY(turn, wires=first)
            elif kind == RY:
                for rotation in (turn + np.pi, np.pi):
                    qml.SX(wires=first)
                    act(after)
                    qml.RZ(rotation, wires=first)
            else:
                (qml.SX if kind == SX else qml.PauliX)(wires=first)
                act(after)
        for q in range(n):
            act([([q], operators) for operators in places.waiting(place, q, last[block, q])])
        return qml.probs(wires=range(n)[::-1])

    return circuit
