"""`device=noisy`: the fast simulator of gate-level noise, on the processor or a GPU."""

from typing import Any

import numpy as np

from qrun.files import cache_folder
from qrun.quantum.cache import BlockCache, digest
from qrun.quantum.circuits import Gates, synthesise
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats
from qrun.quantum.noise import Noise
from qrun.quantum.simulator import probabilities, readout_matrices


def open(setting: Setting) -> Device:
    dtype, cache = np.dtype(setting.config.precision.value), BlockCache(cache_folder() / "blocks")
    return NoisyDevice(setting.noise, setting.config.shots, dtype, cache, setting.accelerator)


class NoisyDevice(Device):
    """The fast simulator. Synthesised gates are kept on disk by Q's digest, readout matrices by that and the
    noise's."""

    name = "noisy"

    def __init__(
        self, noise: Noise, shots: int | None, dtype: Any = np.float32, cache: BlockCache | None = None,
        accelerator: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(noise, shots, dtype)
        self.cache = cache or BlockCache(None)
        self.accelerator = accelerator  # a torch device such as cuda; None is the compiled kernel on the processor

    def _prepare(self, blocks: Floats) -> Any:
        if blocks.shape[-1] <= 8:  # up to three qubits they are made faster than read
            return readout_matrices(self.gates(blocks), self.noise, self.dtype)
        key = f"{digest(blocks)}-{self.noise.digest}-{np.dtype(self.dtype).name}"
        return self.cache.array("readout", key, lambda: readout_matrices(self.gates(blocks), self.noise, self.dtype))

    def gates(self, blocks: Floats) -> list[Gates]:
        return self.cache.gates(digest(blocks), lambda: [synthesise(block) for block in blocks])

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        if self.accelerator is None:
            return probabilities(units, prepared, self.noise)
        import torch

        from qrun.quantum import accelerated

        tensors = [torch.as_tensor(array, device=self.accelerator) for array in (units, prepared)]
        return accelerated.probabilities(tensors[0], tensors[1], self.noise).cpu().numpy()
