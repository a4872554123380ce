"""Packing blocks onto a chip: disjoint coupled qubits with the smallest calibrated error.

Two-qubit blocks are a maximum matching of the coupling graph, of least total weight among the largest (Edmonds'
blossom, NetworkX). Longer blocks are vertex-disjoint paths, found as a set packing by mixed-integer programming
(SciPy's HiGHS). Weight: -log of the survival of couplers and readouts.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from qrun.errors import InputError
from qrun.quantum.presets import DEAD

Edge = tuple[int, int]


@dataclass(frozen=True)
class Chip:
    """A processor: coupler errors by sorted pair and readout error per qubit; what is left out as dead, couplers and
    qubits; the calibration's id (None where it has none), time and day."""

    name: str
    qubits: int
    couplers: Mapping[Edge, float]
    readout: Sequence[float]
    dead: tuple[Edge, ...] = ()
    date: str | None = None
    faulty: tuple[int, ...] = ()
    calibration: str | None = None
    calibrated: str | None = None

    @property
    def left_out(self) -> str:
        """Which couplers and qubits the packing leaves out, in words."""
        couplers, qubits = ", ".join(f"{a}-{b}" for a, b in self.dead), ", ".join(map(str, self.faulty))
        found = [f"couplers {couplers}"] if self.dead else []
        found += [f"qubits {qubits}"] if self.faulty else []
        why = "left out as dead (faulty, or error 0.5 or more or not reported)"
        return f"{why}: {'; '.join(found)}" if found else "no dead coupler"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which `from_dict` takes."""
        return {**asdict(self), "couplers": [[a, b, error] for (a, b), error in self.couplers.items()]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Chip":
        """The chip of `as_dict`, also after a way through JSON."""
        couplers = {(a, b): error for a, b, error in values["couplers"]}
        dead, faulty = tuple((a, b) for a, b in values["dead"]), tuple(values["faulty"])
        return cls(**{**values, "couplers": couplers, "dead": dead, "faulty": faulty})


def read_chip(backend: Any) -> Chip:
    """Chip of a Qiskit backend. Of a coupler's two directions the worse error counts. Dead are qubits and couplers
    whose error is 0.5 or more or not reported, those that the backend calls faulty, qubits without a measurement or SX,
    and couplers at a dead qubit. Raises InputError for a processor without CZ gates."""
    target = backend.target
    if "cz" not in target.operation_names:
        raise InputError(f"device.backend={backend.name}: circuits here are made of CZ gates, which it does not have")
    properties = backend.properties() if hasattr(backend, "properties") else None
    measure, sx = target["measure"], target["sx"]
    readout = [_error(measure.get((q,))) for q in range(backend.num_qubits)]
    working = {q for q, error in enumerate(readout) if error < DEAD and (q,) in sx}
    errors: dict[Edge, float] = {}
    for (a, b), its in target["cz"].items():
        errors[min(a, b), max(a, b)] = max(_error(its), errors.get((min(a, b), max(a, b)), 0.0))
    if properties:
        working = {q for q in working if properties.is_qubit_operational(q)}
        stopped = [pair for pair in target["cz"] if not properties.is_gate_operational("cz", pair)]
        errors |= {(min(pair), max(pair)): 1.0 for pair in stopped}
    errors = {pair: error if working.issuperset(pair) else 1.0 for pair, error in errors.items()}
    dead = tuple(sorted(pair for pair, error in errors.items() if not error < DEAD))  # also NaN
    living = {pair: error for pair, error in errors.items() if error < DEAD}
    time = str(properties.last_update_date) if properties else None
    faulty = tuple(q for q in range(backend.num_qubits) if q not in working)
    calibration = getattr(backend, "calibration_id", None)
    date = time[:10] if time else None
    return Chip(backend.name, backend.num_qubits, living, readout, dead, date, faulty, calibration, time)


def _error(its: Any) -> float:
    """The reported error of an instruction; 1 where there is none."""
    return float(its.error) if its and its.error is not None else 1.0


def heavy_hex() -> Chip:
    """The 156-qubit Heron lattice with nominal errors: what a plan uses when no backend is asked."""
    rows, couplers = [], []
    index = 0
    for row in range(8):
        rows.append(list(range(index, index + 16)))
        index += 16
        couplers += list(zip(rows[-1], rows[-1][1:], strict=False))
        if row < 7:
            offset = 3 if row % 2 == 0 else 1
            for bridge in range(4):
                column = offset + 4 * bridge
                couplers += [(rows[-1][column], index), (index, index + 4 - bridge + column)]
                index += 1
    nominal = {(min(e), max(e)): 1.78e-3 for e in couplers}
    return Chip("heron_156", index, nominal, [0.01] * index)


def pack(chip: Chip, size: int) -> list[tuple[int, ...]]:
    """As many disjoint coupled paths of `size` qubits as the chip holds, of least total error among the largest
    packings."""
    if size > chip.qubits:
        raise InputError(f"adapter.dim={2**size}: needs {size} qubits, {chip.name} has {chip.qubits}")
    if size == 1:
        return [(q,) for q in range(chip.qubits)]
    if size == 2:
        return _matching(chip)
    return _disjoint_paths(chip, size)


def _weight(chip: Chip, path: Sequence[int]) -> float:
    survival = [1 - chip.couplers[min(a, b), max(a, b)] for a, b in itertools.pairwise(path)]
    survival += [1 - chip.readout[q] for q in path]
    return -sum(math.log(max(s, 1e-9)) for s in survival)


def _matching(chip: Chip) -> list[tuple[int, ...]]:
    graph = nx.Graph()
    for a, b in chip.couplers:
        graph.add_edge(a, b, weight=-round(_weight(chip, (a, b)) * 1e6))  # integers keep the blossom algorithm exact
    return sorted((min(e), max(e)) for e in nx.max_weight_matching(graph, maxcardinality=True))


def _disjoint_paths(chip: Chip, size: int) -> list[tuple[int, ...]]:
    neighbours: dict[int, list[int]] = {}
    for a, b in chip.couplers:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    paths: list[tuple[int, ...]] = []
    stack: list[tuple[int, ...]] = [(q,) for q in neighbours]
    while stack:
        path = stack.pop()
        if len(path) == size:
            if path[0] < path[-1]:
                paths.append(path)
            continue
        stack += [(*path, q) for q in neighbours[path[-1]] if q not in path]
    if not paths:
        return []
    rows = [q for path in paths for q in path]
    columns = [i for i, path in enumerate(paths) for _ in path]
    used = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(chip.qubits, len(paths)))
    weights = np.array([_weight(chip, p) for p in paths])
    gain = 1 - weights / (weights.max() * chip.qubits + 1)  # a larger packing always wins
    once, limits = LinearConstraint(used, -np.inf, 1), {"mip_rel_gap": 1e-4, "time_limit": 20}
    found = milp(-gain, constraints=once, integrality=np.ones(len(paths)), bounds=Bounds(0, 1), options=limits)
    return sorted(path for path, chosen in zip(paths, found.x, strict=True) if chosen > 0.5)
