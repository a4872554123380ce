"""A trained adapter cut to circuits of k CZ: each block by the circuit of least |circuit - Q|_F, without training.

Levenberg-Marquardt of quantum/synthesis.py with the order of gates of adapters/circuit.py, from the palindrome, which
is the identity, and from RANDOM starts beside it; so no block ends farther from its circuit than from the identity.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from qrun.adapters.circuit import CircuitForm
from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods.circuit import METHOD
from qrun.adapters.sites import Site
from qrun.files import cache_folder
from qrun.quantum.cache import Arrays, BlockCache, digest
from qrun.quantum.synthesis import Floats, nearest_angles

RANDOM = 2


def _nearest(blocks: Floats, starts: Floats, form: CircuitForm) -> Arrays:
    return {"angles": nearest_angles(blocks, starts, form.shape(blocks.shape[-1]))}


def cut(model: nn.Module, selected: Sequence[Site], adapter: Adapter, czs: int) -> Adapter:
    """Replace an adapter of orthogonal blocks in its model by the nearest one of method circuit. Raises InputError for
    a block dimension or a number of CZ that is no such circuit."""
    config = replace(adapter.config, method=METHOD.name, options={"czs": czs})
    METHOD.check(config, selected)
    angles, kept = {}, BlockCache(cache_folder() / "blocks")
    for name, module in adapter.modules.items():
        with torch.no_grad():
            blocks = module.form.blocks(module.trained.double(), config.dim).cpu().numpy()
        form = CircuitForm(METHOD.czs(config), name)
        palindrome = form.start(len(blocks), config.dim).double().numpy()
        drawn = np.random.default_rng(0).uniform(-np.pi, np.pi, (RANDOM, 1, palindrome.shape[1]))
        starts = np.concatenate([palindrome[None], np.repeat(drawn, len(blocks), 1)])
        key = f"{digest(blocks)}-{METHOD.czs(config)}-{digest(starts)}"
        angles[name] = torch.from_numpy(kept.arrays("cut", key, partial(_nearest, blocks, starts, form))["angles"])
    detach(model, adapter)
    found = METHOD.attach(model, selected, config)
    found.load(angles)
    return found
