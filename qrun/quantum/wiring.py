"""How block circuits meet qubits: their coupling, how Q is written, where they run, and with which noise.

device.coupling   line: neighbours on a path, as superconducting chips have them; full: every pair
device.keep       with noise.calibration, the share of the chip's places that is used, the best ones
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qrun.quantum.calibration import Calibration, calibration
from qrun.quantum.circuits import Circuits, block_circuits, generic, generic_block
from qrun.quantum.encoding import Floats as Blocks
from qrun.quantum.layout import Place, pack
from qrun.quantum.noise import Noise
from qrun.quantum.places import Places, at, everywhere
from qrun.quantum.preparation import Preparation, preparation
from qrun.quantum.simulator import prepare, probabilities
from qrun.quantum.synthesis import Edges, Floats, path

SLICES = 200  # that judge a place


@dataclass(frozen=True)
class Wiring:
    """Everything between a block and its gates with their noise."""

    noise: Noise
    synthesis: str = "line"
    coupling: str = "line"
    keep: float = 1.0
    chip: Calibration | None = None  # a processor's own, instead of the noise's

    @cached_property
    def calibration(self) -> Calibration | None:
        return self.chip or (calibration(self.noise.calibration) if self.noise.calibration else None)

    def edges(self, n: int) -> Edges:
        return path(n) if self.coupling == "line" else tuple((a, b) for b in range(n) for a in range(b))

    def preparation(self, n: int) -> Preparation:
        return preparation(n, self.edges(n))

    def circuits(self, blocks: Blocks) -> Circuits:
        return block_circuits(blocks, self.edges(blocks.shape[-1].bit_length() - 1), self.synthesis)

    def counts(self, n: int) -> dict[str, int]:
        """Gates and qubits of the circuit of a generic block."""
        return {**generic(2**n, self.edges(n), self.synthesis).counts(), "qubits": n}

    def chosen(self, n: int) -> list[Place]:
        """Places on the calibrated chip, best first; none without a calibration."""
        if self.calibration is None:
            return []
        return pack(self.calibration, n, self.edges(n), self.keep, lambda places: self.errors(n, places))

    def errors(self, n: int, places: Sequence[Place]) -> Floats:
        """Mean squared error [P] of |Q x| for unit slices x and a generic block at each place, simulated without shots
        under the chip's own rates (places stay where they are when a study moves the noise)."""
        assert self.calibration is not None
        edges, block = self.edges(n), generic_block(2**n)
        slices = np.random.default_rng(0).normal(size=(SLICES, 1, 2**n))
        slices /= np.linalg.norm(slices, axis=-1, keepdims=True)
        circuits = generic(2**n, edges, self.synthesis).take([0] * len(places))
        there = at(self.calibration, self.calibration.typical, places, edges)
        prepared = prepare(self.preparation(n), circuits, there, np.float64)
        found = np.sqrt(np.maximum(probabilities(np.repeat(slices, len(places), 1), prepared), 0))
        errors: Floats = np.square(found - np.abs(slices @ block.T)).sum(-1).mean(0)
        return errors

    def places(self, n: int) -> Places:
        """The noise of each place; block j runs on place j mod P."""
        if self.calibration is None:
            return everywhere(self.noise, n)
        return at(self.calibration, self.noise, self.chosen(n), self.edges(n))
