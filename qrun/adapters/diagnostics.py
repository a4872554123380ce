"""What trained blocks look like: operator-Schmidt spectrum, entropy, effective bond dimension, rotation angles, sign
flips.

Q on n = n_A + n_B qubits, n_A = floor(n/2), is reshaped from Q[(a b), (a' b')] to M[(a a'), (b b')]; with singular
values s_k and p_k = s_k^2 / 2^n the entropy is S = -sum p_k log2 p_k, at most 2 n_A bits, and 2^S the effective bond
dimension: 1 for a product of local rotations, as for K = 0. The references are K = 0 and Haar-random SO(b). The paper
reports "effective bond dimension" and "entropy ratios" without values (its Extended Data Table 7).
"""

from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from qrun.adapters.cayley import rotate, skew
from qrun.adapters.linear import Adapter

HAAR = 64  # random blocks behind the reference


def schmidt(blocks: Tensor) -> Tensor:
    """p_k [B, 4^n_A] of blocks [B, b, b], largest first; b a power of two, 4 or more."""
    count, dim, _ = blocks.shape
    n = dim.bit_length() - 1
    a, b = 2 ** (n // 2), 2 ** (n - n // 2)
    matrix = blocks.double().view(count, a, b, a, b).permute(0, 1, 3, 2, 4).reshape(count, a * a, b * b)
    return torch.linalg.svdvals(matrix).square() / dim


def entropy(p: Tensor) -> Tensor:
    """-sum p log2 p over the last axis, in bits."""
    return -(p * p.clamp_min(1e-300).log2()).sum(-1)


def angles(parameters: Tensor, dim: int) -> Tensor:
    """Rotation angles [B, floor(b/2)] in radians: an eigenvalue i k of K turns its plane by 2 atan(k/2)."""
    values = torch.linalg.eigvalsh(1j * skew(parameters.double(), dim))  # pairs +-k
    return 2 * torch.atan(values[:, -(dim // 2) :].abs() / 2)


def turns(blocks: Tensor) -> Tensor:
    """Rotation angles [B, floor(b/2)] in radians of blocks [B, b, b] of any form, b even: their eigenvalues are pairs
    exp(+-i angle)."""
    return torch.linalg.eigvals(blocks.double()).angle().abs().sort(1).values[:, ::2]


def describe(adapter: Adapter) -> dict[str, float]:
    """Metrics over all blocks of an adapter, norm_k of Cayley blocks alone; the Schmidt part only where blocks have two
    qubits or more."""
    dim, of_cayley = adapter.config.dim, adapter.config.method == "cayley"
    sites = [(module.form, p.detach().cpu()) for module, p in zip(adapter.modules.values(), adapter.tensors().values(),
                                                                  strict=True)]  # fmt: skip
    own = torch.cat([form.blocks(parameters.double(), dim) for form, parameters in sites])
    parameters = torch.cat([parameters for _, parameters in sites])
    turned = angles(parameters, dim) if of_cayley else turns(own)
    found = {
        "rotation_degrees": float(torch.rad2deg(turned).mean()),
        "rotation_degrees_largest": float(torch.rad2deg(turned.max())),
    }  # fmt: skip
    if of_cayley:
        found["norm_k"] = float(skew(parameters, dim).flatten(1).norm(dim=1).mean())
    if dim >= 4 and dim & (dim - 1) == 0:
        random = scipy.stats.special_ortho_group.rvs(dim, size=HAAR, random_state=np.random.default_rng(0))
        haar = torch.from_numpy(np.asarray(random))
        for name, blocks in (("", own), ("haar_", haar)):
            p = schmidt(blocks)
            s = entropy(p)
            found |= {f"{name}entropy_bits": float(s.mean()), f"{name}effective_bond": float((2**s).mean())}
            found[f"{name}second_schmidt"] = float(p[:, 1].mean())
        found["entropy_ratio"] = found["entropy_bits"] / found["haar_entropy_bits"]
        found["entropy_most_bits"] = 2.0 * ((dim.bit_length() - 1) // 2)
    return found


@torch.no_grad()
def on_text(model: Any, adapter: Adapter, ids: Tensor) -> dict[str, float]:
    """Share of channels whose sign Q changes, and |Q x - x| / |x|, over the activations of windows [n, T]."""
    flips = channels = moved = power = 0.0

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flips, channels, moved, power
        x = inputs[0] if module.side.value == "input" else module.base(inputs[0])
        z = rotate(x, module.blocks().to(x.dtype))
        flips += float(((x < 0) != (z < 0)).sum())
        channels += x.numel()
        moved += float((z - x).float().square().sum())
        power += float(x.float().square().sum())

    handles = [module.register_forward_hook(hook) for module in adapter.modules.values()]
    try:
        model.model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {"sign_flips": flips / max(channels, 1), "relative_change": (moved / max(power, 1e-300)) ** 0.5}
