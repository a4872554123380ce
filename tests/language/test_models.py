import json
import logging
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qrun.config.compose import compose
from qrun.config.schema import AdapterConfig, DataConfig, Dtype, EvaluationConfig, ModelConfig, ProtocolConfig, Side
from qrun.errors import InputError
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.language import hub
from qrun.language.corpus import load as load_corpus
from qrun.language.models import ARCHITECTURES, check_model, load, model_folder, model_shape, read_shape

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
    with pytest.raises(InputError, match="no such folder"):
        load(ModelConfig(name="local", path="a" * 300))
    copied = copy(tiny_folder, tmp_path / "e", "model.safetensors")
    index = {"weight_map": {"x": "b" * 300 + ".safetensors"}}
    (tmp_path / "e" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="which is not there"):
        load(copied)
    broken = copy(tiny_folder, tmp_path / "d")
    weights = tmp_path / "d" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a complete safetensors file"):
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
        ({}, lambda w: w.update({Q: torch.ones(32, 16)}), rf"{Q} has shape \[32, 16\], config.json says \[32, 32\]$"),
        ({"num_hidden_layers": 3}, lambda w: None, r"tensors missing: model.layers.2.\S+, \S+, \S+ and 4 more$"),
        ({"num_hidden_layers": 1}, lambda w: None, r"not in the model of config.json: model.layers.1.* and 6 more$"),
        ({"num_hidden_layers": -1}, lambda w: None, "num_hidden_layers=-1 should be greater than or equal to 1$"),
        ({"num_attention_heads": 0}, lambda w: None, "num_attention_heads=0 should be greater"),
        ({"hidden_size": None}, lambda w: None, "hidden_size=None should be a valid integer"),
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 48}, r"q_proj.weight has shape|embed_tokens.weight has shape \[\d+, 32\], config.json says"),
        ({"hidden_size": "32"}, "hidden_size='32' should be a valid integer"),
        ({"hidden_size": True}, "hidden_size=True should be a valid integer"),
        ({"vocab_size": 7}, r"embed_tokens.weight has shape \[\d+, 32\], config.json says \[7, 32\]"),
        ({"intermediate_size": 64}, r"mlp\.\w+\.weight has shape"),
        ({"num_attention_heads": 3, "head_dim": 16}, "num_key_value_heads=2: 2 key-value heads do not divide 3 heads"),
        ({"num_attention_heads": 4, "head_dim": None}, "k_proj.weight has shape"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 should be less than or equal to 1000"),
        ({"architectures": "LlamaForCausalLM"}, "architecture none is not supported"),
        ({"architectures": [{"a\n": 1}]}, "architecture .* is not supported"),
    ],
)
def test_what_config_json_says_of_another_model_is_refused_from_headers_alone(tiny_folder, tmp_path, values, said):
    config = edited(tiny_folder, tmp_path / "m", {"num_key_value_heads": 2, **values}, lambda w: w.update(WIDER))
    with pytest.raises(InputError, match=said) as stop:
        check_model(config)
    told = str(stop.value)
    assert told.isprintable() and len(told.replace(str(tmp_path), "")) < 300


WIDER = {
    f"model.layers.{n}.self_attn.{p}_proj.weight": torch.ones(32, 32) for n in range(2) for p in "kv"
}  # of two key-value heads


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_what_config_json_leaves_out_is_named(tiny_folder, tmp_path, key):
    config = copy(tiny_folder, tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != key}))
    with pytest.raises(InputError, match=f"config.json: no {key} there"):
        check_model(config)


LIGHT = """
import sys
from qrun.cli.main import main
for words in {commands!r}:
    sys.argv = ["qrun", *words]
    try:
        main()
        print("done", *words)
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules, file=sys.stderr)
"""


