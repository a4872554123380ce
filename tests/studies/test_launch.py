"""Launchers: the same numbers from this process, from two, and from Ray; failures and lost processes are named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from qrun.cells.pool import Cell, launch, workers
from qrun.config.schema import LauncherConfig, LauncherKind
from qrun.tracking.store import Store

STEPS = [
    "training.context=64",
    "training.batch=2",
    "training.steps=3",
    "training.eval_every=3",
    "training.warmup=1",
    "training.lr=0.05",
]
AXES = ["study.dims=[2,4]", "study.seeds=[0]", "study.sites=[adapter]", "study.controls=[]"]


@pytest.fixture(scope="module")
def words(tiny_folder, story_file):
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny", "data=text", f"data.path={story_file}"]
    return ["sweep", "dim", *model, "protocol.ctx=64", "evaluation.max_tokens=640", *STEPS, *AXES, "name=dims"]


def table(folder):
    store = Store(folder)
    return json.loads(store.artifact_text(store.find("dims").info.run_id, "result.json"))["values"]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, "-m", "qrun", *words, "launcher.workers=1", f"results={folder}"],
        check=True,
        capture_output=True,
    )
    return table(folder)


def test_two_processes_give_the_table_of_one(qrun, words, alone, tmp_path):
    code, out, err = qrun(*words, "launcher.workers=2", f"results={tmp_path}")
    assert code == 0 and "[2/2]" in out, err
    assert table(tmp_path) == alone


def test_ray_gives_the_same_table(qrun, words, alone, tmp_path):
    pytest.importorskip("ray", reason="the optional extra ray is not installed")
    code, out, err = qrun(*words, "launcher=ray", "launcher.workers=2", f"results={tmp_path}")
    assert code == 0 and "[2/2]" in out, err
    assert table(tmp_path) == alone


def test_ray_missing_or_out_of_reach_is_one_line(qrun, words, tmp_path, monkeypatch):
    if "ray" in sys.modules or __import__("importlib.util").util.find_spec("ray"):
        code, _, err = qrun(*words, "launcher=ray", "launcher.address=127.0.0.1:1", f"results={tmp_path}")
        assert code == 2 and "no Ray cluster answers there" in err and err.count("\n") == 1, err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = qrun(*words, "launcher=ray", f"results={tmp_path}")
    assert code == 2 and "pip install 'qrun-adapters[ray]'" in err and err.count("\n") == 1


class Breaks:
    """A cell with a bug."""

    def run(self, shelf, tags):
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_cell_is_its_own_failure(capsys):
    outcomes = list(
        launch([Cell("bad", "k", Breaks()), Cell("worse", "l", Breaks())], {}, LauncherConfig(workers=1), "cpu", None)
    )
    assert [o.error for o in outcomes] == ["ZeroDivisionError: a bug"] * 2 and "Traceback" in capsys.readouterr().err


def test_workers_share_the_cores_and_an_accelerator_has_one():
    cores = len(os.sched_getaffinity(0))
    assert workers(LauncherConfig(), "cpu") == cores and workers(LauncherConfig(threads=cores), "cpu") == 1
    assert (
        workers(LauncherConfig(), "cuda") == 1
        and workers(LauncherConfig(kind=LauncherKind.ray, workers=7), "cuda") == 7
    )


def test_interrupting_a_study_stops_its_processes_and_leaves_a_state_to_go_on_from(words, alone, tmp_path):
    long = [w for w in words if not w.startswith("training.steps")]
    command = [
        sys.executable,
        "-m",
        "qrun",
        *long,
        "training.steps=400",
        "training.checkpoint_every=5",
        "launcher.workers=2",
        f"results={tmp_path}",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        if list(tmp_path.glob("runs/*/checkpoint.safetensors")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert list((tmp_path / "runs").glob("*/checkpoint.safetensors"))
    for _ in range(100):
        left = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-s", str(process.pid)], capture_output=True, text=True
        ).stdout.split("\n")
        left = [row for row in left if row.strip() and "Z" not in row]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    store = Store(tmp_path)
    assert store.find("dims").info.status == "KILLED" and not store.tagged("study", "cell_key", "RUNNING")


def test_a_shelf_keeps_the_models_asked_for_last(tiny_folder):
    from qrun.config.schema import ModelConfig
    from qrun.recipes.record import MODELS, Shelf

    shelf = Shelf()
    configs = [ModelConfig(name=f"m{k}", path=str(tiny_folder)) for k in range(MODELS + 1)]
    first, *_ = [shelf.model(config) for config in configs[:MODELS]]
    assert shelf.model(configs[0]) is first
    shelf.model(configs[MODELS])
    assert shelf.model(configs[0]) is first and len(shelf._models) == MODELS
