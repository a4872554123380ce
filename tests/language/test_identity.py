"""Two folders have the same identity exactly when they hold the same model."""

import copy
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from qrun.config.schema import ModelConfig
from qrun.errors import InputError
from qrun.language import identity
from qrun.language.identity import INDEX, SINGLE, Identity, identify, weight_files
from qrun.language.models import load

PARTS = ("weights", "config", "tokenizer")


def nano_copy(to: Path) -> Path:
    return Path(shutil.copytree(files("qrun.language") / "nano", to))


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def differing(first: Identity, second: Identity) -> list[str]:
    assert (first.digest == second.digest) == (first == second)
    return [part for part in PARTS if getattr(first, part) != getattr(second, part)]


@pytest.fixture
def folder(tmp_path):
    return nano_copy(tmp_path / "nano")


def rope_base(folder):
    edit(folder / "config.json", lambda c: c["rope_parameters"].update(rope_theta=20_000.0))


def wider_norm(folder):
    edit(folder / "config.json", lambda c: c.update(rms_norm_eps=1e-6))


def swapped_entries(folder):
    def swap(values):
        vocab = values["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    edit(folder / "tokenizer.json", swap)


def other_pre_tokenizer(folder):
    edit(folder / "tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0))


def begins_with_bos(folder):
    edit(folder / "tokenizer_config.json", lambda t: t.update(add_bos_token=True))


def zeroed_row(folder):
    edit_weights(folder, lambda w: w["model.embed_tokens.weight"][37].zero_())


def flipped_sign(folder):
    edit_weights(folder, lambda w: w["model.layers.3.mlp.up_proj.weight"][5, 7].neg_())


def renamed(folder):
    edit_weights(folder, lambda w: w.update({"model.norm.weights": w.pop("model.norm.weight")}))


def other_type(folder):
    edit_weights(folder, lambda w: w.update({name: value.float() for name, value in w.items()}))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (rope_base, ["config"]),
        (wider_norm, ["config"]),
        (swapped_entries, ["tokenizer"]),
        (other_pre_tokenizer, ["tokenizer"]),
        (begins_with_bos, ["tokenizer"]),
        (zeroed_row, ["weights"]),
        (flipped_sign, ["weights"]),
        (renamed, ["weights"]),
        (other_type, ["weights"]),
    ],
)
def test_whatever_changes_a_number_changes_the_identity(folder, change, parts):
    before = identify(folder)
    change(folder)
    assert differing(before, identify(folder)) == parts


def test_a_copy_and_a_saved_copy_of_a_loaded_model_are_the_same_model(nano, tmp_path, folder):
    expected = {part: nano.identity[part] for part in PARTS}
    assert Identity(**expected) == identify(folder) and nano.digest == identify(folder).digest
    copy.deepcopy(nano.model).half().save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")  # nano's own may have got a pad token
    assert differing(identify(folder), identify(tmp_path / "saved")) == []
    assert "transformers_weights" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_shards_metadata_and_files_beside_the_model_do_not_count(nano, tmp_path, folder):
    whole = identify(folder)
    shards = nano_copy(tmp_path / "shards")
    (shards / SINGLE).unlink()
    copy.deepcopy(nano.model).half().save_pretrained(shards, max_shard_size="1MB")
    assert len(weight_files(shards)) > 3 and differing(whole, identify(shards)) == []
    names = sorted(load_file(folder / SINGLE))
    for shard in weight_files(shards):
        shard.unlink()
    parts = {"a.safetensors": names[1::2], "b.safetensors": names[::2]}  # neither is before the other
    for part, held in parts.items():
        save_file({name: load_file(folder / SINGLE)[name] for name in held}, shards / part)
    (shards / INDEX).write_text(json.dumps({"weight_map": {name: p for p, held in parts.items() for name in held}}))
    assert differing(whole, identify(shards)) == []
    save_file({"layers.0.0": torch.ones(2)}, folder / "factors.safetensors")
    save_file(load_file(folder / SINGLE), folder / SINGLE, metadata={"format": "pt", "note": "other"})
    assert differing(whole, identify(folder)) == []


def test_a_single_file_of_another_name_is_the_model(folder):
    before = identify(folder)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    assert identify(folder) == before
    assert load(ModelConfig(name="local", path=str(folder))).digest == before.digest


def test_the_weights_of_the_identity_are_those_that_are_loaded(folder):
    save_file({"x": torch.ones(2)}, folder / "other.safetensors")
    edit(folder / "config.json", lambda c: c.update(transformers_weights="other.safetensors"))
    language = load(ModelConfig(name="local", path=str(folder)))
    stored = load_file(folder / SINGLE)["model.norm.weight"].float()
    torch.testing.assert_close(language.model.model.norm.weight.data, stored, atol=0, rtol=0)


