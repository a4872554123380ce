"""The first twenty losses of nano on a fixed text, as commit 67ce7d5 had them: a redesign must not move them."""

import json
from pathlib import Path

import pytest
import torch

from qrun.adapters.linear import attach, detach
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, TrainingConfig
from qrun.language.tokens import stream
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import fit, training_windows

GOLDEN = Path(__file__).parent / "golden_nano.json"
TEXT = Path(__file__).parents[2] / "LICENSE"


def losses(nano, folder):
    """Loss of each of 20 steps of a b = 4 adapter at all sites, on one thread."""
    ids = stream(nano.tokenizer, [TEXT.read_text()]).ids
    windows = training_windows(torch.from_numpy(ids), 128)
    config = AdapterConfig(dim=4)
    adapter = attach(nano.model, select(sites(nano.shape), config.projections, config.layers), config)
    training = TrainingConfig(steps=20, batch=2, context=128, lr=0.012, warmup=2, eval_every=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = folder / "c.safetensors"
        _, progress = fit(
            nano.model, adapter, windows, lambda: 1.0, training, 0, None, path, Progress(), lambda _: None, Interrupt()
        )
    finally:
        torch.set_num_threads(threads)
        detach(nano.model, adapter)
    return [row["loss"] for row in progress.history]


@pytest.mark.slow
def test_twenty_steps_of_nano_give_the_recorded_losses(nano, tmp_path):
    recorded = json.loads(GOLDEN.read_text())
    found = losses(nano, tmp_path)
    same = recorded["torch"] == torch.__version__ and recorded["cpu"] == torch.backends.cpu.get_cpu_capability()
    if same:  # bit for bit on the class of machine that recorded them
        assert found == [float.fromhex(value) for value in recorded["losses"]]
    assert found == pytest.approx([float.fromhex(value) for value in recorded["losses"]], rel=2e-5)
