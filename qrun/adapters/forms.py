"""How the blocks of a site come from what is trained there: the seam between AdaptedLinear and a parameterisation.

CayleyForm          Q = Cayley(K), b(b-1)/2 parameters a block (adapters/cayley.py)
CircuitForm         Q = RY-CZ circuit of k CZ, n + 2 k angles a block (adapters/circuit.py)
"""

from typing import Protocol

import torch
from torch import Tensor

from qrun.adapters.cayley import cayley
from qrun.quantum.synthesis import Ansatz, Written


class Form(Protocol):
    """Parameters [B, P] to blocks [B, b, b]."""

    def start(self, count: int, dim: int) -> Tensor:
        """Parameters [count, P] in float32 whose blocks are the identity, the same at every call."""
        ...

    def blocks(self, parameters: Tensor, dim: int) -> Tensor:
        """Q [B, b, b] of the parameters' dtype, computed in float64, differentiable."""
        ...

    def shape(self, dim: int) -> Ansatz | None:
        """The order of gates, where the parameters are a circuit's."""
        ...

    def written(self, parameters: Tensor, dim: int) -> Written | None:
        """Angles [B, n + 2 k] in float64 and the order of gates, where the parameters are a circuit already."""
        ...


class CayleyForm:
    """The paper's blocks: K = 0 is the identity."""

    def start(self, count: int, dim: int) -> Tensor:
        return torch.zeros(count, dim * (dim - 1) // 2)

    def blocks(self, parameters: Tensor, dim: int) -> Tensor:
        return cayley(parameters, dim)

    def shape(self, dim: int) -> Ansatz | None:
        return None

    def written(self, parameters: Tensor, dim: int) -> Written | None:
        return None
