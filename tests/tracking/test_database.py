import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from mlflow.exceptions import MlflowException

from qrun.errors import InputError, RunFailed
from qrun.tracking import database
from qrun.tracking.provenance import ended, process
from qrun.tracking.repair import repair
from qrun.tracking.store import PROCESS, Store


@pytest.fixture
def store(tmp_path):
    """A store with two finished runs and a failed one."""
    store = Store(tmp_path / "results")
    for seed, name in enumerate(("a", "b")):
        with store.run("train", name, {"seed": seed}, {"cell_key": f"k{seed}"}) as run:
            run.series([(step, {"loss": 1.0 / (step + 1)}) for step in range(3)])
            run.metrics({"gain": float("nan")})
            run.text(f"of {name}", "result.txt")
    with pytest.raises(ZeroDivisionError), store.run("train", "c", {}, {"cell_key": "k1"}):
        raise ZeroDivisionError
    return store


def plain(runs):
    return {
        verb: [(r.run_id, r.name, r.status, r.started, r.seconds, str(r.metrics), r.params, r.tags) for r in found]
        for verb, found in runs.items()
    }


def again(folder):
    """A store as another process finds it: MLflow caches connections by address."""
    found = Store(folder)
    if not found.empty:
        found.client._tracking_client.store.engine.dispose()
    return found


def test_a_store_reads_itself_as_mlflows_client_does(store):
    direct, newest = plain(store.runs()), store.tagged("train", "cell_key")
    found = store.tagged("train", "cell_key", "FINISHED")
    assert {key: run.name for key, run in newest.items()} == {"k0": "a", "k1": "c"}
    assert {key: run.name for key, run in found.items()} == {"k0": "a", "k1": "b"}
    store.own = False
    assert plain(store.runs()) == direct
    for status, expected in ((None, newest), ("FINISHED", found)):
        slow = store.tagged("train", "cell_key", status)
        assert {key: str(run) for key, run in slow.items()} == {key: str(run) for key, run in expected.items()}


def test_of_many_runs_a_server_is_asked_for_those_wanted_alone(store, monkeypatch):
    for name in ("d", "e"):
        with store.run("train", name, {}, {"cell_key": "k2"}):
            pass
    store.own, asked, search = False, [], store.client.search_runs
    monkeypatch.setattr("qrun.tracking.store.PAGE", 2)
    monkeypatch.setattr(store.client, "search_runs", lambda *a, **k: asked.append(a[1]) or search(*a, **k))
    found = store.tagged("train", "cell_key", "FINISHED", ["k0"])  # newest first: e, d, b, a
    assert found["k0"].name == "a" and found["k2"].name == "e"
    assert len(asked) == 2 and asked[-1] == "tags.`cell_key` = 'k0' AND attributes.status = 'FINISHED'"
    assert {run.name for run in store.tagged("train", "cell_key", "FINISHED").values()} == {"a", "b", "e"}


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_store_reads_and_writes_where_it_lies(store, tmp_path, how):
    before = sorted((store.folder / "artifacts").rglob("*"))
    how(store.folder, tmp_path / "other")
    moved = again(tmp_path / "other")
    assert moved.tagged("train", "cell_key")["k0"].text("result.txt") == "of a"
    with moved.run("train", "d", {}, {}) as run:
        run.text("new", "new.txt")
    assert moved.recorded(run.run_id).file("new.txt").is_relative_to(tmp_path / "other")
    assert sorted((store.folder / "artifacts").rglob("*")) == (before if how is shutil.copytree else [])


