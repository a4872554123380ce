import json
import shutil

import pytest
import torch

from qrun.config.compose import compose
from qrun.config.schema import DataConfig, Dtype, EvaluationConfig, ModelConfig, ProtocolConfig
from qrun.errors import InputError
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.language.corpus import load as load_corpus
from qrun.language.models import load, model_shape, weights_digest


def test_the_embedded_model_is_llama_in_smollm2s_proportions_and_knows_english(nano):
    assert (
        nano.shape.hidden_size,
        nano.shape.head_dim,
        nano.shape.num_key_value_heads,
        nano.shape.intermediate_size,
    ) == (192, 64, 1, 512)
    assert sum(p.numel() for p in nano.model.parameters()) == 3_148_224
    corpus = load_corpus(DataConfig(name="pydoc", source="pydoc"))
    task = build(ProtocolConfig(ctx=512), EvaluationConfig(max_tokens=16_384), corpus, nano.tokenizer, 1024)
    assert measure(nano.model, task, batch=8).bits_per_byte < 1.95


def test_nothing_of_a_loaded_model_is_trainable(nano):
    assert not any(p.requires_grad for p in nano.model.parameters()) and not nano.model.training


def test_weights_digest_sees_values_and_ignores_the_loading_type(tiny_folder):
    full = load(ModelConfig(name="tiny", path=str(tiny_folder)))
    half = load(ModelConfig(name="tiny", path=str(tiny_folder), dtype=Dtype.bfloat16))
    assert half.model.dtype == torch.bfloat16 and full.identity["weights"] == half.identity["weights"]
    full.model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    assert weights_digest(full.model) != half.identity["weights"]


def copy(folder, to, *without):
    shutil.copytree(folder, to)
    for name in without:
        (to / name).unlink()
    return ModelConfig(name="local", path=str(to))


def test_folders_with_something_missing_or_broken_are_named(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load(ModelConfig(name="local", path=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"no config.json"):
        load(copy(tiny_folder, tmp_path / "a", "config.json"))
    with pytest.raises(InputError, match="no tokenizer there"):
        load(copy(tiny_folder, tmp_path / "b", "tokenizer.json"))
    with pytest.raises(InputError, match=r"no \*.safetensors"):
        load(copy(tiny_folder, tmp_path / "c", "model.safetensors"))
    broken = copy(tiny_folder, tmp_path / "d")
    weights = tmp_path / "d" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="could not be loaded"):
        load(broken)


def test_other_architectures_are_refused_and_named(tiny_folder, tmp_path):
    config = copy(tiny_folder, tmp_path / "gpt")
    values = json.loads((tmp_path / "gpt" / "config.json").read_text())
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({**values, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(InputError, match="GPT2LMHeadModel is not supported"):
        load(config)


@pytest.mark.parametrize("name", ["Qwen2", "Mistral"])
def test_decoders_with_the_same_projections_take_adapters(name, tmp_path, nano):
    import transformers

    from qrun.adapters.linear import attach
    from qrun.adapters.sites import sites
    from qrun.config.schema import AdapterConfig

    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(nano.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    nano.tokenizer.save_pretrained(tmp_path)
    language = load(ModelConfig(name="local", path=str(tmp_path)))
    ids = torch.arange(50)[None]
    before = language.model(input_ids=ids).logits
    adapter = attach(language.model, sites(language.shape), AdapterConfig(dim=4))
    torch.testing.assert_close(language.model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-5)
    assert len(adapter.modules) == 14


def test_hub_models_are_pinned_to_full_commits():
    for name in ("smollm2", "smollm2_instruct", "llama", "llama_instruct"):
        model = compose("perplexity", [f"model={name}"]).model
        assert len(model.revision) == 40 and model_shape(model) == model.shape
