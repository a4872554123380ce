"""The seam between adapters and devices: who computes Q x.

An executor takes blocks Q [B, b, b] and slices x [N, B, b] and returns estimates of Q_j x_nj, same shape as the slices. In training and on the
exact device that is a batched matrix product; any other device gets the same call.
"""

from typing import Protocol

from torch import Tensor

from qrun.adapters.cayley import rotate


class Executor(Protocol):
    """Runs many (token, block) circuits on one device."""

    def __call__(self, blocks: Tensor, slices: Tensor) -> Tensor:
        """blocks [B, b, b], slices [N, B, b] -> estimates [N, B, b]."""
        ...


def exact(blocks: Tensor, slices: Tensor) -> Tensor:
    """Noise-free product Q_j x_nj."""
    return rotate(slices.flatten(1), blocks.to(slices.dtype)).view(slices.shape)
