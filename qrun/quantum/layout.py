"""Packing blocks onto a chip: disjoint places of coupled qubits with the smallest calibrated error.

A place is a copy of a circuit's coupling (a path, or a star of four) in the chip's. Disjoint places are a set packing:
mixed-integer programming (SciPy's HiGHS) over all copies (NetworkX).
"""

import math
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from qrun.errors import InputError
from qrun.quantum.calibration import Calibration, Coupler, Edge, Qubit
from qrun.quantum.synthesis import Edges, path, shapes

Floats = NDArray[np.float64]
Place = tuple[int, ...]  # the chip's qubit of each qubit of a circuit


def heavy_hex() -> Calibration:
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
    nominal = {(min(e), max(e)): Coupler(1.78e-3, 68) for e in couplers}
    qubits = dict.fromkeys(range(index), Qubit(2.45e-4, 36, None, None, 0.01, 0.01))
    return Calibration("heron_156", "", index, qubits, nominal, {})


def pack(
    chip: Calibration, size: int, couplings: Sequence[Edges] | None = None, keep: float = 1.0,
    errors: Callable[[Sequence[Place]], Floats] | None = None,
) -> list[Place]:  # fmt: skip
    """Disjoint places of `size` qubits for circuits of these couplings (None: a path), best first.

    As many as the chip holds, then the `keep` share of them (at least one) with the least total error among all sets of
    that many. `errors` of places [P]; None: -log of the survival of one CZ on each edge and of the readouts. Raises
    InputError if the chip holds no such place.
    """
    if size > len(chip.qubits):
        raise InputError(f"adapter.dim={2**size}: needs {size} qubits, {chip.name} has {len(chip.qubits)} that work")
    couplings = [path(size)] if couplings is None else couplings
    found = [place for edges in couplings for place in _embeddings(chip, size, edges)]
    if not found:
        raise InputError(f"adapter.dim={2**size}: {chip.name} has no {size} coupled qubits of that shape")
    weights = errors(found) if errors else np.array([_weight(chip, place) for place in found])
    order = np.argsort(weights, kind="stable")
    most = len(found) if size == 1 else len(_disjoint(chip, found, np.ones(len(found)), None))
    count = max(1, math.ceil(keep * most))
    chosen = order[:count] if size == 1 else _disjoint(chip, found, -weights / max(weights.max(), 1e-300), count)
    return [found[i] for i in order if i in set(chosen)]


def coupling(chip: Calibration, place: Place, couplings: Sequence[Edges]) -> int:
    """Which of the couplings a place has: the first whose edges are all there."""
    for index, edges in enumerate(couplings):
        if all((min(place[a], place[b]), max(place[a], place[b])) in chip.couplers for a, b in edges):
            return index
    raise AssertionError(f"{place} is no place of {chip.name}")


def _weight(chip: Calibration, place: Place) -> float:
    n = len(place)
    edges = shapes(n)[coupling(chip, place, shapes(n))]
    pairs = [(min(place[a], place[b]), max(place[a], place[b])) for a, b in edges]
    return sum(_cost(chip.qubits[q].readout) for q in place) + sum(_cost(chip.couplers[pair].cz) for pair in pairs)


def _cost(error: float) -> float:
    return -math.log(max(1 - error, 1e-9))


def _embeddings(chip: Calibration, size: int, edges: Edges) -> list[Place]:
    """Places of working qubits, each set of qubits once for each way its couplers can carry the edges."""
    if size == 1:
        return [(q,) for q in sorted(chip.qubits)]
    graph, shape = nx.Graph(list(chip.couplers)), nx.Graph(list(edges))
    matcher = nx.algorithms.isomorphism.GraphMatcher(graph, shape)
    found: dict[frozenset[Edge], tuple[int, ...]] = {}
    for mapping in matcher.subgraph_monomorphisms_iter():
        place = tuple(q for q, _ in sorted(mapping.items(), key=lambda item: item[1]))
        key = frozenset((min(place[a], place[b]), max(place[a], place[b])) for a, b in edges)
        found[key] = min(place, found.get(key, place))
    return sorted(found.values())


def _disjoint(chip: Calibration, places: Sequence[Place], gain: Floats, count: int | None) -> list[int]:
    """Disjoint places of largest total gain, exactly `count` of them if given, by mixed-integer programming."""
    rows = [q for place in places for q in place]
    columns = [i for i, place in enumerate(places) for _ in place]
    used = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(chip.size, len(places)))
    limits = [LinearConstraint(used, -np.inf, 1)]
    if count is not None:
        limits.append(LinearConstraint(np.ones((1, len(places))), count, count))
    options = {"mip_rel_gap": 1e-4, "time_limit": 60}
    found = milp(-gain, constraints=limits, integrality=np.ones(len(places)), bounds=Bounds(0, 1), options=options)
    return [int(i) for i in np.flatnonzero(found.x > 0.5)]


def drawing(chip: Calibration, places: Sequence[Place]) -> str:
    """The chip's rows of coupled neighbours and the bridges between them, a character per qubit: 0 to 9 by the rank of
    its place, `.` not used, `x` out of order."""
    shown = dict.fromkeys(chip.qubits, ".")
    for rank, place in enumerate(places):
        shown |= dict.fromkeys(place, str(10 * rank // len(places)))
    pairs = {tuple(map(int, name.split("-"))) for name in chip.left_out if "-" in name} | set(chip.couplers)
    rows = [[0]]
    for qubit in range(1, chip.size):
        if (qubit - 1, qubit) in pairs:
            rows[-1].append(qubit)
        else:
            rows.append([qubit])
    column, lines = {q: i for i, q in enumerate(rows[0])}, []
    bridges: list[int] = []
    for row in rows:
        if len(row) > 1:
            if bridges:  # the row begins where its bridges say
                above = {q: column[a] for q in bridges for a, b in pairs if b == q}
                below = {q: b for q in bridges for a, b in pairs if a == q}
                start = next((above[q] - row.index(below[q]) for q in bridges if below.get(q) in row and q in above), 0)
                column |= {q: start + i for i, q in enumerate(row)} | above
                lines.append({column[q]: shown.get(q, "x") for q in bridges if q in column})
                bridges = []
            lines.append({column[q]: shown.get(q, "x") for q in row})
        else:
            bridges += row
    left = min(min(line) for line in lines if line)
    return "\n".join("".join(line.get(c, " ") for c in range(left, max(line) + 1)) for line in lines if line)
