"""The fast noisy simulator: exact gate-level noise for millions of small circuits.

A block circuit is a preparation, different for every slice, and Q, the same for all slices of a block. So

    p(slice) = r(slice) @ O(block)          r [4^n] Pauli expectations of the noisy prepared state,  O [4^n, 2^n]

O is the readout, errors included, carried backwards through Q's noisy gates (Heisenberg picture), once per block. r is
simulated forwards, 64 slices side by side so that every inner loop runs over slices and is vectorised. No angle is
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
from qrun.quantum.gates import CZ
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
    masks: Array  # per coupling, signs of the level-by-level angles
    program: Array  # [P, 5] of all gates before Q, block after block: kind, digits, parameter, who waits
    table: Array  # [P, 21] what they multiply by
    offsets: Array  # [B + 1] of each block's part of both

    def begins_like(self, other: "Prepared") -> bool:
        """Whether both bring slices into the same states, and only readouts differ."""
        mine, others = (
            [made.program, made.table, made.offsets, made.circuits.shape, np.asarray(made.circuits.before)]
            for made in (self, other)
        )
        return all(np.array_equal(a, b) for a, b in zip(mine, others, strict=True))


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
    program, table, offsets = _program(circuits, places, rank, waits)
    return Prepared(
        preparations, circuits, places, waits.astype(dtype), out.astype(dtype), masks, program, table.astype(dtype),
        offsets,
    )  # fmt: skip


def _program(circuits: Circuits, places: Places, rank: Array, waits: Array) -> tuple[Array, Array, Array]:
    """What kernels.prepare_and_measure runs: gates up to the last parameter with their digits, and their noise."""
    counts = circuits.split - circuits.offsets[:-1]
    offsets = np.append(0, np.cumsum(counts))
    block = np.repeat(np.arange(len(circuits)), counts)
    gate = np.arange(offsets[-1]) - offsets[block] + circuits.offsets[block]
    kind, a, b, waited = circuits.kind[gate], circuits.first[gate], circuits.second[gate], waits[gate]
    place, digits = block % len(places), rank[circuits.shape[block]]
    low, high = (np.take_along_axis(digits, on[:, None].astype(int), 1)[:, 0] for on in (a, np.maximum(b, 0)))
    one, two, waiting = places.tables
    table = np.zeros((len(gate), 21))
    t, l, shift = one[place, a].T  # noqa: E741
    turned = np.stack(
        [t * t, t * l, t * shift, l * t, shift, np.cos(circuits.angle[gate]), np.sin(circuits.angle[gate])]
    )
    first, second = two[place, a, b], two[place, b, a]
    swapped = (low > high)[:, None]
    (tl, ll, sl, keep), (th, lh, sh, _) = np.where(swapped, second, first).T, np.where(swapped, first, second).T
    paired = [
        keep * th, keep * tl, keep * tl * th, keep * tl * lh, keep * tl * sh, keep * th * ll, keep * th * sl,
        keep * lh, sh, keep * ll, sl, keep * ll * lh, keep * ll * sh, keep * sl * lh, sl * sh,
    ]  # fmt: skip
    table[:, :7] = turned.T
    pair = kind == CZ
    table[pair, :15] = np.stack(paired, 1)[pair]
    swapped = swapped[:, 0] & pair
    waited[swapped], on = waited[swapped, ::-1], np.stack([a, b], 1)
    on[swapped] = on[swapped, ::-1]
    for side in range(2):
        stay, coherent = np.exp(-waited[:, side, None] * waiting[place, on[:, side]]).T
        table[:, 15 + 3 * side : 18 + 3 * side] = np.stack([coherent, stay, 1 - stay], 1)
    low, high = np.where(pair, np.minimum(low, high), low), np.maximum(low, high)
    who = (waited[:, 0] > 0) + 2 * (waited[:, 1] > 0)
    program = np.stack([kind, low, high, circuits.parameter[gate], who], 1).astype(np.int64)
    return program, table, offsets


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


def probabilities(units: Array, *prepared: Prepared) -> Array:
    """Outcome probabilities [R, N, B, 2^n] of unit slices [N, B, 2^n], of one Prepared [N, B, 2^n]. Several that begin
    alike are one simulation with several readouts."""
    first = prepared[0]
    matrices = first.matrices if len(prepared) == 1 else np.concatenate([made.matrices for made in prepared])
    out = np.empty((len(prepared), *units.shape), matrices.dtype)
    prepare_and_measure(
        np.ascontiguousarray(units, out.dtype), matrices, first.program, first.table, first.offsets,
        first.circuits.shape, first.masks, first.preparations[0].schmidt, first.circuits.qubits, out,
    )  # fmt: skip
    return out[0] if len(prepared) == 1 else out
