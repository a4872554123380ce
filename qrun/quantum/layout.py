"""Packing blocks onto a chip: disjoint coupled qubits with the smallest calibrated error.

Two-qubit blocks are a maximum matching of the coupling graph, of least total weight among the largest (Edmonds'
blossom, NetworkX). Longer blocks are vertex-disjoint paths, found as a set packing by mixed-integer programming
(SciPy's HiGHS). Weight: -log of the survival of couplers and readouts.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """A processor: coupler errors by sorted pair, readout error per qubit, and the couplers left out as dead."""

    name: str
    qubits: int
    couplers: Mapping[Edge, float]
    readout: Sequence[float]
    dead: tuple[Edge, ...] = ()
    date: str | None = None

    @property
    def left_out(self) -> str:
        """Which couplers the packing leaves out, in words."""
        if not self.dead:
            return "no dead coupler"
        named = ", ".join(f"{a}-{b}" for a, b in self.dead)
        return f"left out as dead (error 0.5 or more): {len(self.dead)} couplers, {named}"


def read_chip(backend: Any) -> Chip:
    """Chip of a Qiskit backend. Of a coupler's two directions the worse error counts, and couplers with an error of 0.5
    or more are dead."""
    target = backend.target
    gate = next(name for name in ("cz", "ecr", "cx") if name in target.operation_names)
    errors: dict[Edge, float] = {}
    for (a, b), properties in target[gate].items():
        error = properties.error if properties and properties.error is not None else 0.0
        errors[min(a, b), max(a, b)] = max(error, errors.get((min(a, b), max(a, b)), 0.0))
    readout = [(p.error or 0.0) if (p := target["measure"][q,]) else 0.0 for q in range(backend.num_qubits)]
    properties = backend.properties() if hasattr(backend, "properties") else None
    dead = tuple(sorted(edge for edge, error in errors.items() if error >= DEAD))
    living = {edge: error for edge, error in errors.items() if error < DEAD}
    date = str(properties.last_update_date)[:10] if properties else None
    return Chip(backend.name, backend.num_qubits, living, readout, dead, date)


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
