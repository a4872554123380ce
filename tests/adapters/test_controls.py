"""Every control starts as the identity, trains only itself, and leaves the model as it was."""

import numpy as np
import pytest
import torch

from qrun.adapters.cayley import cayley, rotate
from qrun.adapters.controls import ButterflyLinear, attach_method
from qrun.adapters.linear import detach
from qrun.adapters.saving import read, save
from qrun.adapters.sites import count_parameters, matched_rank, select, sites
from qrun.config.schema import AdapterConfig, Method, Side
from qrun.errors import InputError

METHODS = [
    AdapterConfig(),
    AdapterConfig(method=Method.oft, dim=4),
    AdapterConfig(method=Method.boft, dim=2, factors=3),
    AdapterConfig(method=Method.lora, rank=2),
    AdapterConfig(method=Method.diagonal),
    AdapterConfig(method=Method.block, dim=4),
    AdapterConfig(method=Method.dense),
]
IDS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.method.value)
def test_a_method_starts_as_the_identity_counts_what_it_trains_and_comes_off_again(tiny, config, tmp_path):
    chosen = sites(tiny.shape)
    with torch.no_grad():
        before = tiny.model(input_ids=IDS).logits
    adapter = attach_method(tiny.model, chosen, config)
    assert (
        adapter.count()
        == count_parameters(chosen, config)
        == sum(p.numel() for p in tiny.model.parameters() if p.requires_grad)
    )
    torch.testing.assert_close(tiny.model(input_ids=IDS).logits, before, atol=1e-6, rtol=1e-6)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.tensors().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    with torch.no_grad():
        moved = tiny.model(input_ids=IDS).logits
        assert (moved - before).abs().max() > 1e-3
        with adapter.disabled():
            assert torch.equal(tiny.model(input_ids=IDS).logits, before)
        save(tmp_path / "a", adapter, tiny.identity, {})
        detach(tiny.model, adapter)
        assert torch.equal(tiny.model(input_ids=IDS).logits, before)
        back = read(tmp_path / "a")
        again = attach_method(tiny.model, [s for s in chosen if s.name in back.sites], back.config)
        again.load(back.tensors)
        assert torch.equal(tiny.model(input_ids=IDS).logits, moved)


def test_butterfly_factors_mix_two_to_the_m_minus_one_blocks_and_stay_orthogonal():
    torch.manual_seed(0)
    layer = ButterflyLinear(torch.nn.Linear(24, 5), 2, 3)
    layer.skew.data.normal_(0, 1.0)
    matrix = layer.transform(torch.eye(24)).detach().double().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(24), atol=1e-6)
    reach = (np.abs(matrix) > 1e-7).sum(1)
    assert (reach == 8).all()  # 2^(3-1) chunks of b = 2 channels
    assert (np.abs(matrix[:8, 8:]) < 1e-7).all()


def test_one_butterfly_factor_is_the_cayley_adapter():
    layer = ButterflyLinear(torch.nn.Linear(16, 5), 4, 1)
    layer.skew.data.normal_(0, 1.0)
    x = torch.randn(7, 16)
    torch.testing.assert_close(layer.transform(x), rotate(x, cayley(layer.skew[0], 4)), atol=1e-6, rtol=1e-6)


def test_matched_rank_is_the_nearest_and_never_zero(nano):
    chosen = sites(nano.shape)
    for dim in (2, 4, 8, 16, 32, 64):
        budget = count_parameters(chosen, AdapterConfig(dim=dim))
        per_rank = count_parameters(chosen, AdapterConfig(method=Method.lora, rank=1))
        rank = matched_rank(chosen, budget)
        assert rank >= 1 and (rank == 1 or abs(rank * per_rank - budget) <= per_rank / 2)
    assert count_parameters(chosen, AdapterConfig(dim=4)) == 14_976 and per_rank == 20_352


def test_a_butterfly_that_does_not_fit_is_refused(tiny):
    with pytest.raises(InputError, match="multiple of 32"):
        attach_method(tiny.model, sites(tiny.shape), AdapterConfig(method=Method.boft, dim=4, factors=4))


def test_only_cayley_blocks_have_a_side_a_sign_rule_and_circuits(tiny):
    with pytest.raises(InputError, match="acts on the input"):
        AdapterConfig(method=Method.lora, side=Side.output)
    with pytest.raises(InputError, match="sign rule"):
        AdapterConfig(method=Method.oft, sign_constrained=True)
    adapter = attach_method(tiny.model, select(sites(tiny.shape), ["v_proj"], ["0"]), AdapterConfig(method=Method.lora))
    with pytest.raises(InputError, match="only Cayley blocks are circuits"):
        adapter.set_executor(object())


def test_healing_needs_a_compressed_model(tiny):
    with pytest.raises(InputError, match="not factored"):
        attach_method(tiny.model, sites(tiny.shape), AdapterConfig(method=Method.healing), tiny.identity["path"])
