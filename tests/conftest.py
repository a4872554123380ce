"""Fixtures.

The embedded model, a smaller random one, the shared data where it is at hand, and the command line in this process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub
os.environ.pop("MLFLOW_TRACKING_URI", None)  # nor records in a store of the user's
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # threads that wait for each other spin, and sums keep one order
os.environ["COLUMNS"] = "160"  # of tables, whatever terminal, if any, the tests are started in
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="qrun-tests-")  # nor writes to the user's cache

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a background job; Ctrl-C is tested here
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("QRUN_TEST_DATA", ROOT.parent / "shared" / "data"))


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    for item in items:
        if "long" in item.keywords:  # what leaves the slow ones out leaves these out, too
            item.add_marker(pytest.mark.slow)
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
    """300 short made-up documents: about 30 of them are the test split, enough for intervals over documents."""
    import json
    import random

    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "stories.json"
    path.write_text(json.dumps([" ".join(rng.choices(WORDS, k=40)) + f" {i}." for i in range(300)]))
    return path


@pytest.fixture
def qrun(monkeypatch, capsys):
    """Run a command line in this process: qrun("train", "adapter.dim=8") -> (exit code, stdout, stderr)."""

    def run(*words):
        from qrun.cli.main import main
        from qrun.config import tree

        tree.use(None)  # another command's --config-dir
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


@pytest.fixture(scope="session", autouse=True)
def copied_stores(tmp_path_factory):
    """New stores in this process are copies of one: MLflow takes seconds of migrations to make each.

    Tests of how a store is made ask for `making_stores` and get the real thing.
    """
    from qrun.tracking.database import missing
    from qrun.tracking.store import Store

    make, template = Store._create, Store(tmp_path_factory.mktemp("store"))

    def copy(self):
        if missing(self.database) and not REAL and self.folder != template.folder:
            template.client._tracking_client.store.engine.dispose()
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(template.database, self.folder / ".new.db")
            os.replace(self.folder / ".new.db", self.database)
        make(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_create", copy)
        yield


REAL = []  # not empty while a test wants its stores made


@pytest.fixture
def making_stores():
    REAL.append(True)
    yield
    REAL.clear()


@pytest.fixture(autouse=True)
def own_folders():
    """No test composes with the config folder that an earlier one asked for."""
    from qrun.config import tree

    tree.use(None)


@pytest.fixture(autouse=True)
def threads():
    """A study sets the threads of this process; the next test must not see it."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


class Started(subprocess.Popen):
    """A command line in a session of its own that writes to a file, so that it never waits for a reader."""

    def __init__(self, words, log):
        self.log = log
        with log.open("w") as out:
            command = [sys.executable, "-m", "qrun", *map(str, words)]
            super().__init__(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def told(self):
        return self.log.read_text()


@pytest.fixture
def start(tmp_path_factory):
    """Start a command line in a process of its own; whatever is left of it ends with the test."""
    folder, started = tmp_path_factory.mktemp("started"), []

    def begin(*words):
        started.append(Started(words, folder / f"{len(started)}.log"))
        return started[-1]

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
