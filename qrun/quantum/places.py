"""The noise where circuits run: the same everywhere, or that of each block's own qubits.

    everywhere(noise, n)                         one place of n qubits, as a preset says
    at(calibration, noise, places, couplings)    one row per place; block j runs on place j mod P

Each gate is followed by its own noise. Between gates a qubit relaxes: every gate starts as late as it can (ALAP), all
qubits are read at the same time, and what a qubit waits before a gate decays with its T1 and T2. A qubit that no gate
has touched yet is in |0> and stays there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qrun.quantum.calibration import Calibration
from qrun.quantum.circuits import Circuits
from qrun.quantum.gates import CZ, RY, RZ
from qrun.quantum.layout import Place, coupling
from qrun.quantum.noise import Noise
from qrun.quantum.synthesis import Edges

Floats = NDArray[np.float64]
Error = tuple[list[int], list[NDArray[np.generic]]]


@dataclass(frozen=True)
class Places:
    """Noise of P places with n qubits each: `one[p][q]`, and for each edge (a, b) `two[p][edge]` of both qubits."""

    qubits: int
    one: list[list[Noise]]
    two: list[dict[tuple[int, int], tuple[Noise, Noise]]]

    def __len__(self) -> int:
        return len(self.one)

    def of(self, block: int) -> int:
        return block % len(self.one)

    @cached_property
    def tables(self) -> tuple[Floats, Floats, Floats]:
        """After sx or x [P, n, 3], after cz(a, b) on qubit a [P, n, n, 4], both (transverse, longitudinal, shift, and
        keep); waiting [P, n, 2] in 1/T1 and 1/T2 per nanosecond."""
        n = self.qubits
        one, two, waiting = (np.zeros((len(self), n, *shape)) for shape in ((3,), (n, 4), (2,)))
        two[..., [0, 1, 3]] = 1
        for p, (singles, pairs) in enumerate(zip(self.one, self.two, strict=True)):
            for q, noise in enumerate(singles):
                one[p, q] = noise.rates(1)[:3]
                waiting[p, q] = decay(noise)
            for (a, b), both in pairs.items():
                two[p, a, b], two[p, b, a] = both[0].rates(2), both[1].rates(2)
        return one, two, waiting

    @cached_property
    def durations(self) -> tuple[Floats, Floats]:
        """Of sx [P, n] and cz [P, n, n], nanoseconds."""
        n = self.qubits
        sx, cz = np.zeros((len(self), n)), np.zeros((len(self), n, n))
        for p, (singles, pairs) in enumerate(zip(self.one, self.two, strict=True)):
            sx[p] = [noise.sx_ns for noise in singles]
            for (a, b), both in pairs.items():
                cz[p, a, b] = cz[p, b, a] = both[0].cz_ns
        return sx, cz

    def waits(self, circuits: Circuits) -> tuple[Floats, Floats]:
        """Nanoseconds [G, 2] that the first and second qubit of each gate wait before it, and each qubit [B, n] before
        it is read."""
        waits, last = np.zeros((len(circuits.kind), 2)), np.zeros((len(circuits), circuits.qubits))
        if self.tables[2].any():
            _alap(circuits.kind, circuits.first, circuits.second, circuits.offsets, *self.durations, waits, last)
        return waits, last

    def confusion(self, place: int) -> Floats:
        """Probability [2^n, 2^n] of reading an outcome, by qubits, for each true one."""
        total = np.ones((1, 1))
        for noise in self.one[place]:
            total = np.kron(np.array(noise.confusion), total)
        return total

    @property
    def block(self) -> float:
        return self.one[0][0].block

    def errors(self, place: int, first: int, second: int, waits: Sequence[float]) -> tuple[list[Error], list[Error]]:
        """Before and after a gate on one qubit (second -1) or two: Kraus operators with the qubits they act on."""
        on = [first] if second < 0 else [first, second]
        before = [([q], k) for q, wait in zip(on, waits, strict=False) for k in self.waiting(place, q, wait)]
        if second < 0:
            return before, [(on, channel.kraus()) for channel in self.one[place][first].channels(1)]
        pairs = self.two[place]
        both = pairs[first, second] if (first, second) in pairs else pairs[second, first][::-1]
        after: list[Error] = []
        for q, noise in zip(on, both, strict=True):
            for channel in noise.channels(2):
                joint = len(operators := channel.kraus()) and len(operators[0]) == 4
                if not joint:
                    after.append(([q], operators))
                elif q == first:
                    after.insert(0, (on, operators))  # what acts on both together comes first
        return before, after

    def waiting(self, place: int, qubit: int, nanoseconds: float) -> list[list[NDArray[np.generic]]]:
        """Kraus operators of a wait; none of one that does nothing."""
        noise = self.one[place][qubit]
        alone = Noise(t1_us=noise.t1_us, t2_us=noise.t2_us, sx_ns=float(nanoseconds))
        return [channel.kraus() for channel in alone.channels(1)]

    def measured(self, p: Floats, circuits: Circuits, block: int) -> Floats:
        """Probabilities [..., 2^n] of a slice's indices from those of outcomes by qubits before the reading."""
        mixed = (1 - self.block) * p + self.block / p.shape[-1]
        return (mixed @ self.confusion(self.of(block)).T)[..., circuits.outcomes(block)]


