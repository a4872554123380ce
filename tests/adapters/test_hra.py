"""Householder reflections against their formula."""

import pytest
import torch

from qrun.adapters.methods import spec
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

HRA = spec("hra")


def test_the_layer_is_the_weight_times_its_reflections(tiny):
    chosen = select(sites(tiny.shape), ["down_proj"], ["1"])
    adapter = HRA.attach(tiny.model, chosen, AdapterConfig(method="hra", rank=4))
    (u,), (module,) = adapter.tensors().values(), adapter.modules.values()
    assert u.shape == (48, 4) and torch.equal(u[:, 0], u[:, 1]) and torch.equal(u[:, 2], u[:, 3])
    u.data.normal_()
    weight = module.base_layer.weight
    for vector in (u / u.norm(dim=0)).T:
        weight = weight @ (torch.eye(48) - 2 * torch.outer(vector, vector))
    x = torch.randn(5, 48)
    torch.testing.assert_close(module(x), x @ weight.T, atol=1e-5, rtol=1e-5)


def test_steps_shrink_with_the_length_of_the_drawn_vectors():
    assert HRA.steps(0.01, 1.0, AdapterConfig(method="hra", rank=2), 1.0) == (0.01, 1.0)
    assert HRA.steps(0.01, 1.0, AdapterConfig(method="hra", rank=8), 1.0) == (0.005, 1.0)


def test_the_rank_is_even_and_matched_to_the_budget(nano):
    every = sites(nano.shape)
    with pytest.raises(InputError, match=r"adapter\.rank=3: .* even rank"):
        HRA.check(AdapterConfig(method="hra", rank=3), every)
    width = sum(site.in_features for site in every)
    assert width == 9984
    for budget, rank in ((1, 2), (14_976, 2), (5 * width + 1, 6), (16 * width, 16)):
        found = HRA.matched(AdapterConfig(), every, budget)
        assert (found.rank, HRA.count(found, every), HRA.label(found)) == (rank, rank * width, f"hra-r{rank}")
