"""The fast noisy simulator: exact gate-level noise for millions of small circuits.

A block circuit is a preparation, different for every slice, and Q, the same for all slices of a block. So

    p(slice) = r(slice) @ O(block)          r [4^n] Pauli expectations of the noisy prepared state,  O [4^n, 2^n]

O is the readout, errors included, carried backwards through Q's noisy gates (Heisenberg picture), once per block. r is
simulated forwards, 128 slices at a time so that every inner loop runs over slices and is vectorised. No angle is
computed: cosines and sines come from the slice by products and square roots (quantum/preparation.py for the Schmidt
form; at each node of the level-by-level tree u = (left + i right) / norm, RY angles are halves of halves of arg u,
hence complex square roots, and their Gray-code combinations are products, a Walsh-Hadamard transform in the exponent).
The state grows with the circuit: a qubit joins it when its first gate comes.

Pauli index: digit d_q in {I, X, Y, Z} = {0, 1, 2, 3} of qubit q has stride 4^q; in r qubits count in the order in which
they join.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrun.quantum.circuits import Circuits
from qrun.quantum.encoding import gray_controls
from qrun.quantum.kernels import heisenberg, prepare_and_measure
from qrun.quantum.places import Places
from qrun.quantum.preparation import Preparation

Array = NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """Circuits of B blocks at their places, ready for slices: O [B, 4^n, 2^n] in the order of the state's qubits, and
    the gates before it. Arithmetic is that of O's dtype."""

    preparations: Sequence[Preparation]  # of each coupling
    circuits: Circuits
    places: Places
    waits: Array
    matrices: Array
    rank: Array  # per coupling, position of each qubit in the state
    masks: Array  # per coupling, signs of the level-by-level angles
    turns: Array  # cosine and sine of each gate's own angle
    rates: tuple[Array, ...]  # the places' tables


def prepare(
    preparations: Sequence[Preparation], circuits: Circuits, places: Places, dtype: Any = np.float32
) -> Prepared:
    """Carry the readout of every block backwards to where its last angle of the slice is."""
    n = circuits.qubits
    waits, last = places.waits(circuits)
    one, two, waiting = places.tables
    out = np.empty((len(circuits), 4**n, 2**n))
    seen = [_measurement(n, places, p) for p in range(len(places))]
    for block in range(len(circuits)):
        out[block] = seen[places.of(block)][:, circuits.outcomes(block)]
    heisenberg(
        circuits.kind, circuits.first, circuits.second, circuits.angle, circuits.offsets, circuits.split, one, two,
        waiting, waits, last, n, out,
    )  # fmt: skip
    rank = np.array([_joining(preparation) for preparation in preparations])
    strings = np.arange(4**n)
    orders = [np.bitwise_or.reduce([(strings >> 2 * own[q] & 3) << 2 * q for q in range(n)]) for own in rank]
    masks = np.zeros((len(preparations), n, 2**n), np.int64)
    for index, preparation in enumerate(preparations):
        for level in range(n):
            masks[index, level, : 1 << level] = gray_controls(level)[0]
        if preparation.masks:
            masks[index, n - 1, : 1 << n - 1] = preparation.masks
    for index, order in enumerate(orders):
        here = circuits.shape == index
        out[here] = out[here][:, order]
    turns = np.stack([np.cos(circuits.angle), np.sin(circuits.angle)], 1).astype(dtype)
    rates = tuple(table.astype(dtype) for table in (one, two, waiting))
    return Prepared(preparations, circuits, places, waits.astype(dtype), out.astype(dtype), rank, masks, turns, rates)


def _joining(preparation: Preparation) -> list[int]:
    """Position of each qubit in the order in which gates first touch them."""
    joined: list[int] = []
    for first, second, _, _ in preparation.steps:
        joined += [q for q in (first, second) if q >= 0 and q not in joined]
    return [joined.index(q) for q in range(preparation.qubits)]


def _measurement(n: int, places: Places, place: int) -> Array:
    """Readout with its errors as Pauli coefficients [4^n, 2^n], outcomes by qubits, after the circuit's one
    depolarising channel, if there is one."""
    total: Array = np.ones((1, 1))
    for noise in places.one[place]:
        zero, one = np.array(noise.confusion).T  # read outcomes [2] of |0> and of |1>
        total = np.kron(np.array([zero + one, 0 * one, 0 * one, zero - one]) / 2, total)
    total[1:] *= 1 - places.block
    return total


def probabilities(units: Array, prepared: Prepared) -> Array:
    """Outcome probabilities [N, B, 2^n] of unit slices [N, B, 2^n]."""
    tokens, _, dim = units.shape
    circuits, n, dtype = prepared.circuits, prepared.circuits.qubits, prepared.matrices.dtype
    one, two, waiting = prepared.rates
    out = np.empty((tokens, len(circuits), dim), dtype)
    lanes = 128 if tokens > 64 else 32 if tokens > 8 else 8
    prepare_and_measure(
        np.ascontiguousarray(units, dtype), prepared.matrices, circuits.kind, circuits.first, circuits.second,
        prepared.turns, circuits.parameter, circuits.offsets, circuits.split, one, two, waiting, prepared.waits,
        prepared.rank, prepared.masks, circuits.shape, prepared.preparations[0].schmidt, n, lanes, out,
    )  # fmt: skip
    return out
