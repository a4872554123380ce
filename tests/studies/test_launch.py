"""Launchers: the same numbers from this process, from two, and from Ray; failures and lost processes are named."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from tests_support import PATIENCE, Breaks, Dies, Says, columns, finished, saved, study, until

from qrun.cells.cell import Place
from qrun.cells.keys import code_fingerprint
from qrun.cells.pool import Here, Processes, SubmititPool, open_pool, workers
from qrun.cells.workspace import MODELS, Workspace
from qrun.config.schema import Cluster, LauncherConfig, LauncherKind, ModelConfig
from qrun.errors import InputError
from qrun.studies import configure
from qrun.tracking.store import Store

STEPS = ["training.context=64", "training.batch=2", "training.steps=3", "training.eval_every=3", "training.warmup=1",
         "training.lr=0.05"]  # fmt: skip
AXES = [
    "study.dims=[2,4]",
    "study.seeds=[0]",
    "study.sites=[adapter]",
    "study.controls=[]",
    "study.trials=1",
    "data@home=null",
    "protocol@second=null",
]


@pytest.fixture(scope="module")
def words(tiny_folder, story_file):
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny", "data=text", f"data.path={story_file}"]
    return [*model, "protocol.ctx=64", *STEPS, *AXES, "name=dims"]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """Table of the study in one process."""
    return study("dim", [*words, "launcher.workers=1"], results=tmp_path_factory.mktemp("alone")).table


def same(found, alone):
    """All numbers of the two tables are the same to the last bit."""
    assert alone["gain"].notna().sum() == 2
    pd.testing.assert_frame_equal(columns(found), columns(alone), check_dtype=False, check_exact=True)


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(qrun, words, alone, tmp_path):
    code, _, err = qrun("sweep", "dim", *words, "launcher.workers=2", f"results={tmp_path}")
    assert code == 0, err
    same(saved(tmp_path, "dims").table, alone)


@pytest.mark.long
def test_ray_gives_the_same_table(qrun, words, alone, tmp_path):
    pytest.importorskip("ray", reason="the optional extra ray is not installed")
    code, _, err = qrun("sweep", "dim", *words, "launcher=ray", "launcher.workers=2", f"results={tmp_path}")
    assert code == 0, err
    same(saved(tmp_path, "dims").table, alone)


@pytest.mark.slow
def test_ray_missing_or_out_of_reach_is_one_line(qrun, words, tmp_path, monkeypatch):
    if "ray" in sys.modules or __import__("importlib.util").util.find_spec("ray"):
        typed = [*words, "launcher=ray", "launcher.address=127.0.0.1:1", f"results={tmp_path}"]
        code, _, err = qrun("sweep", "dim", *typed)
        assert code == 2 and "no Ray cluster answers there" in err and err.count("\n") == 1, err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = qrun("sweep", "dim", *words, "launcher=ray", f"results={tmp_path}")
    assert code == 2 and "pip install 'qrun-adapters[ray]'" in err and err.count("\n") == 1


@pytest.mark.long
def test_jobs_give_the_same_table(qrun, words, alone, tmp_path):
    pytest.importorskip("submitit", reason="the optional extra slurm is not installed")
    code, _, err = qrun(
        "sweep",
        "dim",
        *words,
        "launcher=submitit",
        "launcher.cluster=local",
        "launcher.workers=2",
        f"results={tmp_path}",
    )
    assert code == 0, err
    same(saved(tmp_path, "dims").table, alone)


@pytest.mark.long
def test_a_job_that_is_lost_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the optional extra slurm is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # a job finds these tests' own tasks
    config = LauncherConfig(kind=LauncherKind.submitit, cluster=Cluster.local)
    with open_pool(config, "cpu", Workspace(), 3, tmp_path) as pool:
        assert isinstance(pool, SubmititPool) and pool.capacity == 3
        for key, task in (("lost", Dies()), ("bug", Breaks()), ("kept", Says())):
            pool.submit(key, task, place(key))
        outcomes = {outcome.key: outcome for outcome in (pool.next() for _ in range(3))}
    lost = outcomes["lost"].error
    assert lost.startswith("its job") and f"log {tmp_path}" in lost and "\n" not in lost
    assert outcomes["bug"].error == "ZeroDivisionError: a bug"
    assert (outcomes["kept"].run_id, outcomes["kept"].error) == ("run of kept", None)


def test_without_slurm_or_submitit_a_study_ends_in_one_line_that_says_how(monkeypatch, tmp_path):
    config = LauncherConfig(kind=LauncherKind.submitit)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no SLURM on this machine"):
        open_pool(config, "cpu", Workspace(), 1, tmp_path).__enter__()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'qrun-adapters\[slurm\]'"):
        open_pool(config, "cpu", Workspace(), 1, tmp_path).__enter__()


def test_slurm_is_asked_for_what_the_launcher_says(monkeypatch, tmp_path):
    asked = {}

    class Executor:
        def __init__(self, folder, cluster):
            asked.update(folder=folder, cluster=cluster)

        def update_parameters(self, **parameters):
            asked.update(parameters)

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    monkeypatch.setattr("qrun.cells.pool.which", lambda name: f"/bin/{name}")
    words = [
        "launcher=submitit",
        "launcher.partition=gpu",
        "launcher.gpus=1",
        "launcher.threads=4",
        "launcher.mem_gb=32",
    ]
    config = configure("dim", words).launcher
    with open_pool(config, "cuda", Workspace(), 7, tmp_path) as pool:
        assert pool.capacity == 7
    assert asked == {
        "folder": tmp_path, "cluster": "slurm", "name": "qrun", "timeout_min": 240, "cpus_per_task": 4,
        "gpus_per_node": 1, "mem_gb": 32.0, "slurm_partition": "gpu",
    }  # fmt: skip


def test_a_job_that_slurm_refuses_is_one_line():
    class FailedJobError(RuntimeError):
        """submitit's."""

    def refuse(*_):
        raise FailedJobError("sbatch: error: invalid partition specified: nosuch")

    pool = SubmititPool(SimpleNamespace(submit=refuse), 1, 1)
    with pytest.raises(InputError, match=r"SLURM takes no such job .*invalid partition"):
        pool.submit("k", Says(), place("k"))


