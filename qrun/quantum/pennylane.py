"""A block circuit as a PennyLane quantum function, with the project's noise as channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

from qrun.config.noise import Noise
from qrun.quantum.circuits import BASIS, CZ, Gates
from qrun.quantum.encoding import Floats, gray_controls


def block_tape(block: Floats | None, gates: Gates, noise: Noise) -> Callable[[Any], Any]:
    """angles [..., 2^n - 1] -> probabilities [..., 2^n].

    Without noise and with `block`, RY and Q stay whole; otherwise physical gates stand alone.
    """
    n, whole = gates.qubits, block is not None and noise.sx == noise.cz == 0 and not noise.t1_us and not noise.t2_us

    def circuit(angles: Any) -> Any:
        index = 0
        for level in range(n):
            for control in gray_controls(level)[1]:
                if control >= 0:
                    _cz(control, level, noise)
                if whole:
                    qml.RY(angles[..., index], wires=level)
                else:
                    for angle in (angles[..., index] + np.pi, np.pi):
                        _sx(level, noise)
                        qml.RZ(angle, wires=level)
                index += 1
        if whole:
            qml.QubitUnitary(block, wires=range(n)[::-1])
        else:
            for kind, first, second, angle in zip(gates.kind, gates.first, gates.second, gates.angle, strict=True):
                if kind == CZ:
                    _cz(int(first), int(second), noise)
                elif BASIS[kind] == "rz":
                    qml.RZ(angle, wires=int(first))
                else:
                    (_sx if BASIS[kind] == "sx" else _x)(int(first), noise)
        return qml.probs(wires=range(n)[::-1])

    return circuit


def _relax(wire: int, noise: Noise, nanoseconds: float) -> None:
    if (noise.t1_us or noise.t2_us) and nanoseconds:
        t1 = noise.t1_us * 1e3 if noise.t1_us else 1e15
        qml.ThermalRelaxationError(0.0, t1, noise.t2_us * 1e3 if noise.t2_us else 2 * t1, nanoseconds, wires=wire)


def _one_qubit(wire: int, noise: Noise) -> None:
    if noise.sx:
        qml.DepolarizingChannel(0.75 * 2 * noise.sx, wires=wire)
    _relax(wire, noise, noise.sx_ns)


def _sx(wire: int, noise: Noise) -> None:
    qml.SX(wires=wire)
    _one_qubit(wire, noise)


def _x(wire: int, noise: Noise) -> None:
    qml.PauliX(wires=wire)
    _one_qubit(wire, noise)


def _cz(control: int, target: int, noise: Noise) -> None:
    qml.CZ(wires=[control, target])
    if noise.cz:
        p = 4 * noise.cz / 3
        paulis = [np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]
        weights = np.full(16, p / 16)
        weights[0] = 1 - 15 * p / 16
        pairs = [np.kron(a, b) for a in paulis for b in paulis]
        qml.QubitChannel([np.sqrt(w) * pair for w, pair in zip(weights, pairs, strict=True)], wires=[control, target])
    for wire in (control, target):
        _relax(wire, noise, noise.cz_ns)