def running(folder, name):
    """A process that has a run open; it says when."""
    code = (
        "import sys, time\nfrom qrun.tracking.store import Store\n"
        "with Store(sys.argv[1]).run('train', sys.argv[2], {}, {}): print('open', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder), name], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "open\n"
    return child


@pytest.mark.slow
def test_the_next_start_closes_the_run_of_a_killed_process_and_leaves_those_of_others(store):
    children = [running(store.folder, name) for name in ("killed", "alive")]
    children[0].kill()
    children[0].wait()
    store.client.create_run(store.experiment("train"), run_name="elsewhere", tags={PROCESS: "another-host:1:1"})
    try:
        store.check_writable()
        state = {run.name: run.status for run in store.runs()["train"]}
    finally:
        children[1].send_signal(signal.SIGKILL)
        children[1].wait()
    assert state["killed"] == "KILLED" and state["alive"] == state["elsewhere"] == "RUNNING"
    assert next(repair(str(store.folder))).endswith("1 runs of processes that are gone were closed (KILLED)")
    assert {run.name for run in store.running()} == {"elsewhere"}


def test_a_process_is_known_by_its_start_and_not_by_its_number():
    host, pid, start = process().rsplit(":", 2)
    assert not ended(process()) and not ended(f"other:{pid}:{start}") and not ended("")
    assert ended(f"{host}:{pid}:{int(start) - 9}") and ended(f"{host}:999999999:{start}")


def test_a_killed_process_leaves_a_record_once_its_run_is_closed(store):
    host = process().rsplit(":", 2)[0]
    tags = {PROCESS: f"{host}:999999999:1", "cell_key": "k9"}
    store.client.create_run(store.experiment("train"), run_name="killed", tags=tags)
    store.check_writable()
    before = plain(store.runs())
    store.client._tracking_client.store.engine.dispose()
    store.database.unlink()
    assert "train: 4 runs are back" in list(repair(str(store.folder)))
    assert plain(again(store.folder).runs()) == before
    assert {run.name: run.status for run in again(store.folder).runs()["train"]}["killed"] == "KILLED"


@pytest.mark.parametrize("damage", ["lost", "garbage", "torn"])
def test_a_lost_or_broken_store_is_made_anew_from_its_runs(store, damage):
    before = plain(store.runs())
    store.client._tracking_client.store.engine.dispose()
    if damage == "lost":
        store.database.unlink()
    elif damage == "garbage":
        store.database.write_bytes(b"x" * 5000)
    else:
        os.truncate(store.database, store.database.stat().st_size // 2)
    record = next(store.folder.glob("artifacts/train/*/record.json"))
    (record.parent.parent / "half").mkdir()
    (record.parent.parent / "half" / "record.json").write_text(record.read_text()[:100])
    if damage != "lost":
        with pytest.raises(InputError, match="--repair"):
            list(Store(store.folder).runs())
    told = list(repair(str(store.folder)))
    assert "train: 3 runs are back" in told and any(line.endswith("left out") for line in told)
    assert (store.folder / "mlflow.db.broken").exists() == (damage != "lost")
    found = again(store.folder)
    assert plain(found.runs()) == before and found.tagged("train", "cell_key")["k0"].text("result.txt") == "of a"
    history = found.client.get_metric_history(before["train"][-1][0], "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert not any("are back" in line for line in repair(str(store.folder)))


def test_a_record_comes_back_whole_or_not_at_all_also_beside_new_runs(store):
    before = plain(store.runs())["train"]
    store.client._tracking_client.store.engine.dispose()
    store.database.unlink()
    kept = {path.parent.name: path for path in store.folder.glob("artifacts/train/*/record.json")}
    torn, odd = kept[before[0][0]], kept[before[1][0]]
    rows = json.loads(torn.read_text())
    torn.write_text(json.dumps({table: values for table, values in rows.items() if table != "tags"}))
    rows = json.loads(odd.read_text())
    rows["params"][0]["value"] = ["a list"]
    odd.write_text(json.dumps(rows))
    with again(store.folder).run("train", "new", {}, {}):  # before anybody repairs
        pass
    told = list(repair(str(store.folder)))
    assert [line for line in told if line.endswith("back")] == ["train: 1 runs are back"]
    assert sum(line.endswith("left out") for line in told) == 2
    assert {run.name for run in Store(store.folder).runs()["train"]} == {"new", before[2][1]}


def test_a_store_that_is_locked_is_told_soon(store, monkeypatch):
    monkeypatch.setattr(database, "WAIT", 0)
    with closing(sqlite3.connect(store.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"mlflow.db: locked by another process"):
            Store(store.folder).check_writable()
        other.execute("ROLLBACK")
    Store(store.folder).check_writable()


def test_a_link_to_nowhere_is_told_at_once(tmp_path):
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "gone" / "mlflow.db")
    with pytest.raises(InputError, match=r"a link to .*gone"):
        Store(tmp_path).check_writable()


def test_a_store_of_another_mlflow_is_named(store, tmp_path):
    shutil.copytree(store.folder, tmp_path / "other")
    with closing(sqlite3.connect(tmp_path / "other" / "mlflow.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'fromthefuture'")
    with pytest.raises(InputError, match=r"mlflow.db: not a store this MLflow can open"):
        Store(tmp_path / "other").check_writable()


def test_any_damaged_page_is_read_past_or_refused(store, tmp_path):
    with store.run("train", "a", {}, {"cell_key": "k"}):
        pass
    whole, file, told = store.database.read_bytes(), tmp_path / "mlflow.db", []
    experiment, page = store.experiment("train"), 4096
    for at in range(page, len(whole), page):
        file.write_bytes(whole[:at] + b"\xa5" * page + whole[at + page :])
        try:
            list(database.read(file, experiment, "cell_key", "FINISHED"))
            database.known(file)
        except InputError as error:
            told.append(str(error))
    assert len(told) > 3 and all("mlflow.db: not a store this MLflow can open (" in line for line in told)


def test_what_the_disk_refuses_is_one_line(store, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x")

    with pytest.raises(RunFailed, match=r"did not take what run .* No space left"), store.run("train", "d", {}, {}):
        full()
    monkeypatch.setattr(store.client, "create_run", full)
    with pytest.raises(RunFailed, match="did not take run e"), store.run("train", "e", {}, {}):
        pass
    assert {run.name: run.status for run in store.runs()["train"]}["d"] == "FAILED"


def test_what_failed_is_told_also_where_the_disk_does_not_take_that_it_did(store, monkeypatch):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    def fail():
        monkeypatch.setattr(store.client, "log_batch", full)
        raise RunFailed("the cell s0 failed")

    with pytest.raises(RunFailed, match=r"^the cell s0 failed$"), store.run("train", "d", {}, {}):
        fail()
    monkeypatch.setattr(store.client, "log_batch", lambda *_, **__: 1 / 0)  # a bug stays one
    with pytest.raises(ZeroDivisionError), store.run("train", "e", {}, {}):
        pass


def test_a_full_disk_is_one_line_before_there_is_an_experiment(store, monkeypatch):
    def full(*_, **__):
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError as error:
            raise MlflowException("of the store") from error

    monkeypatch.setattr(store.client, "create_experiment", full)
    with pytest.raises(RunFailed, match="did not take the experiment qrun/new"):
        store.experiment("new")


def test_an_interruption_stays_one_where_the_store_takes_nothing_more(store, monkeypatch):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "keep", full)
    with pytest.raises(KeyboardInterrupt), store.run("train", "d", {}, {}):
        raise KeyboardInterrupt


def test_the_error_of_a_failed_run_is_recorded_without_secrets(store, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "not-for-anybody")
    with pytest.raises(ValueError, match="refused"), store.run("train", "d", {}, {}) as run:
        raise ValueError("refused not-for-anybody")
    assert store.recorded(run.run_id).tags["error"] == "ValueError: refused ***"


def test_a_record_has_the_rows_of_its_run(store):
    run = store.tagged("train", "cell_key", "FINISHED")["k0"]
    rows = json.loads((store.folder / "artifacts" / "train" / run.run_id / "record.json").read_text())
    assert rows["runs"][0]["status"] == "FINISHED" and len(rows["metrics"]) == 4 and rows["params"][0]["value"] == "0"