def decay(noise: Noise) -> tuple[float, float]:
    """1/T1 and 1/T2 per nanosecond: T1 alone has T2 = 2 T1."""
    t1 = 1e-3 / noise.t1_us if noise.t1_us else 0.0
    return t1, 1e-3 / noise.t2_us if noise.t2_us else t1 / 2


def everywhere(noise: Noise, n: int) -> Places:
    """Every qubit and every pair alike."""
    return Places(n, [[noise] * n], [{(a, b): (noise, noise) for b in range(n) for a in range(n) if a != b}])


def at(calibration: Calibration, noise: Noise, places: Sequence[Place], couplings: Sequence[Edges]) -> Places:
    """The calibrated noise of these places, each of the first of the couplings that it has; circuits' qubit q is on the
    chip's place[q]."""
    n = len(places[0])
    edges = [couplings[coupling(calibration, place, couplings)] for place in places]
    one = [[calibration.noise(noise, qubit) for qubit in place] for place in places]
    two = [
        {(a, b): calibration.pair(noise, (place[a], place[b])) for a, b in pairs}
        for place, pairs in zip(places, edges, strict=True)
    ]
    return Places(n, one, two)


@njit(cache=True)
def _alap(kind, first, second, offsets, sx, cz, waits, last):  # type: ignore[no-untyped-def]
    """Waits from the end of the circuit: a gate ends where the first of its qubits' next gates begins."""
    n = last.shape[1]
    begins = np.empty(n)  # of the qubit's next gate, counted backwards from the reading
    later = np.empty(n, np.int64)  # that gate, as 2 g + which of its qubits; -1 is the reading
    for block in range(len(offsets) - 1):
        place = block % sx.shape[0]
        begins[:] = 0
        later[:] = -1
        for g in range(offsets[block + 1] - 1, offsets[block] - 1, -1):
            a, b = first[g], second[g]
            end, length = begins[a], 0.0
            if kind[g] == CZ:
                end, length = max(end, begins[b]), cz[place, a, b]
            elif kind[g] != RZ:
                length = (2 if kind[g] == RY else 1) * sx[place, a]
            for side in range(2):
                qubit = a if side == 0 else b
                if qubit < 0:
                    continue
                if later[qubit] >= 0:
                    waits[later[qubit] // 2, later[qubit] % 2] = end - begins[qubit]
                else:
                    last[block, qubit] = end
                begins[qubit], later[qubit] = end + length, 2 * g + side
