"""Frozen weights in 4 and 8 bits, and models that accelerate places."""

from importlib.util import find_spec

import pytest
import torch

from qrun.adapters.linear import attach, dense
from qrun.adapters.sites import select, sites
from qrun.cells.keys import Sources
from qrun.config.schema import AdapterConfig, Dtype, ModelConfig, Quantization, Spread
from qrun.errors import InputError
from qrun.language import models
from qrun.language.models import load

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, nano):
    """A random Llama whose rows are wide enough for blocks of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(nano.tokenizer), num_hidden_layers=2, max_position_embeddings=128, **wide)
    path = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(path)
    nano.tokenizer.save_pretrained(path)
    return str(path)


def half(folder, **words):
    return ModelConfig(name="wide", path=folder, dtype=Dtype.bfloat16, **words)


@installed
@pytest.mark.parametrize(("kind", "error"), [(Quantization.nf4, 0.15), (Quantization.int8, 0.01)])
def test_a_quantised_body_is_the_same_model_with_rounded_weights(folder, kind, error):
    plain, small = load(half(folder)), load(half(folder, quantization=kind))
    name = "layers.1.self_attn.v_proj"
    own, rounded = (m.model.get_submodule(f"model.{name}") for m in (plain, small))
    assert not rounded.weight.is_floating_point() and small.identity["quantization"] == kind.value
    gap = (dense(rounded).float() - dense(own).float()).norm() / dense(own).float().norm()
    assert 1e-4 < gap < error
    assert {key: small.identity[key] for key in ("weights", "config", "tokenizer")} == {
        key: plain.identity[key] for key in ("weights", "config", "tokenizer")
    }


@installed
def test_an_adapter_on_a_quantised_body_has_the_gradient_of_its_rounded_weights(folder):
    ids, grads = torch.arange(64).view(1, -1) % 50, []
    small, plain = load(half(folder, quantization=Quantization.nf4)), load(half(folder))
    with torch.no_grad():
        for site in sites(plain.shape):
            own, rounded = (m.model.get_submodule(f"model.{site.name}") for m in (plain, small))
            own.weight.copy_(dense(rounded))
    for language in (small, plain):
        adapter = attach(language.model, select(sites(language.shape), ["v_proj"], ["first"]), AdapterConfig(dim=4))
        language.model(input_ids=ids, labels=ids).loss.backward()
        grads.append(next(iter(adapter.tensors().values())).grad.flatten())
    assert torch.cosine_similarity(*grads, dim=0) > 0.999 and 0.98 < grads[0].norm() / grads[1].norm() < 1.02


@installed
def test_what_needs_whole_weights_is_refused_on_a_quantised_body(folder):
    small = load(half(folder, quantization=Quantization.nf4))
    adapter = attach(small.model, select(sites(small.shape), ["v_proj"], ["all"]), AdapterConfig(dim=4))
    with pytest.raises(InputError, match=r"model.quantization: a quantised weight cannot take the adapter in"):
        adapter.merge()


def test_a_quantised_model_has_keys_of_its_own(folder):
    sources = Sources()
    plain, small = (sources.model(half(folder, quantization=kind), None) for kind in (None, Quantization.nf4))
    assert "quantization" not in plain and small == {**plain, "quantization": "nf4"}


def test_what_is_missing_or_does_not_go_together_is_said(folder, monkeypatch, qrun):
    with pytest.raises(InputError, match=r"model.quantization=nf4: .*set model.dtype=bfloat16"):
        ModelConfig(name="wide", path=folder, quantization=Quantization.nf4)
    with pytest.raises(InputError, match=r"model.device=cpu: model.device_map chooses devices"):
        half(folder, device="cpu", device_map=Spread.auto)
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed; pip install 'qrun-adapters\[quantized\]'"):
        load(half(folder, quantization=Quantization.nf4))
    code, _, err = qrun("compress", "--out", "x", "model.quantization=nf4", "model.dtype=bfloat16")
    assert code == 2 and "model.quantization=nf4: factors are made of whole weights" in err


def test_a_model_that_accelerate_places_gives_the_same_numbers(folder):
    ids = torch.arange(40).view(1, -1)
    placed, plain = load(half(folder, device_map=Spread.auto)), load(half(folder))
    with torch.no_grad():
        there, here = (m.model(input_ids=ids.to(m.device)).logits.cpu() for m in (placed, plain))
    assert torch.equal(there, here)
