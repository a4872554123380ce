import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qrun.adapters.linear import AdaptedLinear, Adapter, attach
from qrun.adapters.methods import names
from qrun.adapters.saving import CONFIG, WEIGHTS, read, save
from qrun.adapters.sites import select, sites
from qrun.config.schema import PROJECTIONS, AdapterConfig, Side
from qrun.errors import InputError


@pytest.fixture
def saved(tiny, tmp_path):
    config = AdapterConfig(
        dim=8, projections=["v_proj", "o_proj"], layers=["last"], side=Side.output, sign_constrained=True
    )
    adapter = attach(tiny.model, select(sites(tiny.shape), config.projections, config.layers), config)
    for parameter in adapter.tensors().values():
        parameter.data.normal_()
    save(tmp_path / "adapter", adapter, tiny.identity, {"gain": 1.25})
    return tmp_path / "adapter", adapter


def test_a_saved_adapter_comes_back_bit_for_bit(saved):
    folder, adapter = saved
    back = read(folder)
    assert list(back.tensors) == list(adapter.modules) == ["layers.1.self_attn.v_proj", "layers.1.self_attn.o_proj"]
    assert all(torch.equal(back.tensors[n], p) for n, p in adapter.tensors().items())
    assert back.config == adapter.config and back.base["name"] == "tiny" and back.facts == {"gain": 1.25}
    assert "| gain | 1.25 |" in (folder / "README.md").read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", WEIGHTS, CONFIG]


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("version", "text"),
    [(1, "written by an older qrun; train it again"), (None, "written by an older"), (4, "written by a newer qrun")],
)
def test_other_format_versions_are_refused(saved, version, text):
    edit(saved[0], format_version=version)
    with pytest.raises(InputError, match=rf"{text}.*\(format {version}, this qrun reads 2 and 3\)"):
        read(saved[0])


