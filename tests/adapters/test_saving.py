import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qrun.adapters.linear import attach
from qrun.adapters.methods import names
from qrun.adapters.saving import CONFIG, PEFT_CONFIG, WEIGHTS, _adapter_config, read, replace_folder, save
from qrun.adapters.sites import select, sites
from qrun.config.compose import plain
from qrun.config.schema import PROJECTIONS, AdapterConfig, Side
from qrun.errors import InputError, RunFailed


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


def one_line(error, folder, file):
    """At most 300 characters without the folder's own name, which name the file."""
    told = str(error)
    assert told.isprintable() and file in told and len(told.replace(str(folder), "")) <= 300


def test_a_fact_stays_in_its_row_of_the_card(tiny, tmp_path):
    config = AdapterConfig(dim=4)
    adapter = attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), config)
    save(tmp_path / "a", adapter, tiny.identity, {"note": "a | b\n\n# Trusted", "steps": 3})
    text = (tmp_path / "a" / "README.md").read_text()
    assert r"| note | a \| b # Trusted |" in text and "| steps | 3 |" in text and "\n# Trusted" not in text


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("version", "text"),
    [(1, "written by an older qrun; train it again"), (None, "written by an older"), (6, "written by a newer qrun")],
)
def test_other_format_versions_are_refused(saved, version, text):
    edit(saved[0], format_version=version)
    with pytest.raises(InputError, match=rf"{text}.*\(format {version}, this qrun reads 2 to 5\)"):
        read(saved[0])


