"""One weight as a product of smaller tensors.

svd   W = U V                 [out, r] [r, in], truncated at rank r; activation-aware: the error that is least is |(W -
      U V) x| over calibration inputs
mpo   W = G_1 G_2 ... G_k     cores [chi, o_k, i_k, chi'], out = prod o_k, in = prod i_k, bonds truncated at chi
      (CompactifAI, arXiv:2401.14109)

A rank and a bond are the same knob; both are called `bond` here.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qrun.config.schema import CompressionKind
from qrun.errors import InputError

FACTORS = "factors.safetensors"


@dataclass(frozen=True)
class Form:
    """How weights are factored: kind, and for mpo the number of cores."""

    kind: CompressionKind
    cores: int = 2

    def dims(self, out: int, width: int) -> list[tuple[int, int]]:
        """(o_k, i_k) of the cores; one core of SVD's middle bond is (out, 1), (1, in)."""
        if self.kind is CompressionKind.svd:
            return [(out, 1), (1, width)]
        return list(zip(balanced(out, self.cores), balanced(width, self.cores), strict=True))

    def full(self, out: int, width: int) -> list[int]:
        """Full rank of every bond."""
        sizes = [o * i for o, i in self.dims(out, width)]
        return [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]

    def count(self, out: int, width: int, bond: int) -> int:
        """Parameters at a bond."""
        bonds = [1, *(min(bond, full) for full in self.full(out, width)), 1]
        return sum(
            left * o * i * right
            for (o, i), left, right in zip(self.dims(out, width), bonds[:-1], bonds[1:], strict=True)
        )

    def bond_for(self, out: int, width: int, ratio: float) -> int:
        """Largest bond whose parameters are at most `ratio` of the dense weight; InputError if even bond 1 has more."""
        most, budget = max(self.full(out, width)), ratio * out * width
        if self.count(out, width, 1) > budget:
            least = self.count(out, width, 1) / (out * width)
            raise InputError(
                f"compression.ratio={ratio:g}: cannot be reached; a {out} x {width} weight has at least "
                f"{least:.3f} of its parameters at bond 1"
            )
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count(out, width, middle) <= budget else (low, middle - 1)
        return low

    def check_bond(self, out: int, width: int, bond: int, where: str) -> None:
        """Raise InputError for a bond above full rank, which would truncate nothing."""
        most = max(self.full(out, width))
        if bond > most:
            raise InputError(
                f"compression.bond={bond}: above the full rank {most} of {where} ({out} x {width}, "
                f"{self.kind.value}, {self.cores} cores)"
            )


def balanced(size: int, parts: int) -> list[int]:
    """`size` as a product of `parts` factors, each the divisor nearest to the even share of what is left."""
    factors = []
    for left in range(parts, 1, -1):
        share = size ** (1 / left)
        best = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: abs(math.log(d / share)))
        factors.append(best)
        size //= best
    return [*factors, size]


def factorise(weight: Tensor, form: Form, bond: int, covariance: Tensor | None = None) -> list[Tensor]:
    """Cores [chi, o, i, chi'] of weight [out, in], by SVDs from left to right in float64; singular values go half
    to each side.

    With `covariance` [in, in] of the inputs (svd only) the truncation is least in the output: SVD of W S, S S^T =
    covariance (SVD-LLM, arXiv:2403.07378).
    """
    out, width = weight.shape
    dims = form.dims(out, width)
    matrix = weight.double()
    whiten = None
    if covariance is not None:
        scale = covariance.double().diagonal().mean()
        whiten = torch.linalg.cholesky(
            covariance.double() + 1e-6 * scale * torch.eye(width, dtype=torch.float64, device=weight.device)
        )
        matrix = matrix @ whiten
    order = [index for k in range(len(dims)) for index in (k, len(dims) + k)]
    rest = matrix.reshape([o for o, _ in dims] + [i for _, i in dims]).permute(order)
    cores, left = [], 1
    for o, i in dims[:-1]:
        u, s, v = torch.linalg.svd(rest.reshape(left * o * i, -1), full_matrices=False)
        keep = min(bond, len(s))
        root = s[:keep].sqrt()
        cores.append((u[:, :keep] * root).reshape(left, o, i, keep))
        rest, left = root[:, None] * v[:keep], keep
    cores.append(rest.reshape(left, *dims[-1], 1))
    if whiten is not None:
        cores[-1] = torch.linalg.solve_triangular(
            whiten, cores[-1].reshape(left, width), upper=False, left=False
        ).reshape(left, 1, width, 1)
    return [core.to(weight.dtype).contiguous() for core in cores]


def contract(cores: list[Tensor]) -> Tensor:
    """The weight [out, in] of its cores."""
    result = cores[0]
    for core in cores[1:]:
        left, o, i, _ = result.shape
        _, p, j, right = core.shape
        result = torch.einsum("aoic,cpjr->aopijr", result, core).reshape(left, o * p, i * j, right)
    return result[0, :, :, 0]


class FactoredLinear(nn.Module):
    """A linear layer whose weight is the contraction of trainable cores: healing moves these and keeps the size."""

    def __init__(self, base: nn.Linear, cores: list[Tensor]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.cores = nn.ParameterList(
            [nn.Parameter(core.to(base.weight.device, torch.float32).clone()) for core in cores]
        )
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        return nn.functional.linear(x, contract(list(self.cores)).to(x.dtype), self.base.bias)


def read_factors(folder: str | Path | None) -> dict[str, list[Tensor]]:
    """Cores by site of a compressed model's folder; empty where there are none."""
    from safetensors.torch import load_file

    path = Path(folder).expanduser() / FACTORS if folder else None
    if path is None or not path.is_file():
        return {}
    found: dict[str, list[Tensor]] = {}
    for name, core in sorted(
        load_file(path).items(), key=lambda item: (item[0].rpartition(".")[0], int(item[0].rpartition(".")[2]))
    ):
        found.setdefault(name.rpartition(".")[0], []).append(core)
    return found
