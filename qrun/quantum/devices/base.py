"""What all devices share. They take the same two calls and pass one conformance suite.

    prepared = device.prepare(blocks, turned)            blocks [B, b, b]; synthesis, transpilation, readout matrices:
                                                         once per set of blocks and setting (quantum/estimates.py)
    p = device.run(prepared, units, mask, key, numbers)  units [N, B, b] -> frequencies or probabilities [N, B, b]
    device.run_all([...])                                several of those at once: a processor's share jobs

`shots=None` gives exact probabilities where the device can. `mask` [N, B] is False where a slice is zero, and what
stands there in the result means nothing: the references and processors do not run such circuits, the fast devices
(shots, noisy) run them with the others. Where slices have shots of their own, integers stand in the mask's place.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrun.config.schema import DeviceConfig
from qrun.errors import InputError
from qrun.quantum.circuits import Circuits, check_orthogonal, with_reference
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.estimates import rotation
from qrun.quantum.noise import Noise
from qrun.quantum.places import Places
from qrun.quantum.sampling import sample
from qrun.quantum.synthesis import Ansatz, Written
from qrun.quantum.wiring import Wiring

MOST_QUBITS = 6
Request = tuple[Any, Floats, np.ndarray, int, np.ndarray]  # arguments of `run`


@dataclass(frozen=True)
class Setting:
    """What a device is opened with."""

    config: DeviceConfig
    noise: Noise
    folder: Path  # of a processor's jobs
    accelerator: str | None = None  # torch device of the fast simulator; None is the processor
    reference: bool = False  # circuits have a qubit more, for signs=reference
    ansatz: Ansatz | None = None  # of blocks that are circuits already

    @property
    def wiring(self) -> Wiring:
        c = self.config
        return Wiring(self.noise, c.circuit, c.coupling, c.keep, reference=self.reference, ansatz=self.ansatz)


class Device(ABC):
    """Common checks and shots. Subclasses give exact probabilities, or override `_run` where only counts exist."""

    name = "device"
    remark: str | None = None  # what to say when it is opened
    accelerator: str | None = None  # torch device that takes slices and gives frequencies as tensors

    def __init__(self, wiring: Wiring, shots: int | None, dtype: Any = np.float32) -> None:
        if shots is not None and shots < 1:
            raise InputError(f"device.shots={shots}: give 1 or more, or null for exact probabilities")
        self.wiring, self.shots, self.dtype = wiring, shots, dtype
        self._places: dict[int, Places] = {}

    @property
    def noise(self) -> Noise:
        return self.wiring.noise

    def places(self, n: int) -> Places:
        """The noise where blocks of n qubits run; packed once."""
        if n not in self._places:
            self._places[n] = self.wiring.places(n)
        return self._places[n]

    def prepare(self, blocks: Floats, turned: bool = False, written: Written | None = None) -> Any:
        """Check the blocks and do what is needed once. `turned` ends every circuit with RY(pi/2) on each qubit;
        `written` are circuits that the blocks have already. Raises InputError for a b that is no circuit or a block
        that is not orthogonal."""
        n = qubits(blocks.shape[-1]) + self.wiring.reference
        if n > MOST_QUBITS:
            raise InputError(f"device={self.name}: blocks of {n} qubits; devices here run up to {MOST_QUBITS}")
        check_orthogonal(blocks)
        return self._prepare(np.asarray(blocks), turned, written)

    def circuits(self, blocks: Floats, turned: bool, written: Written | None) -> Circuits:
        """As they are sent."""
        found = self.wiring.circuits(blocks, written)
        return found.turned() if turned else found

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        """Frequencies (probabilities without shots) [N, B, b], 2b with a reference. `key` is the stream of shots, and
        `numbers` [N] the slices' places in it."""
        return self.run_all([(prepared, units, mask, key, numbers)])[0]

    def run_all(self, requests: Sequence[Request]) -> list[Floats]:
        """Several runs; a processor takes them as one."""
        return [
            self._run(made, self._encoded(made, units), mask, key, numbers)
            for made, units, mask, key, numbers in requests
        ]

    def _encoded(self, prepared: Any, units: Any) -> Any:
        """What circuits prepare for these slices."""
        circuits = self.written(prepared)
        return units if circuits is None else circuits.encoded(units)

    def _run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        return self._counted(self._probabilities(prepared, units, mask), mask, key, numbers)

    def _counted(self, p: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        return p if self.shots is None else sample(p, self.shots if mask.dtype == bool else mask, key, numbers)

    def confusion(self, prepared: Any, dim: int, counted: int | None, seed: int = 0) -> NDArray[np.float64]:
        """Readout matrices [B, n, 2, 2] per bit of a slice's index, columns true and rows read: as the noise says, or
        from `counted` shots of the circuits all |0> and all |1>."""
        circuits, places = self.written(prepared), self.places(qubits(dim))
        rng = np.random.default_rng(seed)  # one calibration for all sites and settings
        tables = np.array([[_read(noise, counted, rng) for noise in row] for row in places.one])
        if circuits is None:
            return tables[:1]
        return np.stack([tables[places.of(j), circuits.wires[j]] for j in range(len(circuits))])

    def written(self, prepared: Any) -> Circuits | None:
        """The circuits in what `prepare` made; None where there are none."""
        return prepared if isinstance(prepared, Circuits) else None

    def record(self) -> dict[str, Any]:
        """What a run should keep of the device beside its config, known after a measurement; plain values."""
        return {}

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> Any:
        """The matrices themselves, for a device without circuits."""
        if self.wiring.reference:
            return with_reference(blocks)
        return rotation(qubits(blocks.shape[-1])) @ blocks if turned else blocks

    @abstractmethod
    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats: ...


def _read(noise: Noise, counted: int | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """A qubit's readout matrix; counted, with the error of the X gate that prepares |1>."""
    table = np.array(noise.confusion)
    if counted is None:
        return table
    _, longitudinal, shift = noise.rates(1)[:3]
    ones = (1 + longitudinal - shift) / 2  # true share of |1> after X
    chance = table @ np.array([[1, 1 - ones], [0, ones]])
    found = rng.binomial(counted, np.clip(chance[1], 0, 1)) / counted
    return np.array([1 - found, found])
