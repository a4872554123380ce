"""Preparation of unit slices on the qubits a circuit really gets: RY and CZ on neighbours, angles by slice.

path, n <= 2   level by level: one RY, then RY CZ RY (Moettoenen et al., quant-ph/0407010)                0, 1 CZ
path, n = 3    Schmidt decomposition between qubit 0 and the pair (1, 2): s_0, s_1 on qubit 1, copied to qubit 0, then
               SO(2) on qubit 0 and on the pair the rotation that takes |00>, |10> to both Schmidt vectors.    3 CZ
               As quaternions it is p -> l p r: l turns j into b conj(a), with a, b the Schmidt vectors; r = conj(l) a.
               Its angles are Euler angles, as in synthesis.py, and l needs two of them only.
n = 4          the first three bits as above on a path of three, a qubit of it moved aside (2 CZ), and where it was the
               last bit, as RY between CZ with its neighbours                              path: 14, star: 12 CZ
others         level by level in Gray-code order, each RY of level k between CZ on qubit k and a control below it;
               on couplings that lack those pairs routed by Qiskit, SWAPs as RY and CZ

    preparation(n, edges)          Preparation; .gates and .angles(units) for circuits, .turns for simulators

A preparation may leave bit i of the index on another qubit than i: `wires[i]`. Q is synthesised for those wires.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qrun.quantum.encoding import Floats, gray_controls, node_angles, preparation_angles
from qrun.quantum.kernels import schmidt_angles
from qrun.quantum.synthesis import STAR, Edges, path

SEEDS = 20  # routings tried; the one of fewest CZ is kept
Step = tuple[int, int, int, float]  # (qubit, -1, parameter or -1, angle) of an RY, (a, b, -1, 0) of a CZ


@dataclass(frozen=True)
class Preparation:
    """Steps in order; the RY of parameter k turns by angle k of the slice plus its own."""

    qubits: int
    steps: tuple[Step, ...]
    wires: tuple[int, ...]  # the qubit that ends with bit i of the index
    schmidt: bool = False
    masks: tuple[int, ...] = ()  # n = 4: bits whose parity is the sign of each of the last eight RY

    @property
    def czs(self) -> int:
        return sum(second >= 0 for _, second, _, _ in self.steps)

    def angles(self, units: Floats) -> Floats:
        """RY angles [..., 2^n - 1] of unit slices [..., 2^n], in radians."""
        if not self.schmidt:
            return preparation_angles(units)
        flat = np.asarray(units, float).reshape(-1, 2**self.qubits)
        three = flat if self.qubits == 3 else np.hypot(flat[:, :8], flat[:, 8:])
        cosine, sine = np.empty((len(flat), 7)), np.empty((len(flat), 7))
        schmidt_angles(np.ascontiguousarray(three), cosine, sine)
        angles = np.arctan2(sine, cosine)
        if self.qubits == 4:
            signs = np.array([[(-1) ** (s & mask).bit_count() for mask in self.masks] for s in range(8)])
            angles = np.hstack([angles, node_angles(flat[:, :8], flat[:, 8:]) @ signs / 8])
        return angles.reshape(*units.shape[:-1], -1)


@cache
def preparation(n: int, edges: Edges) -> Preparation:
    """The preparation with the fewest CZ that this module knows for a coupling."""
    if n == 3 and edges == path(3):
        return Preparation(3, SCHMIDT, (0, 1, 2), schmidt=True)
    if n == 4 and edges == path(4):  # x_0 from qubit 0; from qubit 2 x_1, and x_1 + x_2 while the CX stands
        walk = [(0, 1), (2, 2), (0, 1), None, (2, 6), None, (0, 1), (2, 2), (0, 1)]
        return _last_bit((1, 2, 3), 1, 0, (0, 2, 3, 1), walk)
    if n == 4 and edges == STAR:
        walk = [(1, 1), (3, 2), (1, 1), (2, 4), (1, 1), (3, 2), (1, 1)]
        return _last_bit((1, 0, 2), 0, 3, (1, 3, 2, 0), walk)
    steps: list[Step] = []
    for level in range(n):
        for control in gray_controls(level)[1]:
            if control >= 0:
                steps.append((control, level, -1, 0.0))
            steps.append((level, -1, sum(second < 0 for _, second, _, _ in steps), 0.0))
    pairs = {(min(edge), max(edge)) for edge in edges}
    if all(second < 0 or (min(first, second), max(first, second)) in pairs for first, second, _, _ in steps):
        return Preparation(n, tuple(steps), tuple(range(n)))
    return _routed(n, steps, edges)


HALF = np.pi / 2
SCHMIDT: tuple[Step, ...] = (
    (1, -1, 0, 0.0), (0, -1, -1, -HALF), (0, 1, -1, 0.0), (0, -1, 1, HALF),  # s_0 |00> + s_1 |11>, then SO(2)
    (2, -1, 2, 0.0), (1, 2, -1, 0.0), (1, -1, 3, 0.0), (2, -1, 4, 0.0), (1, 2, -1, 0.0), (1, -1, 5, 0.0),
    (2, -1, 6, 0.0),
)  # fmt: skip


def _last_bit(
    three: tuple[int, int, int], middle: int, aside: int, wires: tuple[int, ...], walk: list[tuple[int, int] | None]
) -> Preparation:
    """Four qubits: SCHMIDT on the path `three`, its `middle` or end qubit moved `aside`, bit 3 where it was. `walk`:
    the neighbour of each CZ and the parity of bits that it carries; None is a CX from qubit 3 to 2, which changes
    that."""
    steps = [(three[a], three[b] if b >= 0 else -1, k, angle) for a, b, k, angle in SCHMIDT]
    steps += [*_cx(middle, aside), *_cx(aside, middle)]
    parities = [item[1] for item in walk if item]
    masks = [0]
    for parity in reversed(parities):  # a CZ flips all RY before it
        masks.insert(0, masks[0] ^ parity)
    steps.append((middle, -1, 7, 0.0))
    count = 7
    for item in walk:
        if item is None:
            steps += _cx(3, 2)
            continue
        count += 1
        steps += [(item[0], middle, -1, 0.0), (middle, -1, count, 0.0)]
    return Preparation(4, tuple(merged(steps)), wires, schmidt=True, masks=tuple(masks))


def _cx(control: int, target: int) -> list[Step]:
    return [(target, -1, -1, -HALF), (control, target, -1, 0.0), (target, -1, -1, HALF)]


def _routed(n: int, steps: list[Step], edges: Edges) -> Preparation:
    """The steps on a coupling without the pairs they need."""
    from qiskit import QuantumCircuit, transpile
    from qiskit.circuit import ParameterVector
    from qiskit.transpiler import CouplingMap

    free = ParameterVector("t", 2**n - 1)
    circuit = QuantumCircuit(n)
    for first, second, parameter, _ in steps:
        if second >= 0:
            circuit.cz(first, second)
        else:
            circuit.ry(free[parameter], first)
    found: list[Any] = [
        transpile(
            circuit, coupling_map=CouplingMap([*edges, *((b, a) for a, b in edges)]), basis_gates=["ry", "cz", "swap"],
            optimization_level=1, seed_transpiler=seed,
        )
        for seed in range(SEEDS)
    ]  # fmt: skip
    costs = [c.count_ops().get("cz", 0) + 3 * c.count_ops().get("swap", 0) for c in found]
    best = found[int(np.argmin(costs))]
    number = {parameter: k for k, parameter in enumerate(free)}
    routed: list[Step] = []
    for item in best.data:
        where = [best.find_bit(qubit).index for qubit in item.qubits]
        if item.operation.name == "ry":
            routed.append((where[0], -1, number[next(iter(item.operation.params[0].parameters))], 0.0))
        elif item.operation.name == "cz":
            routed.append((where[0], where[1], -1, 0.0))
        else:  # SWAP is three CX
            for a, b in (where, where[::-1], where):
                routed += _cx(a, b)
    return Preparation(n, tuple(merged(routed)), tuple(best.layout.final_index_layout()))


def merged(steps: list[Step]) -> list[Step]:
    """The same with neighbouring RY on a qubit joined, where at most one of them has a parameter."""
    out: list[Step] = []
    last: dict[int, int] = {}  # the RY that a qubit's next one may join
    for first, second, parameter, angle in steps:
        if second >= 0:
            out.append((first, second, parameter, angle))
            last.pop(first, None)
            last.pop(second, None)
        elif first in last and min(out[last[first]][2], parameter) < 0:
            qubit, _, before, turned = out[last[first]]
            out[last[first]] = (qubit, -1, max(before, parameter), turned + angle)
        else:
            last[first] = len(out)
            out.append((first, second, parameter, angle))
    return [step for step in out if step[1] >= 0 or step[2] >= 0 or step[3] != 0]
