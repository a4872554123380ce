"""A trained adapter cut to circuits of k CZ: each block by the circuit of least |circuit - Q|_F, without training.

Levenberg-Marquardt of quantum/synthesis.py with the order of gates of adapters/circuit.py, from the palindrome, which
is the identity, and from RANDOM starts beside it; so no block ends farther from its circuit than from the identity.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from qrun.adapters.circuit import CircuitForm
from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods.circuit import METHOD
from qrun.adapters.sites import Site
from qrun.quantum.synthesis import nearest_angles

RANDOM = 3


def cut(model: nn.Module, selected: Sequence[Site], adapter: Adapter, czs: int) -> Adapter:
    """Replace an adapter of orthogonal blocks in its model by the nearest one of method circuit. Raises InputError for
    a block dimension or a number of CZ that is no such circuit."""
    config = replace(adapter.config, method=METHOD.name, options={"czs": czs})
    METHOD.check(config, selected)
    angles = {}
    for name, module in adapter.modules.items():
        with torch.no_grad():
            blocks = module.form.blocks(module.trained.double(), config.dim).cpu().numpy()
        form = CircuitForm(METHOD.czs(config), name)
        palindrome = form.start(len(blocks), config.dim).double().numpy()
        drawn = np.random.default_rng(0).uniform(-np.pi, np.pi, (RANDOM, 1, palindrome.shape[1]))
        starts = np.concatenate([palindrome[None], np.repeat(drawn, len(blocks), 1)])
        angles[name] = torch.from_numpy(nearest_angles(blocks, starts, form.shape(config.dim)))
    detach(model, adapter)
    found = METHOD.attach(model, selected, config)
    found.load(angles)
    return found