CONFIGS = [
    st.builds(
        AdapterConfig,
        dim=st.integers(2, 64), rank=st.integers(1, 64), factors=st.integers(1, 6),
        projections=st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True),
        layers=st.lists(st.sampled_from(["all", "first", "last", "3", "2-5"]), min_size=1),
        **({"side": st.sampled_from(Side), "sign_constrained": st.booleans()} if name == "cayley" else {}),
        method=st.just(name),
    )
    for name in names()
]  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(config=st.one_of(CONFIGS))
def test_every_field_of_every_config_comes_back(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    module = AdaptedLinear(torch.nn.Linear(8, 8), 4, Side.input, False)
    save(folder, Adapter(config, {"layers.0.self_attn.q_proj": module}), {"name": "m", "weights": "w"}, {})
    assert read(folder).config == config
    stored = json.loads((folder / CONFIG).read_text())["adapter"]
    assert set(stored) == {f.name for f in dataclasses.fields(AdapterConfig)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"adapter": {"reflections": 4}}, "adapter.reflections=4: Key"),  # of a future qrun
        ({"adapter": {"dim": "4"}}, "adapter.dim='4' cannot be kept"),
        ({"adapter": {"dim": 4.5}}, "adapter.dim=4.5: Value"),
        ({"adapter": {"dim": True}}, "adapter.dim=True: Value"),
        ({"adapter": {"dim": 0}}, "adapter.dim=0"),
        ({"adapter": {"side": "left"}}, "adapter.side='left': Invalid"),
        ({"adapter": {"method": "lorra"}}, "adapter.method=lorra: use block"),
        ({"adapter": {"projections": 5}}, "adapter.projections=5"),
        ({"adapter": {"options": {"alpha": 1}}}, "adapter.options.alpha=1: possible words"),
        ({"adapter": {"rank": None}}, "adapter.rank=None: "),
        ({"adapter": []}, r"adapter=\[\] is not a dict"),
        ({"base_model": None}, "base_model=None is not a dict"),
        ({"base_model": {"name": "m"}}, "base_model.weights=None"),
        ({"facts": 1}, "facts=1 is not a dict"),
        ({"sites": "all"}, "sites='all' is not a list"),
        ({"sites": [1]}, "are not names"),
        ({"parameters": 1.5}, "parameters=1.5 is not a int"),
        ({"parameters": 7}, "but parameters=7"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_in_one_line_that_names_them(saved, change, text):
    stored = json.loads((saved[0] / CONFIG).read_text())["adapter"]
    edit(saved[0], **{k: {**stored, **v} if k == "adapter" and isinstance(v, dict) else v for k, v in change.items()})
    with pytest.raises(InputError, match=text) as caught:
        read(saved[0])
    assert "\n" not in str(caught.value) and CONFIG in str(caught.value)


@pytest.mark.parametrize("key", ["adapter", "base_model", "sites", "parameters", "facts", "dim", "options", "method"])
def test_missing_keys_are_refused_by_name(saved, key):
    config = json.loads((saved[0] / CONFIG).read_text())
    (config if key in config else config["adapter"]).pop(key)
    (saved[0] / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=key):
        read(saved[0])


def test_tables_with_other_rows_are_refused_and_never_broadcast(saved):
    folder, adapter = saved
    whole = adapter.snapshot()
    first = next(iter(whole))
    cut = {**whole, first: whole[first][:1]}
    with pytest.raises(
        InputError, match=rf"{first}: tensor of shape \[1, 28\], but adapter.method=cayley has \[2, 28\]"
    ):
        adapter.load(cut)
    with pytest.raises(InputError, match="missing"):
        adapter.load({n: v for n, v in whole.items() if n != first})
    assert all(torch.equal(p, whole[n]) for n, p in adapter.tensors().items())
    save_file(cut, folder / WEIGHTS)
    with pytest.raises(InputError, match="values, but parameters="):
        read(folder)
    for broken in (whole[first] * float("nan"), whole[first].to(torch.float8_e4m3fn), whole[first].to(torch.int8)):
        save_file({**whole, first: broken}, folder / WEIGHTS)
        with pytest.raises(InputError, match=f"{first} is not a finite table"):
            read(folder)


def test_a_foreign_adapter_is_refused(saved):
    edit(saved[0], format="peft")
    with pytest.raises(InputError, match="not an adapter of qrun"):
        read(saved[0])


def test_missing_truncated_and_mismatched_files_are_refused(saved):
    folder, _ = saved
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read(folder)
    (folder / WEIGHTS).write_bytes(whole)
    edit(folder, sites=["layers.0.self_attn.q_proj"])
    with pytest.raises(InputError, match="its sites are not those"):
        read(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="missing"):
        read(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        read(folder)
    with pytest.raises(InputError, match=f"no {CONFIG} and no adapter_config.json there"):
        read(folder / "nowhere")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from qrun.adapters.linear import Adapter, AdaptedLinear
from qrun.adapters.saving import read, save
from qrun.config.schema import PROJECTIONS, AdapterConfig, Side
from qrun.errors import RunFailed
from qrun.training import checkpoint
from qrun.training.checkpoint import Progress

folder = Path(sys.argv[1])
module = AdaptedLinear(torch.nn.Linear(4096, 8), 64, Side.input, False)
adapter = Adapter(AdapterConfig(dim=64), {"layers.0.self_attn.q_proj": module})
optimizer = torch.optim.AdamW(list(adapter.tensors().values()))
module(torch.ones(1, 4096)).sum().backward(); optimizer.step()
save(folder / "adapter", adapter, {"name": "m", "weights": "w"}, {})
checkpoint.save(folder / "c.safetensors", adapter, optimizer, adapter.snapshot(), Progress(step=1))
first = adapter.snapshot()
module.trained.data.add_(1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # writes beyond this fail as on a full disk
for attempt in (lambda: save(folder / "adapter", adapter, {"name": "m", "weights": "w"}, {}),
                lambda: checkpoint.save(folder / "c.safetensors", adapter, optimizer,
                adapter.snapshot(), Progress(step=2))):
    try:
        attempt(); print("saved?")
    except RunFailed as error:
        print("kept" if "kept" in str(error) else error)
assert torch.equal(read(folder / "adapter").tensors["layers.0.self_attn.q_proj"], first["layers.0.self_attn.q_proj"])
best, progress = checkpoint.restore(folder / "c.safetensors", adapter, optimizer)
assert progress.step == 1 and torch.equal(module.trained, first["layers.0.self_attn.q_proj"])
print(sorted(p.name for p in folder.iterdir()))
"""


@pytest.mark.slow
def test_a_write_that_fails_leaves_the_previous_adapter_and_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["kept", "kept", "['adapter', 'c.safetensors']"], done.stdout + done.stderr
