"""`device=shots`: noiseless circuits, multinomial shots."""

from typing import Any

import numpy as np
from numba import njit, prange

from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats
from qrun.quantum.synthesis import Written


def open(setting: Setting) -> Device:
    return ShotsDevice(setting.wiring, setting.config.shots, np.dtype(setting.config.precision.value))


class ShotsDevice(Device):
    """No noise but that of counting."""

    name = "shots"

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> Any:
        return super()._prepare(blocks, turned, written).astype(self.dtype)

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        out = np.empty(units.shape, self.dtype)
        _squares(prepared, np.ascontiguousarray(units, self.dtype), out)
        return out


@njit(cache=True, parallel=True)
def _squares(blocks, units, out):  # type: ignore[no-untyped-def]
    """(Q_j x_nj)^2."""
    tokens, count, dim = units.shape
    for n in prange(tokens):
        for j in range(count):
            for a in range(dim):
                total = units.dtype.type(0)
                for b in range(dim):
                    total += blocks[j, a, b] * units[n, j, b]
                out[n, j, a] = total * total
