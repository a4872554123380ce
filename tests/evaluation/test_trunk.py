"""Hidden states that are kept: the same bits with and without, whatever happens to the file."""

import errno
import os

import pytest
import torch
import transformers
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from qrun.adapters.linear import attach
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, EvaluationConfig, ProtocolConfig, ProtocolKind, TrainingConfig
from qrun.evaluation import trunk as module
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.evaluation.trunk import digest, last_hidden, open_trunk
from qrun.language.corpus import Corpus
from qrun.language.models import read_shape
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import fit

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SLIDING = {"sliding_window": 8}
UPPER = {**SLIDING, "use_sliding_window": True, "max_window_layers": 2}  # the last two layers have another mask
CONFIGS = [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, **SLIDING), Qwen2Config(**SHAPE, **UPPER)]
IDS = torch.randint(0, 300, (6, 33), generator=torch.Generator().manual_seed(1))


def adapted(config, layers, dtype=torch.float32):
    """A random model with a trained-looking adapter on v_proj of some layers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    chosen = AdapterConfig(dim=4, projections=["v_proj"], layers=layers)
    shape = read_shape({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    adapter = attach(model, select(sites(shape), chosen.projections, chosen.layers), chosen)
    for parameter in adapter.tensors().values():
        parameter.data.normal_(0, 0.3)
    return model, adapter


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qrun" / "trunks"


def opened(model, layer=3, rows=6, tokens=32, gib=1.0, name="kept", told=None):
    return open_trunk(model, layer, name, (rows, tokens), gib, (told if told is not None else []).append)


def layers_run(model, monkeypatch):
    """Numbers of the layers whose attention runs from now on."""
    ran = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda m, _: ran.append(m.layer_idx))
    return ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)
def test_hidden_states_and_gradients_are_those_of_the_whole_model_bit_for_bit(config, dtype, monkeypatch):
    model, adapter = adapted(config, "3", dtype)
    trunk, (k,) = opened(model), adapter.tensors().values()
    assert trunk.agrees(model, IDS[:, :-1], range(6)), "kept in one order, compared in another"
    ran = layers_run(model, monkeypatch)
    results = []
    for run in (lambda: trunk.hidden(model, IDS[:, :-1], range(6)), lambda: last_hidden(model, IDS[:, :-1])):
        k.grad = None
        found = run()
        found.float().square().sum().backward()
        results.append((found, k.grad))
    assert ran == [3, 0, 1, 2, 3]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)


def test_losses_of_a_training_are_the_same_bit_for_bit(tmp_path, monkeypatch):
    histories, runs = [], []
    for keeping in (False, True, True):
        model, adapter = adapted(CONFIGS[0], "2-3")
        ran = layers_run(model, monkeypatch)
        config = TrainingConfig(steps=7, batch=2, accumulation=2, context=33, warmup=1, lr=0.05, eval_every=7)
        path, windows = tmp_path / "c.safetensors", torch.cat([IDS, IDS.flip(1)])
        trunk = opened(model, 2, 12) if keeping else None
        _, progress = fit(
            model, adapter, windows, lambda: 1.0, config, 0, None, path, Progress(), lambda _: None, Interrupt(), trunk
        )
        histories.append([(row["loss"], row["gradient_norm"]) for row in progress.history])
        runs.append(ran.count(0))
    assert histories[0] == histories[1] == histories[2]
    assert runs == [14, 6, 0], "each of six batches once; not at all by the next training"


@pytest.mark.parametrize("kind", [ProtocolKind.fixed_window, ProtocolKind.lm_eval_wikitext])
def test_a_measurement_is_the_same_bit_for_bit(tiny, kind, monkeypatch):
    texts = [f"Return element {i} of the array, or None. " * (1 + i % 4) for i in range(12)]
    corpus = Corpus("made-up", {"test": texts}, "here")
    task = build(ProtocolConfig(kind, 48), EvaluationConfig(), corpus, tiny.tokenizer, 128)
    chosen = AdapterConfig(dim=4, layers="last")
    adapter = attach(tiny.model, select(sites(tiny.shape), chosen.projections, chosen.layers), chosen)
    next(iter(adapter.tensors().values())).data.normal_(0, 0.3)
    whole, ran = measure(tiny.model, task, 4), layers_run(tiny.model, monkeypatch)
    trunk = opened(tiny.model, 1, len(texts) * 4, 48)
    assert [measure(tiny.model, task, 4, trunk=trunk).nats for _ in range(2)] == [whole.nats] * 2
    assert ran.count(1) == 2 * ran.count(0) > 0, "below the adapter once, above it twice"


RECORD = 8 + 32 * 32 * 4


def another_byte(content):
    content[RECORD + 100] ^= 1
    return content


@pytest.mark.parametrize("damage", [another_byte, lambda content: content[: 5 * RECORD + 50]])
def test_a_record_that_is_torn_or_lost_is_computed_again(folder, monkeypatch, damage):
    model, _ = adapted(CONFIGS[0], "3")
    ids = IDS[:, :-1]
    whole = opened(model).hidden(model, ids, range(6))
    (folder / "kept").write_bytes(damage(bytearray((folder / "kept").read_bytes())))
    ran, trunk = layers_run(model, monkeypatch), opened(model)
    assert torch.equal(trunk.hidden(model, ids, range(6)), whole) and ran == [0, 1, 2, 3]
    assert torch.equal(trunk.hidden(model, ids, range(6)), whole) and ran == [0, 1, 2, 3, 3]


def test_a_full_disk_is_told_once_and_the_numbers_go_on(monkeypatch):
    model, _ = adapted(CONFIGS[0], "3")
    told: list[str] = []
    trunk = opened(model, told=told)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "pwritev", full)
    whole = last_hidden(model, IDS[:, :-1])
    assert all(torch.equal(trunk.hidden(model, IDS[:, :-1], range(6)), whole) for _ in range(2))
    assert len(told) == 2 and "No space left on device" in told[1]


def test_the_oldest_files_make_room_and_a_file_keeps_within_the_limit(folder):
    model, _ = adapted(CONFIGS[0], "3")
    for age, name in enumerate(("young", "old")):
        opened(model, name=name).hidden(model, IDS[:, :-1], range(6))
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    size = (folder / "old").stat().st_blocks * 512
    gib = (2 * size + 100) / 2**30
    opened(model, name="new", gib=gib, rows=6)
    assert {path.name for path in folder.iterdir()} == {"young", "new"}
    trunk = opened(model, name="newest", gib=2.5 * RECORD / 2**30, rows=2)
    trunk.hidden(model, IDS[:, :-1], range(6))
    assert (folder / "newest").stat().st_size == 2 * RECORD and not (folder / "young").exists()
    told: list[str] = []
    assert opened(model, name="large", gib=2.5 * RECORD / 2**30, told=told) is None and "cache.gib" in told[0]


def test_files_that_are_written_at_once_keep_within_one_limit(folder, monkeypatch):
    monkeypatch.setattr(module, "RECOUNT", 1)
    model, _ = adapted(CONFIGS[0], "3")
    both = [opened(model, name=name, gib=9 * 8192 / 2**30, rows=6) for name in ("one", "other")]
    for trunk in both:
        for row in range(6):
            trunk.hidden(model, IDS[row : row + 1, :-1], [row])
    sizes = [(folder / name).stat().st_blocks * 512 for name in ("one", "other")]
    assert sizes[0] > 6 * RECORD and sizes[1] > 0 and sum(sizes) <= 9 * 8192


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "0"), (transformers, "__version__", "0"), (torch, "get_num_threads", lambda: 99),
        (torch.backends.cpu, "get_cpu_capability", lambda: "none"),
    ],
)  # fmt: skip
def test_a_name_is_another_for_other_kernels(owner, name, value, monkeypatch):
    model, _ = adapted(CONFIGS[0], "3")
    before = digest(model, 3, ["w"], [IDS])
    monkeypatch.setattr(owner, name, value)
    assert digest(model, 3, ["w"], [IDS]) != before


def test_a_name_is_another_for_another_attention():
    model, _ = adapted(CONFIGS[0], "3")
    before = digest(model, 3, ["w"], [IDS])
    model.config._attn_implementation = "eager" if model.config._attn_implementation != "eager" else "sdpa"
    assert digest(model, 3, ["w"], [IDS]) != before


def test_a_name_is_another_for_another_text_layer_type_or_batch():
    model, _ = adapted(CONFIGS[0], "3")
    half, _ = adapted(CONFIGS[0], "3", torch.bfloat16)
    ids = IDS[:, :-1]
    names = [
        digest(model, 3, ["w", 4], [ids]), digest(model, 2, ["w", 4], [ids]), digest(model, 3, ["v", 4], [ids]),
        digest(model, 3, ["w", 2], [ids]), digest(model, 3, ["w", 4], [ids.flip(0)]), digest(half, 3, ["w", 4], [ids]),
        digest(model, 3, ["w", 4], [ids[:3], ids[3:]]),
    ]  # fmt: skip
    assert len(set(names)) == len(names) and digest(model, 3, ["w", 4], [ids.clone()]) == names[0]
