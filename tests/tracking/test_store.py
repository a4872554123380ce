import base64
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import event
from tests_support import PATIENCE

from qrun.errors import InputError, Interrupted, RunFailed
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.store import Store
from qrun.tracking.views import View
from qrun.training.interrupt import Interrupt


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store") / "results")


def status(store, run):
    return store.client.get_run(run.run_id).info.status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "FINISHED"),
        (RunFailed("no"), "FAILED"),
        (ValueError("bug"), "FAILED"),
        (Interrupted(15), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_status_is_right_on_every_exit(store, error, expected):
    try:
        with store.run("train", "name", {"a": 1}, {"t": 2}) as run:
            assert status(store, run) == "RUNNING"
            if error:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise
    assert status(store, run) == expected
    assert ("error" in store.client.get_run(run.run_id).data.tags) == (expected == "FAILED")


def interrupted_run(store, name, resume_id=None):
    """Statuses of the runs of that name after a run that something sends a SIGTERM into."""
    with pytest.raises(Interrupted), Interrupt().installed(), store.run("train", name, {"a": 1}, {}, resume_id) as run:
        run.metrics({"loss": 1.0})
    return [r.info.status for r in store.client.search_runs([store.experiment("train")], f"run_name = '{name}'")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("INSERT INTO runs", []),
        ("INSERT INTO params", ["KILLED"]),
        ("INSERT INTO metrics", ["KILLED"]),
        ("UPDATE runs", ["KILLED"]),
    ],
)
def test_a_signal_inside_a_transaction_of_mlflow_is_an_interruption(store, statement, left):
    waiting = [statement]

    def strike(_connection, _cursor, sql, *_):
        if waiting and sql.startswith(waiting[0]):
            waiting.clear()
            signal.raise_signal(signal.SIGTERM)

    engine = store.client._tracking_client.store.engine
    event.listen(engine, "before_cursor_execute", strike)
    try:
        assert interrupted_run(store, f"struck at {statement}") == left
    finally:
        event.remove(engine, "before_cursor_execute", strike)


@pytest.mark.parametrize("method", ["create_run", "update_run_info", "log_batch"])
def test_a_signal_after_a_transaction_and_before_its_answer_leaves_no_running_run(store, monkeypatch, method):
    with pytest.raises(Interrupted), store.run("train", f"late in {method}", {}, {}) as run:
        raise Interrupted(2)
    whole = getattr(SqlAlchemyStore, method)

    def strike(*words, **more):
        monkeypatch.undo()
        whole(*words, **more)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(SqlAlchemyStore, method, strike)
    resume_id = run.run_id if method == "update_run_info" else None
    assert set(interrupted_run(store, f"late in {method}", resume_id)) == {"KILLED"}


def test_a_run_whose_block_never_began_is_killed(store):
    begun = store.run("train", "never entered", {}, {})
    run = begun.__enter__()
    del begun  # as where a signal comes between the manager and the block
    assert status(store, run) == "KILLED"


def test_a_killed_run_goes_on_under_its_id(store):
    with pytest.raises(Interrupted), store.run("train", "again", {"a": 1}, {}) as run:
        raise Interrupted(2)
    with store.run("train", "again", {"a": 1}, {}, resume_id=run.run_id) as resumed:
        assert resumed.run_id == run.run_id and status(store, run) == "RUNNING"
    assert status(store, run) == "FINISHED"


def test_everything_logged_comes_back(store, tmp_path):
    with store.run("train", "logged", {"adapter.dim": 4}, {"seed": 0}) as run:
        run.series([(step, {"loss": 1.0 / (step + 1)}) for step in range(2000)])
        run.dataset("pydoc-train", "0123456789abcdef", "CPython", "train")
        run.json({"x": [1]}, "result.json")
    data = store.client.get_run(run.run_id)
    assert data.data.params == {"adapter.dim": "4"} and data.data.tags["seed"] == "0"
    assert len(store.client.get_metric_history(run.run_id, "loss")) == 2000
    assert data.inputs.dataset_inputs[0].dataset.digest == "0123456789abcdef"
    assert store.artifact_text(run.run_id, "result.json") == '{\n "x": [\n  1\n ]\n}\n'
    assert store.find("logged").info.run_id == store.find(run.run_id).info.run_id == run.run_id
    with pytest.raises(InputError, match="no run of that name"):
        store.find("nobody")
    with pytest.raises(RunFailed, match=r"no artifact other.json"):
        store.artifact_text(run.run_id, "other.json")


