"""`device=pennylane`: PennyLane as a reference, with the noise's Kraus operators as channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

from qrun.errors import InputError
from qrun.quantum.circuits import CZ, RY, RZ, SX, Circuits
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.places import Error, Places
from qrun.quantum.wiring import Wiring


def open(setting: Setting) -> Device:
    return PennyLaneDevice(setting.wiring, setting.config.shots, setting.config.backend)


class PennyLaneDevice(Device):
    """PennyLane as a reference: default.mixed where there is noise, a pure-state device where there is none."""

    name = "pennylane"

    def __init__(self, wiring: Wiring, shots: int | None, backend: str | None = None) -> None:
        super().__init__(wiring, shots, np.float64)
        ideal = wiring.noise.gates_ideal
        self.backend = backend or ("default.qubit" if ideal else "default.mixed")
        if self.backend not in ("default.qubit", "default.mixed", "lightning.qubit"):
            raise InputError(f"device.backend={self.backend}: use default.qubit, default.mixed or lightning.qubit")
        if self.backend != "default.mixed" and not ideal:
            raise InputError(f"device.backend={self.backend}: pure states cannot hold gate noise; use default.mixed")

    def _prepare(self, blocks: Floats) -> Circuits:
        return self.wiring.circuits(blocks)

    def _probabilities(self, prepared: Circuits, units: Floats, mask: np.ndarray) -> Floats:
        n = qubits(units.shape[-1])
        device = qml.device(self.backend, wires=n)
        places, preparation = self.places(n), self.wiring.preparation(n)
        out = np.full(units.shape, 1 / 2**n)
        for j in range(len(prepared)):
            node = qml.QNode(block_tape(prepared, j, places), device)
            rows = np.flatnonzero(mask[:, j])
            size = max(1, 2**16 // 4**n)
            for part in np.array_split(rows, max(1, -(-len(rows) // size))):
                if not len(part):
                    continue
                angles = preparation.angles(units[part, j])
                if self.backend == "lightning.qubit":  # runs a broadcast circuit by circuit and is fastest that way
                    found = np.array([node(row) for row in angles])
                else:
                    found = np.asarray(node(angles))
                out[part, j] = places.measured(found, prepared, j)
        return out


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