def test_what_files_tell_is_told_before_torch_is_imported(tiny_folder, tmp_path):
    edited(tiny_folder, tmp_path / "m", {}, lambda w: w.update({Q: torch.ones(32, 16)}))
    other, tiny = [f"model.path={tmp_path / 'm'}"], [f"model.path={tiny_folder}"]
    cases = {
        "q_proj.weight has shape": ["train", "model=local", *other],
        " has shape": ["eval", "perplexity", "model=local", *other],
        "[32, 16]": ["generate", "x", "model=local", *other],
        "config.json says [32, 32]": ["compress", "--out", "no", "model=local", *other],
        "hidden_size=32, model=llama has 4096": ["train", "model=llama", *tiny],
        "hidden_size=32, model=nano has 192": ["train", *tiny],
        "model.path=: give a folder": ["train", "model.path="],
        "model.name=gpt: no model of that name is embedded": ["train", "model.name=gpt"],
        "training.context=512: the model has 128": ["train", "model=local", *tiny, "protocol.ctx=64"],
        "protocol.ctx=129: the model has 128": ["eval", "perplexity", "model=local", *tiny, "protocol.ctx=129"],
        "tokens=200: the model has 128": ["generate", "x", "model=local", *tiny, "tokens=200"],
        "model@teacher=nano: its vocabulary": [
            "train", "model=local", f"model.path={small(tiny_folder, tmp_path / 's')}", "training.context=64",
            "protocol.ctx=64", "model@teacher=nano", "training.distill_weight=0.5",
        ],
    }  # fmt: skip
    code = LIGHT.format(commands=list(cases.values()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    lines = done.stderr.splitlines()
    assert done.stdout == "" and lines[1::2] == ["2 False"] * len(cases)
    for told, said in zip(lines[::2], cases, strict=True):
        assert said in told and told.startswith("qrun: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "s"]


def small(folder, to):
    """The model with 50 words."""
    edited(folder, to, {"vocab_size": 50}, lambda w: w.update({EMBEDDING: w[EMBEDDING][:50].clone()}))
    return to


def test_the_hubs_name_is_recorded_only_for_what_came_from_the_hub(tiny_folder, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tiny_folder))
    shutil.copytree(tiny_folder, tmp_path / "copy")
    hub_words = {"name": "x", "hub_id": "owner/name", "revision": "1" * 40}
    at_path = ModelConfig(**hub_words, path=str(tmp_path / "copy"))
    unknown = load(at_path).identity
    assert (unknown["hub_id"], unknown["revision"], unknown["path"]) == (None, None, str(tmp_path / "copy"))
    load(ModelConfig(**hub_words))  # fetched once: now its bytes are known
    known = load(at_path).identity
    assert (known["hub_id"], known["revision"]) == ("owner/name", "1" * 40)
    other = load(edited(tiny_folder, tmp_path / "other", {}, lambda w: w.update({Q: w[Q] + 1})))
    assert other.identity["hub_id"] is None
    changed = load(ModelConfig(**hub_words, path=str(tmp_path / "other"))).identity
    assert (changed["hub_id"], changed["revision"]) == (None, None)


def test_a_branch_is_recorded_as_the_commit_that_was_fetched(tiny_folder, tmp_path, monkeypatch):
    import huggingface_hub

    shutil.copytree(tiny_folder, tmp_path / ("ab" * 20))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path / ("ab" * 20)))
    found = load(ModelConfig(name="x", hub_id="owner/name", revision="main")).identity
    assert found["revision"] == "ab" * 20


def test_nano_is_the_name_of_its_own_bytes(tmp_path):
    from importlib.resources import files

    shutil.copytree(files("qrun.language") / "nano", tmp_path / "nano")
    config = ModelConfig(name="nano", embedded=True, hub_id="owner/name", path=str(tmp_path / "nano"))
    assert load(config).identity["hub_id"] is None
    weights = load_file(tmp_path / "nano" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "nano" / "model.safetensors")
    with pytest.raises(InputError, match="its files are not those of model=nano; another model is model=local"):
        load(config)


def test_no_code_and_no_pickle_of_a_folder_runs(tiny_folder, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\nclass Config: ...\n"
    remote = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Model", None]}
    config = edited(tiny_folder, tmp_path / "m", {"auto_map": remote}, lambda w: None)
    (tmp_path / "m" / "evil.py").write_text(code)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    load(config)  # of a known architecture, from its safetensors
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**values, "model_type": "evil"}))
    with pytest.raises(InputError, match="could not be loaded"):
        load(config)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled weights are not read"):
        load(config)
    (tmp_path / "m" / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load(config)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "ran").exists()  # so it would have been seen