def place(key):
    return Place("nowhere", "", key, key, {"code": code_fingerprint(())}, {}, {})


def test_a_bug_in_a_cell_is_its_own_failure(capsys):
    pool = Here(Workspace())
    for key in ("bad", "worse"):
        pool.submit(key, Breaks(), place(key))
    outcomes = [pool.next(), pool.next()]
    assert [(o.key, o.error) for o in outcomes] == [(k, "ZeroDivisionError: a bug") for k in ("bad", "worse")]
    assert capsys.readouterr().err.count("Traceback") == 2


@pytest.mark.slow
def test_a_lost_process_is_named_and_the_next_cells_get_another():
    pool = Processes(1, 1)
    try:
        outcomes = []
        for key, task in (("lost", Dies()), ("bug", Breaks()), ("kept", Says())):
            pool.submit(key, task, place(key))
            outcomes.append(pool.next())
    finally:
        pool.pool.shutdown(wait=True, cancel_futures=True)
    lost, bug, kept = outcomes
    assert (lost.key, lost.run_id) == ("lost", "") and "its process ended" in lost.error
    assert bug.error == "ZeroDivisionError: a bug" and (kept.run_id, kept.error) == ("run of kept", None)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system holds no signals back")
def test_a_process_that_is_starting_takes_a_signal_without_a_word(capfd):
    pool = Processes(1, 1)
    try:
        pool.submit("a", Says(), place("a"))
        pool.interrupt(signal.SIGINT)  # its interpreter is starting: seconds of imports follow
        outcome = pool.next()
    finally:
        pool.pool.shutdown(wait=True, cancel_futures=True)
    assert (outcome.key, outcome.error) == ("a", "interrupted")
    assert "Traceback" not in capfd.readouterr().err
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


def test_one_cell_or_one_worker_needs_no_process_beside_this_one(tmp_path):
    for config, cells in ((LauncherConfig(workers=1), 5), (LauncherConfig(workers=4), 1)):
        with open_pool(config, "cpu", Workspace(), cells, tmp_path) as pool:
            assert isinstance(pool, Here) and pool.capacity == 1


def test_workers_share_the_cores_and_an_accelerator_has_one():
    cores = len(os.sched_getaffinity(0))
    assert workers(LauncherConfig(), "cpu") == cores and workers(LauncherConfig(threads=cores), "cpu") == 1
    assert workers(LauncherConfig(), "cuda") == 1
    assert workers(LauncherConfig(kind=LauncherKind.ray, workers=7), "cuda") == 7


def left(process):
    """Processes of a session that still live."""
    shown = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(process.pid)], capture_output=True, text=True).stdout
    return [row for row in shown.splitlines() if row.strip() and "Z" not in row]


@pytest.mark.long
@pytest.mark.parametrize("moment", ["training", "opening"])
def test_a_study_of_two_processes_stops_within_the_running_steps_and_starts_no_other_cell(
    start, words, tmp_path, moment
):
    from qrun.training.checkpoint import read_progress

    long = [w for w in words if not w.startswith(("training.steps", "study.seeds"))]
    long += [
        "training.steps=100000",
        "training.patience=null",
        "training.checkpoint_every=1",
        "study.seeds=[0,1]",
        "launcher.workers=2",
    ]
    process, store = start("sweep", "dim", *long, f"results={tmp_path}"), Store(tmp_path)
    if moment == "training":
        until(lambda: len(list(tmp_path.glob("runs/*/checkpoint.safetensors"))) == 2, process)
    else:
        until(lambda: len(left(process)) >= 3, process)  # the parent, Python's tracker of resources, a worker
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143, process.told()
    until(lambda: not left(process), Ended())
    killed = store.tagged("study", "cell_key", "KILLED")
    assert store.find("dims").info.status == "KILLED" and not store.tagged("study", "cell_key", "RUNNING")
    states = list(tmp_path.glob("runs/*/checkpoint.safetensors"))
    if moment == "training":
        assert len(killed) == len(states) == 2 and {run.tags["kind"] for run in killed.values()} == {"train"}
        assert all(0 < read_progress(state).step < 100_000 for state in states)
    assert len(killed) <= 2 and len(finished(store)) <= 1  # the frozen model may have been measured


class Ended:
    """A process that is waited for already."""

    def poll(self):
        return None

    def told(self):
        return "processes are left"


def test_a_workspace_keeps_the_models_asked_for_last(tiny_folder):
    workspace = Workspace()
    configs = [ModelConfig(name=f"m{k}", path=str(tiny_folder)) for k in range(MODELS + 1)]
    first, *_ = [workspace.model(config) for config in configs[:MODELS]]
    assert workspace.model(configs[0]) is first
    workspace.model(configs[MODELS])
    assert workspace.model(configs[0]) is first and len(workspace._models) == MODELS
