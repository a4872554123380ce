"""PEFT's OFT with the exact Cayley map is the external oracle of the noiseless adapter."""

import peft
import pytest
import torch

from qrun.adapters.linear import AdaptedLinear, attach
from qrun.adapters.saving import to_peft
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError


@pytest.mark.parametrize("dim", [2, 4, 8, 16, 32])
def test_layer_output_and_gradient_agree_with_oft(dim):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(64, 24)

        def forward(self, x):
            return self.lin(x)

    torch.manual_seed(0)
    net = Net()
    ours = AdaptedLinear(torch.nn.Linear(64, 24), dim, Side.input, False)
    ours.base.load_state_dict(net.lin.state_dict())
    ours.trained.data.normal_(0, 0.5)
    theirs = peft.get_peft_model(
        net, peft.OFTConfig(oft_block_size=dim, r=0, use_cayley_neumann=False, target_modules=["lin"])
    )
    weight = next(p for n, p in theirs.named_parameters() if "oft_R" in n)
    assert weight.shape == ours.trained.shape
    weight.data = -ours.trained.data / 2
    x, upstream = torch.randn(40, 64), torch.randn(40, 24)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a.backward(upstream)
    b.backward(upstream)
    torch.testing.assert_close(ours.trained.grad, -weight.grad / 2, atol=1e-4, rtol=1e-4)


def test_an_exported_adapter_gives_the_same_logits_under_peft(tiny, tmp_path):
    import copy

    plain = copy.deepcopy(tiny.model)
    config = AdapterConfig(dim=4, projections=["q_proj", "down_proj"], layers="last")
    adapter = attach(tiny.model, select(sites(tiny.shape), config.projections, config.layers), config)
    for parameter in adapter.tensors().values():
        parameter.data.normal_(0, 0.3)
    to_peft(tmp_path / "oft", adapter, tiny.identity)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "oft")
        torch.testing.assert_close(loaded(input_ids=ids).logits, tiny.model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [AdapterConfig(side=Side.output), AdapterConfig(sign_constrained=True)])
def test_what_oft_cannot_express_is_refused(tiny, tmp_path, config):
    adapter = attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), config)
    with pytest.raises(InputError, match="cannot be written"):
        to_peft(tmp_path / "oft", adapter, tiny.identity)
