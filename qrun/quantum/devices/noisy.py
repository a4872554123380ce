"""`device=noisy`: the fast simulator of gate-level noise, on the processor or a GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrun.files import cache_folder
from qrun.quantum.cache import BlockCache
from qrun.quantum.circuits import Circuits
from qrun.quantum.devices.base import Device, Request, Setting
from qrun.quantum.encoding import Floats
from qrun.quantum.simulator import Prepared, prepare, probabilities
from qrun.quantum.synthesis import Written
from qrun.quantum.wiring import Wiring


def open(setting: Setting) -> Device:
    dtype, cache = np.dtype(setting.config.precision.value), BlockCache(cache_folder() / "blocks")
    return NoisyDevice(setting.wiring, setting.config.shots, dtype, cache, setting.accelerator)


class NoisyDevice(Device):
    """The fast simulator. Circuits of blocks are kept on disk by Q's digest."""

    name = "noisy"

    def __init__(
        self, wiring: Wiring, shots: int | None, dtype: Any = np.float32, cache: BlockCache | None = None,
        accelerator: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(wiring, shots, dtype)
        self.cache = cache or BlockCache(None)
        self.accelerator = accelerator  # a torch device such as cuda; None is the compiled kernel on the processor

    def circuits(self, blocks: Floats, turned: bool, written: Written | None) -> Circuits:
        kept = blocks.shape[-1] > 4 and written is None
        found = self.cache.circuits(blocks, self.wiring) if kept else self.wiring.circuits(blocks, written)
        return found.turned() if turned else found

    def written(self, prepared: Any) -> Circuits:
        circuits: Circuits = prepared.circuits
        return circuits

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> Any:
        n = self.wiring.qubits(blocks.shape[-1])
        made = prepare(self.wiring.preparations(n), self.circuits(blocks, turned, written), self.places(n), self.dtype)
        if self.accelerator is None:
            return made
        from qrun.quantum import accelerated

        return accelerated.load(made, self.accelerator)

    def _encoded(self, prepared: Any, units: Any) -> Any:
        return units if self.accelerator else super()._encoded(prepared, units)

    def run_all(self, requests: Sequence[Request]) -> list[Floats]:
        """Requests for the same slices and preparation, such as the two settings of a block, share one simulation."""
        if self.accelerator:
            return super().run_all(requests)
        found: dict[int, Floats] = {}
        for index, (made, units, *_) in enumerate(requests):
            if index in found:
                continue
            alike = [
                i
                for i, (other, slices, *_) in enumerate(requests)
                if i == index or (i > index and slices is units and made.begins_like(other))
            ]
            p = probabilities(self._encoded(made, units), *(requests[i][0] for i in alike))
            for i, own in zip(alike, p if len(alike) > 1 else [p], strict=True):
                found[i] = self._counted(own, *requests[i][2:])
        return [found[index] for index in range(len(requests))]

    def _run(self, prepared: Any, units: Any, mask: Any, key: int, numbers: np.ndarray) -> Any:
        """On an accelerator slices that are there stay there, and so do their frequencies."""
        import torch

        from qrun.quantum import accelerated, resident

        p = accelerated.probabilities(torch.as_tensor(units, device=self.accelerator), prepared)
        own = isinstance(mask, torch.Tensor) and mask.dtype != torch.bool
        found = p if self.shots is None else resident.sample(p, mask if own else self.shots, key, numbers)
        return found if isinstance(units, torch.Tensor) else found.cpu().numpy()

    def _probabilities(self, prepared: Prepared, units: Floats, mask: np.ndarray) -> Floats:
        return probabilities(units, prepared)
