"""Fixtures.

The embedded model, a smaller random one, the shared data where it is at hand, and the command line in this process.
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="qrun-tests-")  # nor writes to the user's cache

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("QRUN_TEST_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(items):
    if not SHARED.is_dir():
        for item in items:
            if "data" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"shared test data not found at {SHARED} (set QRUN_TEST_DATA)"))


@pytest.fixture(scope="session")
def shared():
    return SHARED


@pytest.fixture(scope="session")
def nano():
    """The embedded model. Tests must leave it as they found it."""
    from qrun.config.schema import ModelConfig
    from qrun.language.models import load

    return load(ModelConfig(name="nano", embedded=True))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, nano):
    """A random two-layer Llama with nano's tokenizer, in the hub's layout; every site is 16, 32 or 48 wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(nano.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    nano.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """A fresh copy for each test, which may attach adapters to it."""
    from qrun.config.schema import ModelConfig
    from qrun.language.models import load

    return load(ModelConfig(name="tiny", path=str(tiny_folder)))


WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "block",
    "of",
    "text",
    "and",
    "rotates",
    "each",
    "slice",
    "of",
    "it",
    "before",
    "the",
    "frozen",
    "weight",
    "sees",
    "the",
    "result",
    "again",
]


@pytest.fixture(scope="session")
def story_file(tmp_path_factory):
    """Sixty short made-up documents, enough for all three splits."""
    import json
    import random

    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "stories.json"
    path.write_text(json.dumps([" ".join(rng.choices(WORDS, k=60)) + f" {i}." for i in range(60)]))
    return path


@pytest.fixture
def qrun(monkeypatch, capsys):
    """Run a command line in this process: qrun("train", "adapter.dim=8") -> (exit code, stdout, stderr)."""

    def run(*words):
        from qrun.cli.main import main

        monkeypatch.setattr(sys, "argv", ["qrun", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
