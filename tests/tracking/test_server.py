"""Runs on an MLflow server: what is trained from one results folder is used, measured and reported from another.

The server's database is SQLite, or an empty one of yours: QRUN_TEST_DATABASE=postgresql+psycopg://user@host/name.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pandas as pd
import pytest
from tests_support import PATIENCE, columns, finished, study

from qrun.tracking.runs import MODEL
from qrun.tracking.store import Store

pytestmark = pytest.mark.slow
STEPS = [
    "protocol.ctx=64", "training.context=64", "training.batch=2", "training.steps=3", "training.eval_every=3",
    "training.warmup=1", "training.lr=0.05", "training.threads=1",
]  # fmt: skip
AXES = ["study.dims=[2,4]", "study.seeds=[0]", "study.sites=[adapter]", "study.controls=[]", "launcher.workers=2",
        "study.trials=1", "data@home=null", "protocol@second=null"]  # fmt: skip
NOISE = ["study.rates=[1e-2]", "study.readout_rates=[1e-2]", "study.dims=[4]", "evaluation.max_tokens=320"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server with a database behind it; it ends with these tests."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = os.environ.get("QRUN_TEST_DATABASE", f"sqlite:///{folder}/server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "kept"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"], env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def words(tiny_folder, story_file):
    return [
        "model=local",
        f"model.path={tiny_folder}",
        "model.name=tiny",
        "data=text",
        f"data.path={story_file}",
        *STEPS,
    ]


@pytest.fixture(scope="module")
def dims(server, words, tmp_path_factory):
    """A dim study of two processes on the server: its table and its results folder."""
    folder = tmp_path_factory.mktemp("first")
    more = {"results": folder, "name": "dims", "tracking.uri": server}
    return study("dim", [*words, *AXES], **more), folder


@pytest.mark.long
def test_a_study_on_a_server_gives_the_table_of_a_local_one(server, dims, words, tmp_path):
    local = study("dim", [*words, *AXES], results=tmp_path, name="dims")
    pd.testing.assert_frame_equal(columns(dims[0].table), columns(local.table), check_dtype=False, check_exact=True)
    assert dims[0].units == local.units and len(local.units) == 3
    assert not (dims[1] / "mlflow.db").exists() and not (dims[1] / "artifacts").exists()
    assert not set(finished(Store(tmp_path)).values()) & set(finished(Store(dims[1], server)).values())


@pytest.mark.long
def test_another_results_folder_uses_the_adapters_and_reports(server, dims, words, qrun, tmp_path, monkeypatch):
    """From the address alone: the first folder is away, and the environment says where the store is."""
    before = finished(Store(dims[1], server))
    shutil.move(dims[1] / "runs", tmp_path / "away")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    code, out, err = qrun("sweep", "noise", *words, *AXES, *NOISE, f"results={tmp_path / 'second'}", "name=noises")
    shutil.move(tmp_path / "away", dims[1] / "runs")
    assert code == 0, err
    assert f"runs go to {server}" in out and f"{server}/#/experiments/" in out and "viewStateShareKey=curves" in out
    store = Store(tmp_path / "second")
    assert before.items() <= finished(store).items() and not store.database.exists()
    trained = dims[0].table[(dims[0].table["kind"] == "train") & (dims[0].table["b"] == 4)]["run_id"].iloc[0]
    assert list(store.folder.glob(f"downloaded/{trained}-*/adapter/adapter_model.safetensors"))
    code, _, err = qrun("report", "--results", tmp_path / "third", "--out", tmp_path / "out")
    assert code == 0, err
    told = sorted(path.parent.parent.name for path in (tmp_path / "out").glob("*/*/page.md"))
    assert told == ["dim", "noise"]
    written = next((tmp_path / "out").glob("dim/*/cells.csv")).read_bytes()
    assert written == (dims[1] / "studies" / "dims" / "cells.csv").read_bytes()


def test_the_best_adapter_is_found_among_the_models(server, dims):
    store = Store(dims[1], server)
    (digest,) = set(dims[0].table["protocol_fingerprint"]) - {""}
    text = {"dataset_name": "text-test", "dataset_digest": digest}  # the noise study measured it on less of it
    order = [{"field_name": "metrics.gain", "ascending": False, **text}]
    best, other = store.client.search_logged_models([store.experiment("study")], order_by=order)
    measured = dims[0].table[dims[0].table["gain"].notna()].sort_values("gain", ascending=False)
    assert [best.params["b"], other.params["b"]] == [f"{b:g}" for b in measured["b"]]
    found = {metric.key: metric.value for metric in best.metrics if metric.dataset_digest == digest}
    assert found["gain"] == measured["gain"].iloc[0] and found["perplexity"] == measured["perplexity"].iloc[0]
    assert store.recorded(best.source_run_id).tags[MODEL] == best.model_id and best.params["method"] == "cayley"
    kept = store.client.list_logged_model_artifacts(best.model_id)
    assert "adapter_model.safetensors" in {entry.path for entry in kept}


def test_train_measure_and_compare_on_a_server(server, words, qrun, tmp_path):
    to = [f"results={tmp_path}", f"tracking.uri={server}"]
    code, out, err = qrun("train", *words, *to, "name=done")
    assert code == 0, err
    assert f"{server}/#/experiments/" in out and "viewStateShareKey=trainings" in out
    measured = [word for word in words if not word.startswith("training.")]
    code, _, err = qrun(
        "eval", "perplexity", *measured, *to, f"adapter.path={tmp_path}/runs/done/adapter", "name=again"
    )
    assert code == 0, err
    code, out, err = qrun("eval", "compare", "done", "again", "--results", tmp_path, "--tracking-uri", server)
    assert code == 0 and "+0.0000" in out, err
    store = Store(tmp_path, server)
    first, again = (store.find(name).data for name in ("done", "again"))
    assert first.metrics["perplexity"] == again.metrics["perplexity"] == first.metrics["adapted/perplexity"]
    assert first.metrics["relative_perplexity"] == pytest.approx(
        first.metrics["adapted/perplexity"] / first.metrics["base/perplexity"]
    )
    found = store.client.search_runs([store.experiment("train")], "metrics.perplexity > 0 AND metrics.gain > -1e9")
    assert [run.info.run_name for run in found] == ["done"]
    assert "None" not in first.params.values() and not any("haar" in name for name in first.metrics)
    code, out, err = qrun("ui", "--results", tmp_path, "--tracking-uri", server)
    assert code == 0 and f"{server} serves them; nothing was started" in out, err


def test_a_server_that_is_away_is_one_line_before_any_work(qrun, words, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
    code, _, err = qrun("train", *words, f"results={tmp_path}", f"tracking.uri={gone}")
    assert code == 2 and f"tracking.uri={gone}: not a store" in err and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()
