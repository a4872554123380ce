"""Both sweeps on a tiny model: cells are reused, failures are named, a killed study goes on."""

import fcntl
import json
import signal
import subprocess
import sys
import time

import pytest

from qrun.tracking.store import Store

STEPS = [
    "training.context=64",
    "training.batch=2",
    "training.steps=4",
    "training.eval_every=4",
    "training.warmup=1",
    "training.lr=0.05",
]
AXES = ["study.dims=[2,4]", "study.seeds=[0,1]", "study.sites=[adapter]", "study.controls=[]", "launcher.workers=1"]


@pytest.fixture(scope="module")
def words(tiny_folder, story_file, tmp_path_factory):
    results = tmp_path_factory.mktemp("sweeps") / "results"
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny"]
    return [
        *model,
        "data=text",
        f"data.path={story_file}",
        "protocol.ctx=64",
        "evaluation.max_tokens=640",
        *STEPS,
        *AXES,
    ], results


def children(store, tag="cell_key"):
    return store.tagged("study", tag, "FINISHED")


def test_the_dim_sweep_is_a_parent_with_cells_and_a_second_start_computes_nothing(qrun, words):
    code, out, err = qrun("sweep", "dim", *words[0], f"results={words[1]}", "name=dims")
    assert code == 0, err
    assert "4 cells: 0 finished before, 4 to compute" in out and "b = 4" in out
    store = Store(words[1])
    parent, cells = store.find("dims"), children(store)
    assert parent.info.status == "FINISHED" and len(cells) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in cells.values()} == {parent.info.run_id}
    first = json.loads(store.artifact_text(parent.info.run_id, "result.json"))
    assert (
        first["values"]["adapter"]["dims"]["4"]["parameters"]
        == 3 * first["values"]["adapter"]["dims"]["2"]["parameters"]
    )
    code, out, _ = qrun("sweep", "dim", *words[0], f"results={words[1]}", "name=dims")
    assert code == 0 and "4 finished before, 0 to compute" in out
    assert store.find("dims").info.run_id == parent.info.run_id
    assert json.loads(store.artifact_text(parent.info.run_id, "result.json")) == first


def test_a_cell_is_the_run_that_train_makes_with_the_same_words(qrun, words, tmp_path):
    typed = [w for w in words[0] if not w.startswith(("study", "launcher"))]
    code, _, err = qrun("train", *typed, "adapter.dim=4", "seed=1", f"results={tmp_path}", "name=alone")
    assert code == 0, err
    alone = Store(tmp_path).find("alone").data.metrics
    qrun("sweep", "dim", *words[0], f"results={words[1]}", "name=dims")
    cell = next(r for r in children(Store(words[1])).values() if r.data.tags["cell"] == "sites=adapter b=4 seed=1")
    assert cell.data.metrics["adapted/perplexity"] == alone["adapted/perplexity"]


NOISE = ["study.rates=[1e-3,1e-1]", "study.signs=[exact]", "noise=gates", "noise.cz=1e-3", "noise.sx=1e-4"]


def test_the_noise_sweep_uses_the_adapters_of_the_dim_sweep(qrun, words):
    qrun("sweep", "dim", *words[0], f"results={words[1]}", "name=dims")
    code, out, err = qrun("sweep", "noise", *words[0], *NOISE, f"results={words[1]}", "name=noises")
    assert code == 0, err
    assert (
        "4 cells: 4 finished before, 0 to compute" in out and "16 cells: 0 finished before, 16 to compute" in out
    )  # the preset is one of the rates
    store = Store(words[1])
    result = json.loads(store.artifact_text(store.find("noises").info.run_id, "result.json"))
    series = result["values"]["adapter-exact-8192-scaled"]
    for dim in ("2", "4"):
        values = series["dims"][dim]
        assert list(values["relative"]) == ["quiet", "0.001", "0.1", "preset", "uniform"]
        assert values["relative"]["quiet"] == pytest.approx(
            1 - values["exact_gain"] / series["base"], abs=5e-3
        )  # shots alone
        assert values["relative"]["preset"] == pytest.approx(values["relative"]["0.001"], abs=2e-3)
    assert 0 < series["dims"]["2"]["total_error"][0] < series["dims"]["4"]["total_error"][0] < 0.1
    noisy = [r for r in children(store).values() if r.data.tags["cell"].endswith("cz=uniform")]
    assert len(noisy) == 4 and all(r.data.metrics["circuit/relative_error"] > 0.3 for r in noisy)
    code, out, _ = qrun("sweep", "noise", *words[0], *NOISE, f"results={words[1]}", "name=noises")
    assert "16 finished before, 0 to compute" in out


