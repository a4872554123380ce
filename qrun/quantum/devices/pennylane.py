"""`device=pennylane`: PennyLane as a reference, with the noise's Kraus operators as channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

from qrun.errors import InputError
from qrun.quantum.circuits import BASIS, CZ, Gates, synthesise
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, gray_controls, preparation_angles, qubits
from qrun.quantum.noise import Noise


def open(setting: Setting) -> Device:
    return PennyLaneDevice(setting.noise, setting.config.shots, setting.config.backend)


class PennyLaneDevice(Device):
    """PennyLane as a reference. Q as gates on default.mixed where there is noise, as a matrix on the pure-state devices
    where there is none."""

    name = "pennylane"

    def __init__(self, noise: Noise, shots: int | None, backend: str | None = None) -> None:
        super().__init__(noise, shots, np.float64)
        self.backend = backend or ("default.qubit" if noise.gates_ideal else "default.mixed")
        if self.backend not in ("default.qubit", "default.mixed", "lightning.qubit"):
            raise InputError(f"device.backend={self.backend}: use default.qubit, default.mixed or lightning.qubit")
        if self.backend != "default.mixed" and not noise.gates_ideal:
            raise InputError(f"device.backend={self.backend}: pure states cannot hold gate noise; use default.mixed")

    def _prepare(self, blocks: Floats) -> Any:
        return [(block, synthesise(block)) for block in blocks]

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
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
        return self.noise.measured(out)


def block_tape(block: Floats | None, gates: Gates, noise: Noise) -> Callable[[Any], Any]:
    """angles [..., 2^n - 1] -> probabilities [..., 2^n]. Without noise and with `block`, RY and Q stay whole; otherwise
    physical gates, each with its noise."""
    errors = {qubits: noise.kraus(qubits) for qubits in (1, 2)}
    n, whole = gates.qubits, block is not None and noise.gates_ideal

    def noisy(gate: Any, wires: list[int]) -> None:
        gate(wires=wires)
        for operators in errors[len(wires)]:
            qml.QubitChannel(operators, wires=wires)

    def circuit(angles: Any) -> Any:
        index = 0
        for level in range(n):
            for control in gray_controls(level)[1]:
                if control >= 0:
                    noisy(qml.CZ, [control, level])
                if whole:
                    qml.RY(angles[..., index], wires=level)
                else:
                    for angle in (angles[..., index] + np.pi, np.pi):
                        noisy(qml.SX, [level])
                        qml.RZ(angle, wires=level)
                index += 1
        if whole:
            qml.QubitUnitary(block, wires=range(n)[::-1])
        else:
            for kind, first, second, angle in zip(gates.kind, gates.first, gates.second, gates.angle, strict=True):
                if kind == CZ:
                    noisy(qml.CZ, [int(first), int(second)])
                elif BASIS[kind] == "rz":
                    qml.RZ(angle, wires=int(first))
                else:
                    noisy(qml.SX if BASIS[kind] == "sx" else qml.PauliX, [int(first)])
        return qml.probs(wires=range(n)[::-1])

    return circuit
