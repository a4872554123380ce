import pytest
import torch

from qrun.adapters.linear import AdaptedLinear, attach, detach
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError

IDS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))


def adapted(tiny, randomise=0.3, **config):
    chosen = AdapterConfig(**config)
    adapter = attach(tiny.model, select(sites(tiny.shape), chosen.projections, chosen.layers), chosen)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.tensors().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * randomise
    return adapter


def logits(tiny):
    with torch.no_grad():
        return tiny.model(input_ids=IDS).logits


@pytest.mark.parametrize("side", list(Side))
def test_an_untrained_adapter_is_the_identity(tiny, side):
    before = logits(tiny)
    adapted(tiny, randomise=0.0, dim=4, side=side)
    torch.testing.assert_close(logits(tiny), before, atol=1e-6, rtol=0)


def test_switching_off_gives_the_frozen_model_bit_for_bit_and_restores(tiny):
    before = logits(tiny)
    adapter = adapted(tiny, dim=8)
    on = logits(tiny)
    with adapter.disabled():
        assert torch.equal(logits(tiny), before)
    assert torch.equal(logits(tiny), on) and not torch.allclose(on, before, atol=1e-3)


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("dim", [2, 4, 16])
def test_merged_and_unmerged_outputs_agree_and_unmerging_is_exact(tiny, side, dim):
    frozen = {n: p.clone() for n, p in tiny.model.named_parameters()}
    adapter = adapted(tiny, dim=dim, side=side)
    separate = logits(tiny)
    adapter.merge()
    adapter.merge()  # twice is once
    torch.testing.assert_close(logits(tiny), separate, atol=1e-5, rtol=1e-5)
    adapter.unmerge()
    assert torch.equal(logits(tiny), separate)
    detach(tiny.model, adapter)
    assert all(torch.equal(p, frozen[n]) for n, p in tiny.model.named_parameters())


def test_only_trained_parameters_get_gradients(tiny):
    adapter = adapted(tiny, dim=4)
    tiny.model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.tensors().values())
    assert all(p.grad is None for n, p in tiny.model.named_parameters() if not n.endswith("trained"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [3, 50])
@pytest.mark.parametrize("side", list(Side))
def test_few_and_many_tokens_take_different_ways_to_the_same_result(side, tokens, bias):
    module = AdaptedLinear(torch.nn.Linear(32, 16, bias=bias), 4, side, False)
    module.trained.data.normal_(0, 0.5)
    x = torch.randn(1, tokens, 32)
    dense = torch.block_diag(*module.blocks().detach())
    expected = module.base(x @ dense.T) if side is Side.input else module.base(x) @ dense.T
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_sign_constrained_output_has_the_signs_of_the_input_and_the_magnitudes_of_the_rotation():
    module = AdaptedLinear(torch.nn.Linear(8, 8, bias=False), 4, Side.input, True)
    module.base.weight.data = torch.eye(8)
    module.trained.data.normal_(0, 1.0)
    x = torch.randn(200, 8)
    x[0, 0] = 0.0
    y = module(x)
    torch.testing.assert_close(y.abs(), (x @ torch.block_diag(*module.blocks().detach()).T).abs(), atol=1e-6, rtol=1e-5)
    assert torch.equal(y < 0, x < 0)  # sign(0) = +1
    with pytest.raises(InputError, match="cannot be merged"):
        module.merge()


def test_blocks_are_solved_once_per_update_in_evaluation():
    module = AdaptedLinear(torch.nn.Linear(8, 8), 4, Side.input, False)
    with torch.no_grad():
        first = module.blocks()
        assert module.blocks() is first
        module.trained.add_(0.1)
        assert not torch.equal(module.blocks(), first)


def test_any_executor_gets_the_same_call_and_its_answer_is_used(tiny):
    from qrun.adapters.executor import exact

    adapter = adapted(tiny, dim=4)
    plain, calls = logits(tiny), []

    def device(blocks, slices):
        calls.append((tuple(blocks.shape), tuple(slices.shape)))
        return exact(blocks, slices)

    adapter.set_executor(device)
    torch.testing.assert_close(logits(tiny), plain, atol=1e-5, rtol=1e-5)
    assert len(calls) == 14 and calls[0] == ((8, 4, 4), (80, 8, 4))


def test_bfloat16_models_keep_float32_parameters(tiny):
    tiny.model.to(torch.bfloat16)
    adapter = adapted(tiny, dim=4)
    out = tiny.model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in adapter.tensors().values())


@pytest.mark.parametrize("side", list(Side))
def test_a_neutral_adapter_leaves_the_frozen_model_bit_for_bit(tiny, side):
    ids = torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        frozen = tiny.model(input_ids=ids).logits
        adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4, side=side))
        assert adapter.neutral() and torch.equal(tiny.model(input_ids=ids).logits, frozen)
        with adapter.expecting(0.9):
            assert not adapter.neutral()
        last = next(reversed(adapter.tensors().values()))
        last[0, 0] = 1e-3
        assert not adapter.neutral() and adapter.first_layer == 0
