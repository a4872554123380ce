"""Circuits behind the seam of adapters (linear.Executor): a device computes Q x.

An executor takes blocks Q [B, b, b] and slices x [N, B, b] and returns estimates of Q_j x_nj, same shape as the slices.
In training and on the exact device that is a batched matrix product; any other device gets the same call.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.adapters.cayley import rotate
from qrun.config.schema import Sign
from qrun.errors import InputError
from qrun.quantum.devices.base import Device
from qrun.quantum.encoding import estimate, normalise
from qrun.quantum.sampling import stream_key
from qrun.rows import current


def exact(blocks: Tensor, slices: Tensor) -> Tensor:
    """Noise-free product Q_j x_nj."""
    return rotate(slices.flatten(1), blocks.to(slices.dtype)).view(slices.shape)


@dataclass
class Statistics:
    """Sums over everything an executor ran; `summary` makes rates of them."""

    circuits: int = 0
    empty: int = 0  # zero slices, for which no circuit ran
    seconds: float = 0.0
    flips: float = 0.0  # channels whose sign the rotation changes
    channels: int = 0
    error: float = 0.0  # sum of |estimate - Q x|^2, of sign-constrained adapters |estimate - sign(x) |Qx||^2
    power: float = 0.0  # sum of |x|^2
    angle: float = 0.0  # sum of the angle between x and Q x, radians

    def summary(self) -> dict[str, float]:
        """Fraction of sign flips, relative error (root mean square), mean rotation angle in degrees, circuits
        and seconds."""
        return {
            "circuits": self.circuits, "zero_slices": self.empty, "circuit_seconds": self.seconds,
            "sign_flips": self.flips / max(self.channels, 1),
            "relative_error": (self.error / max(self.power, 1e-300)) ** 0.5,
            "rotation_degrees": float(np.degrees(self.angle / max(self.circuits, 1))),
        }  # fmt: skip


class CircuitExecutor:
    """Estimates from a device, one stream of shots per site, each position of a text with its own place in it
    (qrun/rows.py): the same seed gives the same bits for any batch and any split. `constrained` adapters are meant to
    give sign(x) |Qx|."""

    def __init__(self, device: Device, sign: Sign, seed: int, constrained: bool = False) -> None:
        if constrained and sign is Sign.exact:
            how = "its forward pass is sign(x) |Qx|; use readout=input"
            raise InputError(f"readout=exact: a sign-constrained adapter has no other signs, {how}")
        self.device, self.sign, self.seed, self.constrained = device, sign, seed, constrained
        self.statistics = Statistics()

    def site(self, name: str) -> "SiteExecutor":
        return SiteExecutor(self, name)


class SiteExecutor:
    """The executor of one site: keeps its prepared blocks and counts its circuits."""

    def __init__(self, parent: CircuitExecutor, name: str) -> None:
        self.parent, self.key = parent, stream_key(parent.seed, name)
        self.rows = 0  # seen without a number
        self._prepared: tuple[Tensor, Any] | None = None

    def prepare(self, blocks: Tensor) -> Any:
        """Synthesis and readout matrices, again only when the blocks change."""
        if self._prepared is None or not (self._prepared[0] is blocks or torch.equal(self._prepared[0], blocks)):
            self._prepared = (blocks, self.parent.device.prepare(blocks.detach().double().cpu().numpy()))
        return self._prepared[1]

    @torch.no_grad()
    def __call__(self, blocks: Tensor, slices: Tensor) -> Tensor:
        numbers = current()
        if numbers is None:  # token by token, as text is generated
            numbers = np.arange(self.rows, self.rows + len(slices))
            self.rows += len(slices)
        real = torch.from_numpy(np.flatnonzero(numbers >= 0)).to(slices.device)  # padding runs no circuits
        out = torch.zeros_like(slices)
        out[real] = self._estimates(blocks, slices[real], numbers[numbers >= 0]).to(slices.device, slices.dtype)
        return out

    def _estimates(self, blocks: Tensor, slices: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        parent, started = self.parent, time.perf_counter()
        prepared = self.prepare(blocks)
        x = slices.detach().to("cpu", torch.float64 if parent.device.dtype is np.float64 else torch.float32)
        product = exact(blocks.to(x.device), x).numpy()
        vectors = x.numpy()
        units, norms = normalise(vectors)
        mask = norms > 0
        outcome = parent.device.run(prepared, units, mask, self.key, numbers)
        estimates = estimate(outcome, norms, vectors if parent.sign is Sign.input else product)
        meant = np.where(vectors < 0, -np.abs(product), np.abs(product)) if parent.constrained else product
        seen, power = parent.statistics, np.square(norms)
        seen.circuits += int(mask.sum())
        seen.empty += int(mask.size - mask.sum())
        seen.flips += int(((product < 0) != (vectors < 0)).sum())
        seen.channels += vectors.size
        seen.error += float(np.square(estimates - meant).sum(dtype=np.float64))
        seen.power += float(power.sum(dtype=np.float64))
        cosine = np.einsum("nji,nji->nj", vectors, product) / np.where(mask, power, 1)
        seen.angle += float(np.arccos(np.clip(cosine, -1, 1))[mask].sum(dtype=np.float64))
        seen.seconds += time.perf_counter() - started
        return torch.from_numpy(np.ascontiguousarray(estimates))