def test_a_folder_that_names_another_base_model_is_refused(tiny_folder, tmp_path):
    config = copy(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(InputError, match=r"has an adapter_config.json"):
        load(config)


def test_a_setting_of_the_tokenizer_of_another_type_is_told_with_the_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, "model_max_length": "x"}))
    with pytest.raises(InputError, match=rf"^model.path={folder}: could not be loaded \(TypeError"):
        load(ModelConfig(name="tiny", path=str(folder)))


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
        told = huggingface_hub.logging.get_verbosity()
        with hub.hub() as away:
            assert "does not answer" in away and huggingface_hub.is_offline_mode()
            assert huggingface_hub.logging.get_verbosity() == logging.ERROR  # no line for each of their tries
        assert not huggingface_hub.is_offline_mode() and huggingface_hub.logging.get_verbosity() == told


def test_other_architectures_are_refused_and_named(tiny_folder, tmp_path):
    config = copy(tiny_folder, tmp_path / "gpt")
    values = json.loads((tmp_path / "gpt" / "config.json").read_text())
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({**values, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(InputError, match="GPT2LMHeadModel is not supported"):
        load(config)


FAMILIES = [name.removesuffix("ForCausalLM") for name in ARCHITECTURES]


def random_model(name, tokenizer, folder):
    """A random two-layer model of a family, in the hub's layout; returns it as transformers has it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, no_rope_layer_interval=2,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for key, value in model.named_parameters():
        if "norm" in key:  # all ones else
            value.data += 0.3 * torch.randn(value.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_a_matrix_beside_each_weight_in_every_family(name, side, tmp_path, nano):
    from qrun.adapters.cayley import cayley
    from qrun.adapters.linear import attach
    from qrun.adapters.sites import sites

    plain = random_model(name, nano.tokenizer, tmp_path)
    config = ModelConfig(name="local", path=str(tmp_path), device="cpu")
    language = load(config)
    assert check_model(config) == language.shape == read_shape(language.model.config.to_dict())
    ids = torch.randint(1, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    before = plain(input_ids=ids).logits
    torch.testing.assert_close(language.model(input_ids=ids).logits, before, atol=0, rtol=0)
    adapter = attach(language.model, sites(language.shape), AdapterConfig(dim=4, side=side))
    assert len(adapter.modules) == 14
    generator = torch.Generator().manual_seed(2)
    for site, skew in adapter.tensors().items():
        skew.data = torch.randn(skew.shape, generator=generator)
        weight = plain.get_parameter(f"model.{site}.weight")
        q = torch.block_diag(*cayley(skew.data.double(), 4))
        folded = weight.double() @ q if side is Side.input else q @ weight.double()
        weight.data = folded.float()
    with torch.no_grad():
        expected, found = plain(input_ids=ids).logits, language.model(input_ids=ids).logits
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_hidden_states_give_the_same_bits_in_every_family(name, tmp_path, nano, monkeypatch):
    from qrun.evaluation.trunk import open_trunk

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random_model(name, nano.tokenizer, tmp_path / "m")
    model = load(ModelConfig(name="local", path=str(tmp_path / "m"), device="cpu")).model
    trunk = open_trunk(model, 1, name, (2, 40), 1.0, print)
    ids = torch.randint(1, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    assert trunk is not None and trunk.agrees(model, ids, [0, 1])


@pytest.mark.parametrize("stated", [{"num_key_value_heads": 8}, {}])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_shape_of_config_json_is_that_of_the_loaded_model(name, stated):
    """Also where config.json leaves to transformers what it takes."""
    import transformers

    values = {"model_type": name.lower(), "hidden_size": 512, "num_attention_heads": 32, **stated}
    config = getattr(transformers, f"{name}Config")(**values)
    sizes = {key: getattr(config, key) for key in ("intermediate_size", "vocab_size", "max_position_embeddings")}
    known = {"architectures": [f"{name}ForCausalLM"], "num_hidden_layers": config.num_hidden_layers, **sizes, **values}
    assert read_shape(known) == read_shape({**config.to_dict(), "architectures": [f"{name}ForCausalLM"]})


def test_hub_models_are_pinned_to_full_commits():
    for name in ("smollm2", "smollm2_instruct", "llama", "llama_instruct"):
        model = compose("perplexity", [f"model={name}"]).model
        assert len(model.revision) == 40 and model_shape(model) == model.shape
