"""How block circuits meet qubits: their coupling, how Q is written, where they run, and with which noise.

device.coupling   line: neighbours on a path, as superconducting chips have them; full: every pair
device.keep       with noise.calibration, the share of the chip's places that is used, the best ones
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
from numpy.typing import NDArray

from qrun.quantum.calibration import Calibration, calibration
from qrun.quantum.circuits import (
    Circuits,
    block_circuits,
    frame,
    generic,
    generic_block,
    generic_written,
    joined,
    suits,
    with_reference,
)
from qrun.quantum.encoding import Floats as Blocks
from qrun.quantum.gates import CZ, RY, RZ
from qrun.quantum.layout import Place, coupling, heavy_hex, pack
from qrun.quantum.noise import Noise
from qrun.quantum.places import Places, at, everywhere
from qrun.quantum.preparation import Preparation, preparation
from qrun.quantum.simulator import prepare, probabilities
from qrun.quantum.synthesis import Ansatz, Edges, Floats, Written, path, shapes

SLICES = 200  # that judge a place
SIMULATED = 4  # qubits up to which a place is judged gate by gate


@cache
def lattice_places(n: int) -> int:
    """Disjoint places of n qubits on the 156-qubit lattice."""
    return len(pack(heavy_hex(), n, shapes(n)))


@dataclass(frozen=True)
class Wiring:
    """Everything between a block and its gates with their noise."""

    noise: Noise
    synthesis: str = "line"
    coupling: str = "line"
    keep: float = 1.0
    chip: Calibration | None = None  # a processor's own, instead of the noise's
    room: int | None = None  # most qubits at once, if not the whole chip
    reference: bool = False  # a qubit more a circuit, for signs=reference
    ansatz: Ansatz | None = None  # of blocks that are circuits already

    @cached_property
    def calibration(self) -> Calibration | None:
        return self.chip or (calibration(self.noise.calibration) if self.noise.calibration else None)

    def qubits(self, dim: int) -> int:
        """Of the circuit of a block."""
        return dim.bit_length() - 1 + self.reference

    def edges(self, n: int) -> Edges:
        """The usual coupling of n qubits."""
        return self.couplings(n)[0]

    def couplings(self, n: int) -> tuple[Edges, ...]:
        """All couplings that blocks of n qubits are written for: a chip's places are of more than one shape."""
        if self.coupling == "full":
            return (tuple((a, b) for b in range(n) for a in range(b)),)
        return shapes(n) if self.calibration else (path(n),)

    def preparations(self, n: int) -> tuple[Preparation, ...]:
        """Of each coupling."""
        return tuple(preparation(n, edges) for edges in self.couplings(n))

    def assigned(self, n: int, blocks: int) -> NDArray[np.int64]:
        """The coupling of each block, by the place it runs on."""
        if self.calibration is None or len(self.couplings(n)) == 1:
            return np.zeros(blocks, np.int64)
        of_place = [coupling(self.calibration, place, self.couplings(n)) for place in self.chosen(n)]
        return np.resize(np.array(of_place), blocks)

    def mixture(self, dim: int) -> str:
        """What beside Q decides on circuits, for a cache: which block has which coupling, and how Qiskit routed the
        preparations."""
        n = self.qubits(dim)
        mixed = self.calibration is not None and len(self.couplings(n)) > 1
        which = f"{self.calibration.digest}-{self.keep:g}" if mixed and self.calibration else "alike"
        steps = repr([(made.steps, made.wires) for made in self.preparations(n)])
        return f"{which}-{hashlib.sha256(steps.encode()).hexdigest()[:12]}"

    def circuits(self, blocks: Blocks, written: Written | None = None) -> Circuits:
        n = self.qubits(blocks.shape[-1])
        shape = self.assigned(n, len(blocks))
        parts = []
        for index, edges in enumerate(self.couplings(n)):
            if (here := shape == index).any():
                own = None if written is None else (written[0][here], written[1])
                parts.append(block_circuits(blocks[here], edges, self.synthesis, self.reference, own))
        if len(parts) == 1:
            return replace(parts[0], shape=shape)
        order = np.argsort(np.argsort(shape, kind="stable"), kind="stable")  # joined by couplings, back by blocks
        return joined(parts).take(order)

    def generic(self, n: int, edges: Edges) -> Circuits:
        """The circuit of n qubits of a generic block."""
        return generic(2 ** (n - self.reference), edges, self.synthesis, self.reference, self.ansatz)

    def generic_block(self, dim: int) -> Floats:
        """What that circuit computes [b, b]."""
        return generic_written(self.ansatz)[0][0] if self.ansatz else generic_block(dim)

    def runs_as_written(self, dim: int) -> bool:
        """Whether blocks that are circuits of the ansatz run as they are; else they are written anew."""
        n = self.qubits(dim)
        own = frame(preparation(n, self.edges(n)), self.edges(n), self.reference)
        return self.ansatz is not None and self.synthesis == "line" and suits(self.ansatz, own)

    def counts(self, dim: int) -> dict[str, int]:
        """Gates and qubits of the circuit of a generic block [b, b]."""
        n = self.qubits(dim)
        return {**self.generic(n, self.edges(n)).counts(), "qubits": n}

    def chosen(self, n: int) -> list[Place]:
        """Places on the calibrated chip, best first; none without a calibration."""
        if self.calibration is None:
            return []
        if n not in self._chosen:
            judge = self.errors if n <= SIMULATED else self.losses
            found = pack(self.calibration, n, self.couplings(n), self.keep, partial(judge, n))
            self._chosen[n] = found if self.room is None else found[: max(1, self.room // n)]
        return self._chosen[n]

    def packed(self, dim: int) -> int:
        """Blocks that run at once, on the 156-qubit lattice without a calibration."""
        n = self.qubits(dim)
        return len(self.chosen(n)) if self.calibration else lattice_places(n)

    @cached_property
    def _chosen(self) -> dict[int, list[Place]]:
        return {}

    def errors(self, n: int, places: Sequence[Place]) -> Floats:
        """Mean squared error [P] of |Q x| for unit slices x and a generic block at each place, without shots, under the
        chip's own rates (places stay where they are when a study moves the noise). Simulated up to four qubits. Beyond,
        where a block has more than a thousand CZ, the whole circuit is one depolarising channel that leaves what
        survives `losses`; places are then ranked by those."""
        chip = self.calibration
        assert chip is not None
        slices = np.random.default_rng(0).normal(size=(SLICES, 1, 2**n))
        slices /= np.linalg.norm(slices, axis=-1, keepdims=True)
        block = self.generic_block(2 ** (n - self.reference))
        block = with_reference(block) if self.reference else block
        ideal, errors = np.abs(slices @ block.T), np.empty(len(places))
        if n > SIMULATED:
            uniform = 2.0**-n
            left = np.exp(-self.losses(n, places))
            return np.array(
                [np.square(np.sqrt(uniform + k * (ideal**2 - uniform)) - ideal).sum(-1).mean() for k in left]
            )
        shape = np.array([coupling(chip, place, self.couplings(n)) for place in places])
        for index, edges in enumerate(self.couplings(n)):
            of_it = np.flatnonzero(shape == index)
            if not len(of_it):
                continue
            circuits = self.generic(n, edges).take(np.zeros(len(of_it), int))
            there = at(chip, chip.typical, [places[int(i)] for i in of_it], [edges])
            prepared = prepare([preparation(n, edges)], circuits, there, np.float64)
            encoded = circuits.encoded(np.repeat(slices, len(of_it), 1))
            found = np.sqrt(np.maximum(probabilities(encoded, prepared), 0))
            errors[of_it] = np.square(found - ideal).sum(-1).mean(0)
        return errors

    def losses(self, n: int, places: Sequence[Place]) -> Floats:
        """-log [P] of the survival of a generic block's gates and readouts at each place, by the calibrated errors."""
        chip = self.calibration
        assert chip is not None
        found = []
        for place in places:
            circuits = self.generic(n, self.couplings(n)[coupling(chip, place, self.couplings(n))])
            pairs = np.zeros((n, n))
            np.add.at(pairs, (circuits.first, circuits.second), circuits.kind == CZ)
            one = (circuits.second < 0) & (circuits.kind != RZ)
            turned = np.bincount(circuits.first[one], np.where(circuits.kind == RY, 2, 1)[one], n)
            lost = [(2 * chip.qubits[q].sx, turned[i]) for i, q in enumerate(place)]
            lost += [(chip.qubits[q].readout, 1) for q in place]
            for a, b in np.argwhere(pairs).tolist():
                edge = min(place[a], place[b]), max(place[a], place[b])
                lost.append((4 / 3 * chip.couplers[edge].cz, pairs[a, b]))
            found.append(-sum(count * math.log1p(-min(error, 0.999)) for error, count in lost))
        return np.array(found)

    def places(self, n: int) -> Places:
        """The noise of each place; block j runs on place j mod P."""
        if self.calibration is None:
            return everywhere(self.noise, n)
        return at(self.calibration, self.noise, self.chosen(n), self.couplings(n))
