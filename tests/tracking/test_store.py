import os

import pytest

from qrun.errors import InputError, Interrupted, RunFailed
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store") / "results")


def status(store, run):
    return store.client.get_run(run.run_id).info.status


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
    except (Exception, KeyboardInterrupt) as raised:
        if raised is not error:
            raise
    assert status(store, run) == expected
    assert ("error" in store.client.get_run(run.run_id).data.tags) == (expected == "FAILED")


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
    assert store.uri == f"sqlite:///{tmp_path}/results/mlflow.db?timeout=60" and not (tmp_path / "results").exists()


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


def test_a_store_of_another_version_is_named_and_left_alone(tmp_path):
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").create_experiment("qrun/train")
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(InputError, match=r"a store of another version of qrun \(format 1, this one writes 2\)"):
        Store(tmp_path).check_writable()
    assert (tmp_path / "mlflow.db").read_bytes() == before
