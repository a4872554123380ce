"""Principal-subspace rotations against their formula."""

import pytest
import torch

from qrun.adapters.cayley import cayley
from qrun.adapters.methods import spec
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

PSOFT = spec("psoft")


def config(rank, scales=True):
    return AdapterConfig(method="psoft", rank=rank, options={"scales": scales})


@pytest.mark.parametrize("scales", [True, False])
def test_the_principal_part_of_the_weight_is_turned_and_the_rest_stays(tiny, scales):
    chosen = select(sites(tiny.shape), ["up_proj"], ["0"])
    adapter = PSOFT.attach(tiny.model, chosen, config(6, scales))
    (module,) = adapter.modules.values()
    found = {name.rpartition(".")[2]: p for name, p in adapter.tensors().items()}
    assert set(found) == ({"weight", "vector_a", "vector_b"} if scales else {"weight"})
    for parameter in found.values():
        parameter.data.normal_()
    rotation = cayley(-2 * found["weight"][None], 6)[0]  # PEFT's (I + S)(I - S)^-1: S = -K/2
    if scales:
        rotation = found["vector_b"][:, None] * rotation * found["vector_a"]
    weight = module.base_layer.weight
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    turned = weight + u[:, :6] * s[:6] @ (rotation - torch.eye(6)) @ v[:6]
    x = torch.randn(5, 32)
    torch.testing.assert_close(module(x), x @ turned.T, atol=1e-4, rtol=1e-4)


def test_counts_and_the_matched_rank(tiny):
    every = sites(tiny.shape)
    assert PSOFT.count(config(6), every) == 14 * (15 + 12) and PSOFT.count(config(6, False), every) == 14 * 15
    for budget, rank in ((1, 2), (720, 9), (14 * 27, 6), (10**6, 16)):
        assert PSOFT.matched(AdapterConfig(), every, budget).rank == rank


def test_steps_shrink_with_the_rank_as_a_blocks_do():
    assert PSOFT.steps(0.01, 1.0, config(16), 1.0) == (0.0025, 1.0)
    assert PSOFT.steps(0.01, 1.0, config(16), 0.0) == (0.01, 1.0)


def test_a_rank_above_the_weights_is_refused(tiny):
    with pytest.raises(
        InputError, match=r"adapter\.rank=17: adapter.method=psoft needs 2 to 16, .* layers\.0\.self_attn\.k_proj"
    ):
        PSOFT.check(config(17), sites(tiny.shape))
    with pytest.raises(InputError, match=r"adapter\.rank=1: adapter.method=psoft needs"):
        PSOFT.check(config(1), sites(tiny.shape))