def test_a_parameter_too_long_for_mlflow_is_refused_not_cut(store):
    with (
        pytest.raises(InputError, match=r"data.path: longer than the 6000"),
        store.run("train", "long", {"data.path": "x" * 6001}, {}),
    ):
        pass


def test_the_store_lies_at_an_absolute_address_whatever_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("results")
    assert store.uri == f"sqlite:///{tmp_path}/results/mlflow.db?timeout=30" and not (tmp_path / "results").exists()


def test_a_run_id_in_the_environment_changes_nothing(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with store.run("train", "own", {}, {}) as run:
        assert run.run_id != "0" * 32


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not writable"):
        Store(tmp_path / "file" / "results").check_writable()
    if os.geteuid():  # root writes anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="not writable"):
            Store(tmp_path / "locked").check_writable()


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is not a database, it is a text of some length")
    with pytest.raises(InputError, match=r"mlflow.db: not a store"):
        Store(tmp_path).check_writable()


def test_the_environment_record_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    record = environment()
    assert record["packages"]["torch"].startswith("2.") and "hf_secret" not in str(record)
    assert set(git_state()) == {"git_sha", "git_dirty"}


@pytest.mark.slow
def test_a_store_of_another_version_is_named_and_left_alone(tmp_path):
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").create_experiment("qrun/train")
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(InputError, match=r"a store of another version of qrun \(format 1, this one writes 3\)"):
        Store(tmp_path).check_writable()
    assert (tmp_path / "mlflow.db").read_bytes() == before


# Forked children share one import of MLflow. A child is struck at its n-th statement, or before or after the rename.
STARTS = """
import os, signal, sys
import mlflow.store.tracking.sqlalchemy_store
from sqlalchemy import event
from sqlalchemy.engine import Engine
from qrun.tracking.store import Store
from qrun.training.interrupt import Interrupt

folder, replace = sys.argv[1], os.replace

def start(name, moment=None, signum=None):
    count = 0
    def strike(*_):
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signum)
    def renamed(*paths):
        if moment == "before":
            os.kill(os.getpid(), signum)
        replace(*paths)
        os.kill(os.getpid(), signum)
    if isinstance(moment, int):
        event.listen(Engine, "before_cursor_execute", strike)
    elif moment:
        os.replace = renamed
    with Interrupt().installed(), Store(folder).run("train", name, {}, {}):
        pass

def fork(*words):
    child = os.fork()
    if child:
        return child
    try:
        start(*words)
        os._exit(0)
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(1)

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def starts(folder, script):
    done = subprocess.run(
        [sys.executable, "-c", STARTS + script, str(folder)], capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_a_start_works_after_starts_that_were_killed_while_they_created_the_store(making_stores, tmp_path):
    said = starts(
        tmp_path,
        """
kill, term = signal.SIGKILL, signal.SIGTERM
strikes = [(1, kill), (120, kill), (120, term), (250, kill), (250, term), ("before", kill), ("after", kill)]
for moment, signum in strikes:
    print(moment, ended(fork("struck", moment, signum)), os.path.exists(folder + "/mlflow.db"))
print("whole", ended(fork("whole")))
""",
    )
    killed = ["1 -9 False", "120 -9 False", "250 -9 False", "before -9 False", "after -9 True"]
    assert [line for line in said if " -9 " in line] == killed and said[-1] == "whole 0"
    assert [line for line in said if "Interrupted" in line or " 1 " in line] == [
        "Interrupted interrupted", "120 1 False", "Interrupted interrupted", "250 1 False",
    ]  # fmt: skip
    assert Store(tmp_path).find("whole").info.status == "FINISHED"


@pytest.mark.slow
def test_what_a_killed_creation_left_is_removed_by_the_next_and_nothing_else(making_stores, tmp_path):
    (tmp_path / ".mlflow-new-dead").mkdir()
    (tmp_path / ".mlflow-new-dead" / "mlflow.db").write_text("half")
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.db-journal").write_text("of the empty one")
    (tmp_path / "mlflow.db-backup").write_text("mine")
    assert Store(tmp_path).client.search_experiments()[0].name == "Default"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mlflow.lock", "mlflow.db", "mlflow.db-backup"]


@pytest.mark.slow
def test_two_first_starts_at_once_share_the_store(making_stores, tmp_path):
    script = "children = [fork('a'), fork('b'), fork('c')]\nprint([ended(child) for child in children])"
    assert starts(tmp_path, script) == ["[0, 0, 0]"]
    assert {Store(tmp_path).find(name).info.status for name in "abc"} == {"FINISHED"}


def test_a_foreign_database_is_named_and_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE theirs (x)")
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(InputError, match=r"mlflow.db: not a store .* move it away, choose another folder"):
        Store(tmp_path).check_writable()
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_folder_in_the_place_of_the_database_is_told_at_once(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(InputError, match=r"mlflow.db: not a store"):
        Store(tmp_path).check_writable()


@pytest.mark.slow
def test_making_a_store_says_nothing(tmp_path):
    """MLflow would tell of its migrations; it reads its level of logging when it is first imported."""
    code = "import sys; from qrun.tracking.store import Store\nwith Store(sys.argv[1]).run('train', 'n', {}, {}): pass"
    for first in ("", "import mlflow\n"):
        command = [sys.executable, "-c", first + code, str(tmp_path / f"made{len(first)}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


def test_a_store_that_several_results_folders_share_knows_whose_run_is_whose(store, tmp_path):
    """A database given by its address: artifacts are read where they lie, and a run tells its folder."""
    first, second = (Store(tmp_path / name, store.uri) for name in ("first", "second"))
    assert store.own and not first.own and not first.empty and first.where == store.uri
    with first.run("train", "shared", {}, {"key": "of shared"}) as run:
        run.text("seen", "note.txt")
        (found,) = (r for key, r in second.tagged("train", "key", "RUNNING").items() if key == "of shared")
        assert first.mine(found) and store.mine(found) and not second.mine(found)
    assert second.recorded(run.run_id).text("note.txt") == "seen" and second.find("shared").info.run_id == run.run_id
    assert second.recorded(run.run_id).find("other.txt") is None and not second.folder.exists()


def test_the_environment_names_the_store_and_a_word_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000/")
    store = Store(tmp_path)
    assert store.server and store.where == "http://user:***@host:5000" and store.address() == "http://host:5000"
    assert Store(tmp_path, "http://other").uri == "http://other"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store(tmp_path).own


def test_a_link_names_a_port_only_while_something_listens_there(store):
    path = f"/#/experiments/{store.experiment('train')}/runs?workflowType=machine_learning&viewStateShareKey=v"
    assert store.link("train", view="v") == f"`qrun ui --results {store.folder}`, there {path}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (store.folder / "ui.port").write_text(str(port))
        assert store.link("train", view="v") == f"http://127.0.0.1:{port}{path}"
    assert "127.0.0.1" not in store.link("train", view="v")  # left by one that was killed
    (store.folder / "ui.port").unlink()


def test_a_view_is_a_tag_that_the_page_can_unpack_and_is_written_once(store, monkeypatch):
    view = View("all", ("metrics.gain", "params.adapter.dim"), ("gain",), (("params.b", "metrics.gain"),))
    store.view("train", "all", view)
    monkeypatch.setattr(type(store.client), "set_experiment_tag", None)
    store.view("train", "all", view)
    kept = json.loads(store.client.get_experiment(store.experiment("train")).tags["mlflow.sharedViewState.all"])
    assert kept["name"] == "all" and type(kept["createdAt"]) is int
    state = json.loads(zlib.decompress(base64.b64decode(kept["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"] == ["metrics.`gain`", "params.`adapter.dim`"]
    line, scatter = state["compareRunCharts"]
    assert line["metricKey"] == "gain" and scatter["xaxis"] == {"key": "b", "type": "PARAM"}
    assert {card["metricSectionId"] for card in (line, scatter)} == {state["compareRunSections"][0]["uuid"]}


def test_machine_metrics_are_kept_of_a_run_and_not_of_a_cell_and_no_thread_stays(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]

    with store.run("train", "watched", {}, {}) as run:
        end = time.monotonic() + PATIENCE
        while "system/cpu_utilization_percentage" not in store.client.get_run(run.run_id).data.metrics:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert len(threads()) == 1
        with store.run("study", "cell", {}, {"mlflow.parentRunId": run.run_id}):
            assert len(threads()) == 1
    assert not threads()


@pytest.mark.parametrize(
    ("hub", "source", "kind"),
    [({"path": "Salesforce/wikitext", "config_name": "raw", "revision": "b08"}, "words", "hugging_face"),
     (None, __file__, "local"), (None, "documentation of CPython", "code")],
)  # fmt: skip
def test_a_dataset_has_its_real_source(store, hub, source, kind):
    with store.run("train", kind, {}, {}) as run:
        run.dataset("text-test", f"0123{kind}", source, "test", hub)
    (entry,) = store.client.get_run(run.run_id).inputs.dataset_inputs
    found = json.loads(entry.dataset.source)
    assert entry.dataset.source_type == kind
    expected = {"hugging_face": ("revision", "b08"), "local": ("uri", __file__), "code": ("tags", {"source": source})}
    key, value = expected[kind]
    assert found[key] == value
