"""What all devices share. They take the same two calls and pass one conformance suite.

    prepared = device.prepare(blocks)                    blocks [B, b, b]; synthesis, transpilation, readout matrices:
                                                         once per set of blocks
    p = device.run(prepared, units, mask, key, numbers)  units [N, B, b] -> frequencies or probabilities [N, B, b]

`shots=None` gives exact probabilities where the device can. `mask` [N, B] is False where a slice is zero, and what
stands there in the result means nothing: the references and processors do not run such circuits, the fast devices
(shots, noisy) run them with the others.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qrun.config.schema import DeviceConfig
from qrun.errors import InputError
from qrun.quantum.circuits import check_orthogonal
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.noise import Noise
from qrun.quantum.places import Places
from qrun.quantum.sampling import sample
from qrun.quantum.wiring import Wiring

MOST_QUBITS = 6


@dataclass(frozen=True)
class Setting:
    """What a device is opened with."""

    config: DeviceConfig
    noise: Noise
    folder: Path  # of a processor's jobs
    accelerator: str | None = None  # torch device of the fast simulator; None is the processor

    @property
    def wiring(self) -> Wiring:
        return Wiring(self.noise, self.config.circuit, self.config.coupling, self.config.keep)


class Device(ABC):
    """Common checks and shots. Subclasses give exact probabilities, or override `run` where only counts exist."""

    name = "device"
    remark: str | None = None  # what to say when it is opened

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

    def prepare(self, blocks: Floats) -> Any:
        """Check the blocks and do what is needed once. Raises InputError for a b that is no circuit or a block that is
        not orthogonal."""
        n = qubits(blocks.shape[-1])
        if n > MOST_QUBITS:
            raise InputError(f"device={self.name}: blocks of {n} qubits; devices here run up to {MOST_QUBITS}")
        check_orthogonal(blocks)
        return self._prepare(np.asarray(blocks))

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, numbers: np.ndarray) -> Floats:
        """Frequencies (probabilities without shots) [N, B, b]. `key` is the stream of shots, and
        `numbers` [N] the slices' places in it."""
        p = self._probabilities(prepared, units, mask)
        return p if self.shots is None else sample(p, self.shots, key, numbers)

    def record(self) -> dict[str, Any]:
        """What a run should keep of the device beside its config, known after a measurement; plain values."""
        return {}

    def _prepare(self, blocks: Floats) -> Any:
        return blocks

    @abstractmethod
    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats: ...
