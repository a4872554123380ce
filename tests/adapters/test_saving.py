import json
import subprocess
import sys

import pytest
import torch

from qrun.adapters.linear import attach
from qrun.adapters.saving import CONFIG, WEIGHTS, read, save
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, Side
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
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def test_a_newer_format_version_is_refused(saved):
    edit(saved[0], format_version=2)
    with pytest.raises(InputError, match="newer than this qrun"):
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
    with pytest.raises(InputError, match=f"no {CONFIG} there"):
        read(folder / "nowhere")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from qrun.adapters.linear import Adapter, AdaptedLinear
from qrun.adapters.saving import read, save
from qrun.config.schema import AdapterConfig, Side
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
module.skew.data.add_(1.0)
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
assert progress.step == 1 and torch.equal(module.skew, first["layers.0.self_attn.q_proj"])
print(sorted(p.name for p in folder.iterdir()))
"""


def test_a_write_that_fails_leaves_the_previous_adapter_and_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["kept", "kept", "['adapter', 'c.safetensors']"], done.stdout + done.stderr