CONFIGS = [
    st.builds(
        AdapterConfig,
        dim=st.sampled_from([2, 4, 8, 16, 32, 64]), rank=st.integers(1, 64), factors=st.integers(1, 6),
        projections=st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True),
        layers=st.lists(st.sampled_from(["all", "first", "last", "3", "2-5"]), min_size=1),
        **({"side": st.sampled_from(Side), "sign_constrained": st.booleans()} if name == "cayley" else {}),
        method=st.just(name),
    )
    for name in names()
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(config=st.one_of(CONFIGS))
def test_every_field_of_every_config_comes_back(config):
    stored = json.loads(json.dumps(plain(config)))
    assert _adapter_config(stored, Path(CONFIG)) == config
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
        ({"adapter": {"sign_constrained": "false"}}, "adapter.sign_constrained='false' cannot be kept"),
        ({"adapter": []}, r"adapter=\[\] should be a valid dict"),
        ({"base_model": None}, "base_model=None should be a valid dict"),
        ({"base_model": {"name": "m"}}, "no base_model.weights there"),
        ({"base_model": {"name": "m\n# Trusted", "weights": "w"}}, "base_model.name='m"),
        ({"facts": {"data": ["a"]}}, r"facts.data=\['a'\] should be a valid string"),
        ({"base_model": {"name": "m", "weights": "w", "hub_id": 3}}, "base_model.hub_id=3 should be a valid str"),
        ({"facts": 1}, "facts=1 should be a valid dict"),
        ({"sites": "all"}, "sites='all' should be a valid list"),
        ({"sites": []}, r"sites=\[\] List should have at least 1"),
        ({"sites": ["layers.0.mlp.q\nroot"]}, r"sites.0='layers.0.mlp.q\\nroot' String should match"),
        ({"sites": ["layers.0.mlp.up_proj" + 9999 * "x"]}, "sites.0='layers.0.mlp.up_projx.* String"),
        ({"sites": [1]}, "sites.0=1 should be a valid string"),
        ({"parameters": 1.5}, "parameters=1.5 should be a valid integer"),
        ({"parameters": True}, "parameters=True should be a valid integer"),
        ({"parameters": 7}, "but parameters=7"),
        ({"format_version": [3]}, r"format \[3\], this qrun reads"),
        ({"format_version": True}, "format True, this qrun reads"),
        ({"format": {"a": "b" * 9999}}, "not an adapter of qrun"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_in_one_line_that_names_them(saved, change, text):
    stored = json.loads((saved[0] / CONFIG).read_text())["adapter"]
    edit(saved[0], **{k: {**stored, **v} if k == "adapter" and isinstance(v, dict) else v for k, v in change.items()})
    with pytest.raises(InputError, match=text) as caught:
        read(saved[0])
    one_line(caught.value, saved[0], CONFIG)


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


K = "layers.1.self_attn.v_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: k * float("nan"), "has values that are not finite"),
        (lambda k: k + 1e30, r"has values beyond 1e\+06"),
        (lambda k: k.to(torch.float8_e4m3fn), "is of type F8_E4M3; possible: "),
        (lambda k: k.to(torch.int8), "is of type I8; possible: "),
        (lambda k: k > 0, "is of type BOOL; possible: "),
        (lambda k: k.to(torch.complex64), "is of type C64; possible: "),
        (lambda k: k.double(), "is of type F64; possible: F32, F16, BF16"),
        (lambda k: k.reshape(1, -1), r"tensor of shape \[1, 56\], but method cayley with b = 8 has \[blocks, 28\]"),
        (lambda k: k.flatten(), r"tensor of shape \[56\], but"),
    ],
)
def test_tensors_of_other_types_values_and_shapes_are_refused_and_nothing_is_written(qrun, saved, change, said):
    folder, adapter = saved
    save_file({**adapter.snapshot(), K: change(adapter.snapshot()[K])}, folder / WEIGHTS)
    with pytest.raises(InputError, match=f"{K}:? {said}") as caught:
        read(folder)
    one_line(caught.value, folder, WEIGHTS)
    before = sorted(folder.parent.rglob("*"))
    for command in (["eval", "perplexity", f"results={folder.parent / 'r'}"], ["circuit"]):
        code, _, err = qrun(*command, f"adapter.path={folder}")
        assert (code, err) == (2, f"qrun: {caught.value}\n")
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(saved, dtype):
    folder, adapter = saved
    save_file({name: value.to(dtype) for name, value in adapter.snapshot().items()}, folder / WEIGHTS)
    assert read(folder).tensors[K].dtype is dtype
    adapter.load(read(folder).tensors)
    assert torch.equal(adapter.snapshot()[K], read(folder).tensors[K].float())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "not readable as JSON"), (b"\xff\xfe", "not readable as JSON"), (b"[]", "not a JSON object"),
        (b" " * (1 << 24) + b"{}", "16,777,218 bytes of JSON; at most 16,777,216 are read"),
        (b'{"peft_type": ["OFT"]}', "peft_type="), (b'{"peft_type": "OFT", "block_share": "no"}', "block_share='no'"),
        (b'{"peft_type": "OFT", "num_cayley_neumann_terms": 1e9}', "num_cayley_neumann_terms=1000000000.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_json_that_is_deep_large_or_of_other_types_is_one_line(saved, content, said):
    folder, adapter = saved
    (folder / CONFIG).unlink()
    (folder / PEFT_CONFIG).write_bytes(content)
    tensors = {f"base_model.model.model.{K}.oft_R.weight": adapter.snapshot()[K]}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match=said) as caught:
        read(folder)
    one_line(caught.value, folder, PEFT_CONFIG)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (f"{K}.oft_R.weight", [2, 5], "blocks of 5 parameters; b"), (f"{K}.oft_R.weight", [6], r"shape \[6\]"),
        (f"{K}.oft_R.weight", [], r"shape \[\]"), (f"{K}.oft_R.weight", [0, 6], r"shape \[0, 6\]"),
        ("layers.0.mlp.gate.oft_R.weight", [2, 6], "is at none of the projections"),
        (f"layers.{'9' * 5000}.mlp.up_proj.oft_R.weight", [2, 6], "is at none of the projections"),
        (f"{K}.oft_Q.weight", [2, 6], "expected oft_R.weight"),
    ],
)  # fmt: skip
def test_tensors_that_peft_would_not_write_are_refused(saved, name, shape, said):
    folder, _ = saved
    (folder / CONFIG).unlink()
    (folder / PEFT_CONFIG).write_text('{"peft_type": "OFT"}')
    save_file({f"base_model.model.model.{name}": torch.ones(shape)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=said) as caught:
        read(folder)
    one_line(caught.value, folder, "")


@pytest.mark.parametrize("levels", [60, 150, 500])
def test_a_config_nested_deeper_than_its_readers_go_is_one_line(saved, levels):
    folder, _ = saved
    nested = 1
    for _ in range(levels):
        nested = {"a": nested}
    edit(folder, adapter={"options": nested})
    with pytest.raises(InputError, match="nested more than 50 deep") as caught:
        read(folder)
    one_line(caught.value, folder, CONFIG)


@pytest.mark.parametrize("key", ["method", "layers", "options"])
def test_an_adapter_fills_in_nothing_from_the_environment(saved, key, monkeypatch):
    monkeypatch.setenv("PLAIN_WORD", "hello-there")
    given = "${oc.env:PLAIN_WORD}"
    edit(saved[0], adapter={**plain(read(saved[0]).config), key: {"a": given} if key == "options" else given})
    with pytest.raises(InputError, match=f"adapter.{key}: has ") as caught:
        read(saved[0])
    assert "hello-there" not in str(caught.value)


def test_a_header_of_numbers_without_end_is_one_line(saved):
    header = b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}'
    (saved[0] / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read(saved[0])


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
told = {"history": [dict.fromkeys(checkpoint.ROW, 1.0)], "evaluations": [{"step": 1, "validation_nats": 1.0}]}
first = adapter.snapshot()
checkpoint.save(folder / "c.safetensors", adapter, optimizer, first, [p.clone() for p in first.values()],
                Progress(step=1, **told))
module.trained.data.add_(1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # writes beyond this fail as on a full disk
for attempt in (lambda: save(folder / "adapter", adapter, {"name": "m", "weights": "w"}, {}),
                lambda: checkpoint.save(folder / "c.safetensors", adapter, optimizer,
                adapter.snapshot(), [p.clone() for p in first.values()], Progress(step=2))):
    try:
        attempt(); print("saved?")
    except RunFailed as error:
        print("kept" if "kept" in str(error) else error)
assert torch.equal(read(folder / "adapter").tensors["layers.0.self_attn.q_proj"], first["layers.0.self_attn.q_proj"])
best, means, progress = checkpoint.restore(folder / "c.safetensors", adapter, optimizer)
assert progress.step == 1 and torch.equal(module.trained, first["layers.0.self_attn.q_proj"])
assert torch.equal(means[0], module.trained)
print(sorted(p.name for p in folder.iterdir()))
"""


@pytest.mark.slow
def test_a_write_that_fails_leaves_the_previous_adapter_and_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["kept", "kept", "['adapter', 'c.safetensors']"], done.stdout + done.stderr


def test_a_folder_that_cannot_be_swapped_in_is_there_as_before(tmp_path, monkeypatch):
    target, rename = tmp_path / "ad", Path.rename
    replace_folder(target, lambda folder: (folder / "a").write_text("first"))

    def fails(path, to):
        if "new" in path.name:
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(RunFailed, match="what was there before is kept"):
        replace_folder(target, lambda folder: (folder / "a").write_text("second"))
    assert [p.name for p in tmp_path.iterdir()] == ["ad"] and (target / "a").read_text() == "first"


def test_two_processes_that_save_to_one_folder_never_mix_their_files(tmp_path, monkeypatch):
    target, mine = tmp_path / "ad", os.getpid()

    def write(folder):
        (folder / "a").write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: mine + 1)  # the other one begins and ends meanwhile
        replace_folder(target, lambda other: (other / "b").write_text("theirs"))
        (folder / "c").write_text("mine")

    replace_folder(target, write)
    assert sorted(p.name for p in target.iterdir()) == ["a", "c"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("key", "before"), [("count", 3), ("order", 4)])
def test_an_adapter_of_an_older_format_is_read_without_a_later_key_and_a_newer_one_refused(
    tiny, tmp_path, key, before
):  # fmt: skip
    config = AdapterConfig(dim=4, projections=["q_proj"])
    save(tmp_path / "a", attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), config), tiny.identity, {})
    stored = json.loads((tmp_path / "a" / "qrun.json").read_text())
    del stored["adapter"][key]
    for version, readable in ((before, True), (before + 1, False)):
        (tmp_path / "a" / "qrun.json").write_text(json.dumps({**stored, "format_version": version}))
        if readable:
            assert read(tmp_path / "a").config == config
        else:
            with pytest.raises(InputError, match=rf"adapter.{key}='\(missing\)"):
                read(tmp_path / "a")
