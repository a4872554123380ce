"""One weight as a product of smaller tensors.

svd   W = U V                 [out, r] [r, in], truncated at rank r; activation-aware: the error that is least is |(W -
      U V) x| over calibration inputs
mpo   W = G_1 G_2 ... G_k     cores [chi, o_k, i_k, chi'], out = prod o_k, in = prod i_k, bonds truncated at chi
      (CompactifAI, arXiv:2401.14109)

A rank and a bond are the same knob; both are called `bond` here.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from qrun.adapters.saving import read_tensors
from qrun.adapters.sites import PLACE
from qrun.compression.forms import Form
from qrun.errors import InputError
from qrun.foreign import named

FACTORS = "factors.safetensors"


def factorise(weight: Tensor, form: Form, bond: int, covariance: Tensor | None = None) -> list[Tensor]:
    """Cores [chi, o, i, chi'] of weight [out, in], by SVDs from left to right in float64; singular values go half to
    each side. With `covariance` [in, in] of the inputs (svd only) the truncation is least in the output: SVD of W S, S
    S^T = covariance (SVD-LLM, arXiv:2403.07378)."""
    out, width = weight.shape
    dims = form.dims(out, width)
    matrix = weight.double()
    whiten = None
    if covariance is not None:
        ridge = 1e-6 * covariance.double().diagonal().mean()
        identity = torch.eye(width, dtype=torch.float64, device=weight.device)
        whiten = torch.linalg.cholesky(covariance.double() + ridge * identity)
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
        last = torch.linalg.solve_triangular(whiten, cores[-1].reshape(left, width), upper=False, left=False)
        cores[-1] = last.reshape(left, 1, width, 1)
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
        device = base.weight.device
        self.cores = nn.ParameterList([nn.Parameter(core.to(device, torch.float32).clone()) for core in cores])
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        return nn.functional.linear(x, contract(list(self.cores)).to(x.dtype), self.base.bias)


def read_factors(folder: str | Path | None) -> dict[str, list[Tensor]]:
    """Cores by site of a compressed model's folder; empty where there are none. Raises InputError for a file that is
    broken, and for cores that do not make a product."""
    path = Path(folder) / FACTORS if folder else None
    if path is None or not path.exists():
        return {}
    numbered: dict[str, dict[int, Tensor]] = {}
    for name, core in read_tensors(path).items():
        match = re.fullmatch(rf"({PLACE})\.([0-7])", name)
        if match is None:
            raise InputError(f"{path}: {named(name)} is no core of a projection")
        numbered.setdefault(match[1], {})[int(match[4])] = core
    found = {site: [cores[k] for k in sorted(cores)] for site, cores in numbered.items()}
    for site, cores in found.items():
        shapes = [list(core.shape) for core in cores]
        whole = sorted(numbered[site]) == list(range(len(cores))) and all(len(shape) == 4 for shape in shapes)
        if not whole or [1, *(s[3] for s in shapes)] != [*(s[0] for s in shapes), 1]:
            raise InputError(f"{path}: the cores of {site} make no product [out, in]")
    return found
