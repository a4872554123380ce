import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from qrun.config.compose import compose
from qrun.config.schema import DataConfig, Dtype, EvaluationConfig, ModelConfig, ProtocolConfig
from qrun.errors import InputError
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.language import hub
from qrun.language.corpus import load as load_corpus
from qrun.language.models import load, model_folder, model_shape

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.slow
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


def test_the_identity_ignores_the_loading_type(tiny_folder):
    full = load(ModelConfig(name="tiny", path=str(tiny_folder)))
    half = load(ModelConfig(name="tiny", path=str(tiny_folder), dtype=Dtype.bfloat16))
    assert half.model.dtype == torch.bfloat16 and full.identity == half.identity


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


def edited(folder, to, config, tensors=lambda w: None):
    """A copy with other values in config.json and other tensors."""
    copied = copy(folder, to)
    values = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**values, **config}))
    weights = load_file(to / "model.safetensors")
    tensors(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return copied


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({}, lambda w: w.pop(Q), f"tensors missing: {Q}$"),
        ({}, lambda w: w.update(extra=torch.ones(2)), "tensors not in the model of config.json: extra$"),
        ({}, lambda w: w.update({Q: torch.ones(32, 16)}), f"tensors of another shape than config.json says: {Q}$"),
        ({"num_hidden_layers": 3}, lambda w: None, r"tensors missing: model.layers.2.\S+, \S+, \S+ and 6 more$"),
        ({"num_hidden_layers": 1}, lambda w: None, r"not in the model of config.json: model.layers.1.* and 6 more$"),
        ({"num_hidden_layers": -1}, lambda w: None, "num_hidden_layers=-1; a positive whole number is needed$"),
        ({"num_attention_heads": 0}, lambda w: None, "num_attention_heads=0; a positive whole number"),
        ({"hidden_size": None}, lambda w: None, "hidden_size=None; a positive whole number"),
        ({"tie_word_embeddings": False}, lambda w: None, "tensors missing: lm_head.weight$"),
        ({"attention_bias": True}, lambda w: None, r"tensors missing: model.layers.0.self_attn.k_proj.bias, .* 5 more"),
    ],
)
def test_files_and_config_must_have_the_same_tensors(tiny_folder, tmp_path, config, tensors, said):
    with pytest.raises(InputError, match=said) as stop:
        load(edited(tiny_folder, tmp_path / "m", config, tensors))
    assert "\n" not in str(stop.value)


def test_a_tied_head_may_be_stored_or_not(tiny_folder, tmp_path):
    stored = edited(tiny_folder, tmp_path / "m", {}, lambda w: w.update({HEAD: w[EMBEDDING].clone()}))
    assert torch.equal(load(stored).model.lm_head.weight, load_file(tiny_folder / "model.safetensors")[EMBEDDING])


def test_a_folder_that_names_another_base_model_is_refused(tiny_folder, tmp_path):
    config = copy(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(InputError, match=r"has an adapter_config.json"):
        load(config)


def test_hub_models_are_fetched_at_their_revision_and_read_from_that_folder(tiny_folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tiny_folder))
    language = load(ModelConfig(name="hub", hub_id="owner/name", revision="0" * 40))
    (where,), options = asked[0]
    assert (where, options["revision"]) == ("owner/name", "0" * 40) and len(asked) == 1
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in options["allow_patterns"])
    assert language.identity["hub_id"] == "owner/name" and language.identity["path"] is None
    assert language.digest == load(ModelConfig(name="tiny", path=str(tiny_folder))).digest


@pytest.mark.parametrize(
    ("gated", "token", "error", "said"),
    [
        (False, None, ConnectionError("no route"), r"owner/name at 0{40} could not be fetched \(ConnectionError\)"),
        (True, None, OSError("404"), r"owner/name at 0{40} could not be fetched \(OSError\); check the name"),
        (True, None, OSError("401"), "owner/name is gated; accept its licence"),
        (True, "hf_x", OSError("403 gated repo"), "the hub refused owner/name for this HF_TOKEN"),
    ],
)
def test_a_hub_that_does_not_give_the_model_is_one_line(gated, token, error, said, monkeypatch):
    import huggingface_hub

    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(hub, "out_of_reach", lambda: "")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match=said) as stop:
        model_folder(ModelConfig(name="hub", hub_id="owner/name", revision="0" * 40, gated=gated))
    assert "\n" not in str(stop.value) and "hf_x" not in str(stop.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("model", ["model=llama_instruct"]), ("data", ["data=wikitext2"]), ("questions", ["questions=mmlu"])],
)
def test_without_network_the_answer_is_no_network_and_comes_soon(name, words, tmp_path, start, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    command = ["eval", "questions"] if name == "questions" else ["eval", "perplexity"]
    process = start(*command, *words, f"results={tmp_path / 'r'}")
    assert process.wait(timeout=300) == 2
    *before, line = process.told().splitlines()
    assert "Retry" not in " ".join(before)
    assert line.startswith(f"qrun: {name}=") and f"no network: http://127.0.0.1:{port} does not answer" in line


def test_a_hub_that_is_silent_is_given_up_and_the_cache_read(monkeypatch):
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0), backlog=5) as silent:  # connects, and never answers
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "SECONDS", 0.2)
        with hub.hub() as away:
            assert "does not answer" in away and huggingface_hub.is_offline_mode()
        assert not huggingface_hub.is_offline_mode()


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