def test_a_failed_cell_is_named_and_does_not_stop_the_others(qrun, words, tmp_path, monkeypatch):
    from qrun.errors import RunFailed
    from qrun.training import loop

    step = loop.optimizer_step

    def fail_at_seed_one(model, windows, optimizer, parameters, config, index, seed, teacher):
        if seed == 1 and parameters[0].shape[1] == 6:
            raise RunFailed("this one breaks")
        return step(model, windows, optimizer, parameters, config, index, seed, teacher)

    monkeypatch.setattr(loop, "optimizer_step", fail_at_seed_one)
    code, _, err = qrun("sweep", "dim", *words[0], f"results={tmp_path}", "name=dims")
    assert code == 1 and "1 of 4 cells failed: sites=adapter b=4 seed=1 (this one breaks)" in err
    assert len(children(Store(tmp_path))) == 3 and Store(tmp_path).find("dims").info.status == "FAILED"
    monkeypatch.undo()
    code, out, _ = qrun("sweep", "dim", *words[0], f"results={tmp_path}", "name=dims")
    assert code == 0 and "3 finished before, 1 to compute" in out


def test_a_study_killed_in_the_middle_goes_on_and_ends_with_the_same_table(qrun, words, tmp_path):
    qrun("sweep", "dim", *words[0], f"results={words[1]}", "name=dims")
    process = subprocess.Popen(
        [sys.executable, "-m", "qrun", "sweep", "dim", *words[0], f"results={tmp_path}", "name=dims"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("[2/4]"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    before = {key: run.info.run_id for key, run in children(store).items()}
    assert len(before) >= 2
    code, out, err = qrun("sweep", "dim", *words[0], f"results={tmp_path}", "name=dims")
    assert code == 0 and f"{len(before)} finished before" in out, err
    after = {key: run.info.run_id for key, run in children(store).items()}
    assert len(after) == 4 and all(after[key] == run for key, run in before.items())
    results = [
        json.loads(Store(folder).artifact_text(Store(folder).find("dims").info.run_id, "result.json"))
        for folder in (words[1], tmp_path)
    ]
    assert results[0]["tables"] == results[1]["tables"] and results[0]["values"] == results[1]["values"]
    assert not store.tagged("study", "cell_key", "RUNNING")


def test_two_studies_in_one_store_are_refused(qrun, words, tmp_path):
    with (tmp_path / "study.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(0)
        code, _, err = qrun("sweep", "dim", *words[0], f"results={tmp_path}")
    assert code == 2 and "another study is running" in err


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("dim", ["study.dims=[4,5]"], "does not divide the input width 32"),
        ("dim", ["study.dims=[]"], "give a list"),
        ("dim", ["study.seeds=[0,0]"], "different values"),
        ("noise", ["study.rates=[1e-2,1e-3]"], "rising order"),
        ("noise", ["study.rates=[0.9]"], "at most 0.75"),
        ("noise", ["study.rates=[1e-3]", "noise=none"], "its cz must be above 0"),
        ("dim", ["study.dims=[4,5]", "study.indivisible=stop"], "study.indivisible=skip leaves such dimensions out"),
        ("dim", ["model=local,nano"], "not compared in one study"),
        ("dim", ["study.controls=[cayley]"], "use oft"),
        ("dim", ["study.controls=[oft]"], "qrun sweep controls"),
        ("dim", ["launcher=ray", "launcher.workers=0"], "give 1 or more"),
        ("noise", ["study.rates=[1e-3]", "device=exact"], "device=noisy"),
        ("noise", ["study.rates=[1e-3]", "study.dims=[6]"], "powers of two"),
    ],
)
def test_bad_axes_end_in_one_line(qrun, words, tmp_path, verb, more, said):
    code, _, err = qrun("sweep", verb, *words[0], *more, f"results={tmp_path / 'r'}")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()
