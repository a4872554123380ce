"""How trained blocks are distributed: all rotation angles and operator-Schmidt values, beside those of Haar-random
blocks. diagnostics.py has their means, and what they are.

    angles, values = spectra(trained_blocks(adapter))
"""

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.adapters.diagnostics import schmidt, turns
from qrun.adapters.linear import Adapter

Values = NDArray[np.float64]
HAAR = 400  # random blocks of the reference, always the same


@torch.no_grad()
def trained_blocks(adapter: Adapter) -> Tensor:
    """All blocks [B, b, b] of an adapter, in float64 on the CPU."""
    pairs = zip(adapter.modules.values(), adapter.tensors().values(), strict=True)
    return torch.cat([module.form.blocks(own.detach().cpu().double(), adapter.config.dim) for module, own in pairs])


def haar_blocks(dim: int) -> Tensor:
    """HAAR random rotations [HAAR, b, b]."""
    return torch.from_numpy(np.asarray(scipy.stats.special_ortho_group.rvs(dim, HAAR, np.random.default_rng(0))))


def spectra(blocks: Tensor) -> tuple[Values, Values | None]:
    """Of blocks [B, b, b]: rotation angles in degrees [B floor(b/2)], and operator-Schmidt values [B, 4^n_A], largest
    first; None where b is no power of two from 4."""
    dim = blocks.shape[-1]
    degrees = torch.rad2deg(turns(blocks)[:, dim % 2 :]).flatten().numpy()  # an odd b has an axis that stays
    return degrees, schmidt(blocks).numpy() if dim >= 4 and dim & (dim - 1) == 0 else None