def settings(folder, **values):
    """config.json digest of a model with 4 heads of 8."""
    base = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({**base, "num_hidden_layers": 2, **values}))
    return identity.config_digest(folder)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {"rope_theta": 10000, "rope_scaling": None}, True),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 500000, "rope_type": "default"}}, True),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, False),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, {}, True),  # as transformers reads it
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
            True,
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, {}, False),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2}},
            {"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 64}},
            True,
        ),
        ({}, {"head_dim": 8, "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6}, True),
        ({}, {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}, True),
        ({}, {"attention_bias": True}, False),
        ({}, {"tie_word_embeddings": True}, False),
        ({}, {"head_dim": 16}, False),
        ({}, {"num_key_value_heads": 2}, False),
        ({}, {"hidden_act": "gelu"}, False),
        ({}, {"quantization_config": {"bits": 8}}, False),
        ({}, {"torch_dtype": "bfloat16", "transformers_version": "4.1", "_name_or_path": "x", "use_cache": True}, True),
        ({"model_type": "mistral"}, {"model_type": "mistral", "sliding_window": 4096, "num_key_value_heads": 8}, True),
        ({"model_type": "mistral"}, {"model_type": "mistral", "sliding_window": None}, False),
        ({"model_type": "qwen2"}, {"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 1}, True),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1},
            {"model_type": "qwen2"},
            False,
        ),
    ],
)
def test_spellings_and_defaults_of_config_json_are_one(tmp_path, first, second, same):
    assert (settings(tmp_path, **first) == settings(tmp_path, **second)) == same


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Olmo2", "Gemma"])
def test_what_save_pretrained_writes_out_changes_nothing(tmp_path, kind):
    import transformers

    stated = {
        "model_type": kind.lower(), "architectures": [f"{kind}ForCausalLM"], "vocab_size": 64, "hidden_size": 512,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 32, "max_position_embeddings": 64,
        "rope_theta": 100000, "rope_scaling": {"type": "yarn", "factor": 2.0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(stated))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    assert identity.config_digest(tmp_path / "saved") == identity.config_digest(tmp_path)


def test_padding_and_age_of_the_tokenizer_class_do_not_count(folder):
    before = identify(folder)
    edit(folder / "tokenizer.json", lambda t: t.update(truncation={"max_length": 8}, padding={"pad_id": 0}))
    edit(folder / "tokenizer_config.json", lambda t: t.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit(folder / "tokenizer_config.json", lambda t: t.update(eos_token={"content": t["eos_token"], "lstrip": False}))
    assert differing(before, identify(folder)) == []
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert differing(before, identify(folder)) == ["tokenizer"]


def test_a_slow_tokenizers_files_are_digested(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer there"):
        identify(folder)
    (folder / "tokenizer.model").write_bytes(b"one")
    first = identify(folder)
    (folder / "tokenizer.model").write_bytes(b"two")
    assert differing(first, identify(folder)) == ["tokenizer"]


@pytest.fixture
def digested(monkeypatch, tmp_path):
    """Folders whose weights were read, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen, digest = [], identity._digest_tensors
    monkeypatch.setattr(identity, "_digest_tensors", lambda *a: seen.append(a[0]) or digest(*a))
    return seen


def test_weights_are_read_again_only_when_time_or_size_changed(folder, digested):
    first = identify(folder)
    assert identify(folder) == first and len(digested) == 1
    zeroed_row(folder)
    os.utime(folder / SINGLE, ns=(0, 10**18))
    assert identify(folder).weights != first.weights and len(digested) == 2
    edit_weights(folder, lambda w: w.update(more=torch.ones(1)))
    os.utime(folder / SINGLE, ns=(0, 10**18))
    identify(folder)
    assert len(digested) == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"stamp": 1}'])
def test_a_broken_cache_is_only_slower(folder, digested, tmp_path, content):
    first = identify(folder)
    (tmp_path / "cache" / "qrun" / "identities.json").write_text(content)
    assert identify(folder) == first and len(digested) == 2


def test_a_cache_that_cannot_be_written_is_only_slower(folder, digested, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert identify(folder) == identify(folder) and len(digested) == 2


def with_index(folder, place):
    (folder / SINGLE).rename(folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part.safetensors", "b": place}}))


@pytest.mark.parametrize("place", ["weights.bin", "../x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", 7])
def test_an_index_may_only_name_safetensors_beside_it(folder, place):
    for target in (folder / "weights.bin", folder.parent / "x.safetensors"):
        target.write_bytes(b"")
    with_index(folder, place)
    with pytest.raises(InputError, match=r"only \*\.safetensors beside it") as stop:
        load(ModelConfig(name="local", path=str(folder)))
    assert repr(str(place)) in str(stop.value) and "\n" not in str(stop.value)


def test_a_shard_that_is_not_there_and_a_tensor_in_two_shards_are_named(folder):
    with_index(folder, "gone.safetensors")
    with pytest.raises(InputError, match=r"names gone\.safetensors, which is not there"):
        identify(folder)
    shutil.copy(folder / "part.safetensors", folder / "gone.safetensors")
    with pytest.raises(InputError, match=r"is both in gone\.safetensors and in part\.safetensors"):
        identify(folder)


@pytest.mark.parametrize("cut", [0, 5, 5000, -1])
def test_a_cut_weight_file_is_refused(folder, cut):
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:cut])
    with pytest.raises(InputError, match=r"model\.safetensors: not a complete safetensors file"):
        identify(folder)


def test_a_header_longer_than_the_file_is_refused(folder):
    (folder / SINGLE).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        identify(folder)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"hidden_size": "x", "num_attention_heads": 2}', "{}"])
def test_a_config_that_says_nothing_is_one_line(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json") as stop:
        identity.config_digest(folder)
    assert "\n" not in str(stop.value)


def test_integers_are_no_weights(folder):
    edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(192, dtype=torch.int32)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight is of type I32; possible: F64, F32"):
        identify(folder)
