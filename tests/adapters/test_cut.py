"""Trained blocks cut to circuits of k CZ: exact where k CZ write every block, the nearest otherwise."""

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from qrun.adapters.circuit import CircuitForm, palindrome
from qrun.adapters.cut import cut
from qrun.adapters.linear import attach
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, Side
from qrun.quantum.synthesis import nearest_angles, unitary


def logits(tiny):
    with torch.no_grad():
        return tiny.model(input_ids=torch.arange(12).view(1, 12)).logits


def blocks_of(adapter):
    return torch.cat([module.blocks() for module in adapter.modules.values()]).detach()


@pytest.mark.parametrize(("dim", "czs", "left"), [(2, 2, 0.0), (4, 2, 0.0), (8, 2, 0.95), (8, 6, 0.9)])
def test_a_cut_adapter_is_the_nearest_of_method_circuit_in_its_place(tiny, dim, czs, left):
    config = AdapterConfig(dim=dim, side=Side.output, projections=["v_proj"])
    selected = select(sites(tiny.shape), ["v_proj"], ["all"])
    adapter = attach(tiny.model, selected, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.tensors().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    whole, before = logits(tiny), blocks_of(adapter)
    found = cut(tiny.model, selected, adapter, czs)
    assert (found.config.method, found.config.options, found.config.side) == ("circuit", {"czs": czs}, Side.output)
    far, rest = (before - torch.eye(dim)).square().sum(), (before - blocks_of(found)).square().sum()
    assert rest <= (1e-9 if left == 0 else left * far) and (left == 0 or rest > 1e-3)
    if left == 0:
        torch.testing.assert_close(logits(tiny), whole, atol=1e-4, rtol=1e-4)


def test_the_nearest_circuit_has_the_sign_of_the_block_and_the_best_of_the_starts():
    shape = palindrome(3, 6)
    known = np.random.default_rng(0).uniform(-np.pi, np.pi, (4, 15))
    blocks = unitary(known, shape)
    near = known + 0.05
    near[:, 1] += 2 * np.pi  # ends at -Q
    far = np.zeros((4, 15))
    np.testing.assert_allclose(unitary(nearest_angles(blocks, np.stack([far, near]), shape), shape), blocks, atol=1e-6)


def test_no_block_is_farther_from_its_circuit_than_from_the_identity():
    blocks = special_ortho_group.rvs(8, size=5, random_state=0)
    form = CircuitForm(4, "here")
    start = form.start(5, 8).double().numpy()
    found = unitary(nearest_angles(blocks, start[None], form.shape(8)), form.shape(8))
    assert (np.square(found - blocks).sum((1, 2)) <= np.square(np.eye(8) - blocks).sum((1, 2)) + 1e-9).all()
