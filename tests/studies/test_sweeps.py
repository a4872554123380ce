"""Studies on a tiny model: cells are shared and never computed twice, failures are named, a killed study goes on."""

import fcntl
import json
import shutil
import signal

import pandas as pd
import pytest
from tests_support import columns, finished, rope_base, saved, study, swapped_entries, until

from qrun.evaluation.results import Results, read
from qrun.tracking.store import Store

pytestmark = pytest.mark.slow
STEPS = [
    "protocol.ctx=64", "training.context=64", "training.batch=2", "training.steps=4", "training.eval_every=4",
    "training.warmup=1", "training.lr=0.05", "study.trials=1",
]  # fmt: skip
AXES = ["study.dims=[2,4]", "study.seeds=[0,1]", "study.sites=[adapter]", "study.controls=[]", "launcher.workers=1",
        "data@home=null", "protocol@second=null"]  # fmt: skip
NOISE = [
    "study.rates=[1e-3,1e-1]", "study.readout_rates=[1e-2]", "study.signs=[exact]", "noise=gates", "noise.cz=1e-3",
    "noise.sx=1e-4", "noise.read_1_given_0=1e-2", "noise.read_0_given_1=2e-2", "evaluation.max_tokens=320",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tiny_folder, story_file):
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny"]
    return [*model, "data=text", f"data.path={story_file}", *STEPS, *AXES]


@pytest.fixture(scope="module")
def dims(words, tmp_path_factory):
    """A finished dim study: its results, and its store."""
    store = Store(tmp_path_factory.mktemp("sweeps") / "results")
    return study("dim", words, results=store.folder, name="dims"), store


def rows(results, kind, **axes):
    table = results.table[results.table["kind"] == kind]
    for axis, value in axes.items():
        table = table[table[axis] == value]
    return table


def test_the_dim_study_is_a_parent_with_cells_and_leaves_its_table(dims):
    results, store = dims
    parent, cells = store.find("dims"), store.tagged("study", "cell_key", "FINISHED")
    assert parent.info.status == "FINISHED" and len(cells) == len(results.table) == 9
    assert {run.tags["mlflow.parentRunId"] for run in cells.values()} == {parent.info.run_id}
    assert {key: run.run_id for key, run in cells.items()} == dict(results.table[["key", "run_id"]].to_numpy())
    written = saved(store.folder, "dims")
    pd.testing.assert_frame_equal(written.table, results.table, check_dtype=False, check_exact=True)
    assert written.units == results.units and len(results.units) == 5
    kept = store.recorded(parent.info.run_id).file("results")
    for name in ("cells.csv", "units.json", "study.json"):
        assert (kept / name).read_bytes() == (store.folder / "studies" / "dims" / name).read_bytes()
    two, four = (rows(results, "train", b=b)["parameters"] for b in (2, 4))
    assert set(four) == {3 * two.iloc[0]}


def test_a_study_is_read_in_mlflow_without_a_click(dims):
    """Table, page, figure and verdicts on the parent; a run per curve in an experiment of the study's own; every cell
    says which studies it is in."""
    results, store = dims
    parent = store.recorded(store.find("dims").info.run_id)
    shown = json.loads(parent.text("cells.json"))
    assert len(shown["data"]) == len(results.table) and {"perplexity", "gain", "run_id"} < set(shown["columns"])
    assert "# dim, " in parent.text("page.md") and parent.file("figures").is_dir()
    assert parent.tags["mlflow.note.content"].startswith("**")
    assert all(
        run.tags["in_dim"] == parent.tags["study_key"] for run in store.tagged("study", "cell_key", "FINISHED").values()
    )
    (curve,) = store.tagged("dim", "study_key").values()
    history = store.client.get_metric_history(curve.run_id, "gain")
    gain = rows(results, "measure").groupby("b")["gain"].mean()
    assert {point.step: point.value for point in history} == pytest.approx(gain[[2, 4]].to_dict())
    assert curve.tags["mlflow.runColor"].startswith("#") and curve.status == "FINISHED"


def test_the_curves_of_its_trainings_are_drawn_and_kept_in_a_report(dims, tmp_path):
    from qrun import studies
    from qrun.report.report import report

    results, store = dims
    assert store.recorded(store.find("dims").info.run_id).find("figures/convergence.png").is_file()
    (first,) = report(str(store.folder), str(tmp_path / "out"), None, studies)
    kept = read(first).units
    for key, run in rows(results, "train")[["key", "run_id"]].to_numpy():
        assert dict(zip(kept[key]["step"], kept[key]["nats"], strict=True)) == store.history(run, "validation/nats")
        assert kept[key]["step"] == [0, 4]
    (again,) = report("unused", str(tmp_path / "again"), str(tmp_path / "out"), studies)
    assert (again / "convergence.svg").read_bytes() == (first / "convergence.svg").read_bytes()
    assert "](convergence.png)" in (again / "page.md").read_text()


def test_hex_digits_that_look_like_numbers_stay_words(tmp_path):
    table = pd.DataFrame(
        {"key": ["0012345678901234"], "git_dirty": ["true"], "config_hash": ["12e45678"], "gain": [0.1]}
    )
    Results(table, {}).write(tmp_path)
    pd.testing.assert_frame_equal(read(tmp_path).table, table)
    before = (tmp_path / "cells.csv").read_bytes()
    read(tmp_path).write(tmp_path)
    assert (tmp_path / "cells.csv").read_bytes() == before


def test_the_trained_blocks_stand_beside_their_axes(dims):
    from qrun.studies import module

    assert set(rows(dims[0], "train")["sites"]) == {"adapter"}  # not the number of sites, a metric of that name
    blocks = module("dim").numbers(dims[0])["blocks"]
    assert blocks[["sites", "b"]].to_numpy().tolist() == [["adapter", 2], ["adapter", 4]]
    assert (blocks["rotation_degrees"] > 0).all()


def test_gains_are_differences_to_the_frozen_model_with_intervals_over_documents(dims):
    results, _ = dims
    base, adapted = rows(results, "measure", method="none"), rows(results, "measure", method="cayley")
    gain = base["perplexity"].iloc[0] - adapted["perplexity"]
    assert adapted["gain"].to_numpy() == pytest.approx(gain.to_numpy(), rel=1e-9)
    assert (base["effective_documents"] > 20).all() and (base["documents"] > 20).all()
    assert (adapted["gain_low"] < adapted["gain"]).all() and (adapted["gain"] < adapted["gain_high"]).all()


def test_a_finished_study_shown_again_computes_nothing_and_stays_finished(dims, words, monkeypatch):
    from qrun.cells import pool
    from qrun.cells import study as engine
    from qrun.errors import Interrupted

    results, store = dims
    parent, runs = store.recorded(store.find("dims").info.run_id), finished(store)
    monkeypatch.setattr(pool, "open_pool", None)
    again = study("dim", words, results=store.folder, name="dims")
    pd.testing.assert_frame_equal(again.table, results.table, check_exact=True)
    monkeypatch.setattr(engine, "show", lambda *_: (_ for _ in ()).throw(Interrupted(15)))
    with pytest.raises(Interrupted):
        study("dim", words, results=store.folder, name="dims")
    assert store.recorded(parent.run_id) == parent and finished(store) == runs
    assert len(store.tagged("study", "study_key")) == 1 and not store.tagged("study", "cell_key", "RUNNING")


def test_a_cell_is_the_run_that_train_makes_with_the_same_words(qrun, dims, words, tmp_path):
    results, _ = dims
    typed = [w for w in words if not w.startswith(("study", "launcher", "data@", "protocol@"))]
    typed = ["training=study", "protocol=study", *typed, "evaluation.max_tokens=28672", "training.threads=1"]
    code, _, err = qrun("train", *typed, "adapter.dim=4", "seed=1", f"results={tmp_path}", "name=alone")
    assert code == 0, err
    alone = Store(tmp_path).find("alone").data.metrics
    (cell,) = rows(results, "measure", b=4, seed=1).to_dict("records")
    assert (cell["perplexity"], cell["gain"]) == (alone["adapted/perplexity"], alone["gain"])
    assert (tmp_path / "runs" / "alone" / "adapter" / "adapter_model.safetensors").read_bytes() == (
        dims[1].folder / "runs" / rows(results, "train", b=4, seed=1)["run"].iloc[0] / "adapter"
        / "adapter_model.safetensors"
    ).read_bytes()  # fmt: skip


@pytest.fixture(scope="module")
def noises(dims, words):
    return study("noise", [*words, *NOISE], results=dims[1].folder, name="noises")


def test_the_noise_study_uses_the_adapters_of_the_dim_study(dims, noises):
    shared = dict(rows(dims[0], "train")[["key", "run_id"]].to_numpy())
    assert dict(rows(noises, "train")[["key", "run_id"]].to_numpy()) == shared
    assert not set(rows(noises, "measure")["key"]) & set(rows(dims[0], "measure")["key"])  # other tokens are measured


def test_the_noise_study_tells_shots_readout_and_gates_apart(noises):
    from qrun.studies import module

    table = rows(noises, "measure")
    four = table[table["b"] == 4]
    assert set(table[table["b"] == 2]["axis"]) == {
        "exact", "quiet", "preset", "uniform", "only readout", "only one_qubit", "readout"
    }  # fmt: skip
    assert set(four["axis"]) >= {"gates", "only two_qubit"}
    preset, same = four[four["axis"] == "preset"], four[(four["axis"] == "gates") & (four["rate"] == 1e-3)]
    assert set(preset["run_id"]) == set(same["run_id"])  # a rate that is the preset's is one cell
    exact = four[four["axis"] == "exact"].set_index("seed")["perplexity"]
    noisy = four[four["axis"] != "exact"]
    assert noisy["penalty"].to_numpy() == pytest.approx((noisy["perplexity"] - noisy["seed"].map(exact)).to_numpy())
    assert (table[table["axis"] == "uniform"]["circuit/relative_error"] > 0.3).all()
    quiet = table[table["axis"] == "quiet"]
    level = float(table[table["method"] == "none"]["perplexity"].iloc[0])
    assert (quiet["penalty"].abs() < 5e-3 * level).all() and (quiet["circuit/total_error"] == 0).all()  # shots alone
    errors = four[four["axis"] == "gates"].groupby("rate")["circuit/total_error"].first()
    assert 0 < errors[1e-3] < 0.1 < errors[1e-1] < 1
    found = module("noise").numbers(noises)
    cost = found["preset"].set_index("b")
    assert set(cost.index) == {2, 4} and cost.loc[4, "penalty"] == pytest.approx(preset["penalty"].mean())
    assert set(found["ends"]["axis"]) == {"gates", "readout"}


def test_the_wall_measures_every_way_with_the_dim_studys_adapters(dims, words, capsys):
    more = ["study.dims=[4]", "study.ways=[qiskit/sqrt/input,line/calibrated/two_settings]", "noise=gates",
            "study.noises=[heron_r2]", "study.rates=[1e-3,2e-2]", "study.beside=[]", "evaluation.max_tokens=320",
            *(word for word in NOISE if word.startswith("noise."))]  # fmt: skip
    results = study("wall", [*words, *more], results=dims[1].folder, name="wall")
    assert set(rows(results, "train")["key"]) < set(rows(dims[0], "train")["key"])
    device = results.table[results.table["way"].notna()]
    assert len(device) == 2 * 2 * 3 + 2 * 2 and set(device["null"].dropna()) == {"K = 0", "shuffled K"}
    trained = device[device["null"].isna() & device["rate"].isna()].groupby("way")
    error = trained["circuit/relative_error"].mean()
    assert error["line/calibrated/two_settings"] < error["qiskit/sqrt/input"]
    counted = trained["circuit/circuits"].mean()
    assert counted["line/calibrated/two_settings"] == 2 * counted["qiskit/sqrt/input"]
    assert "Gain kept on the device" in capsys.readouterr().out


def test_circuits_are_trained_and_cut_beside_the_dim_studys_cayley_blocks(dims, words, capsys):
    more = ["study.dims=[4]", "study.others=[2]", "study.czs=[2]", "study.cuts=[2,4]", "study.wide=[16]",
            "study.wide_czs=[6]", "evaluation.max_tokens=320"]  # fmt: skip
    results = study("circuits", [*words, *more], results=dims[1].folder, name="circuits")
    trained, measured = rows(results, "train"), rows(results, "measure")
    device, measured = measured[measured["noise"].notna()], measured[measured["noise"].isna()]
    assert len(device) == 2 * (1 + 2 + 1) and (device["circuit/relative_error"] < 0.3).all()
    survived = device.fillna({"czs": 0}).groupby(["method", "czs"])["circuit/survival"].mean()
    assert survived["cayley", 4] < survived["cayley", 2]  # more CZ of a cut, run as they are
    assert set(rows(dims[0], "train")["key"]) < set(trained["key"]) and len(trained) == 2 * (3 + 2)
    size = trained.groupby(["method", "b"])["parameters"].first()
    assert size["circuit", 4] == size["cayley", 4] and size["circuit", 16] == (4 + 2 * 6) * size["cayley", 4] / 6 / 4
    whole = measured[(measured["method"] == "cayley") & measured["null"].isna() & (measured["b"] == 4)]
    whole = whole.set_index("seed")["perplexity"]
    for _, own in measured[measured["null"].notna()].groupby("czs"):  # two CZ write every block of b = 4
        assert len(own) == 2 and own.set_index("seed")["perplexity"].to_numpy() == pytest.approx(whole, rel=1e-5)
    assert set(measured[measured["czs"] == 4]["parameters"]) == {size["cayley", 4] * 10 / 6}
    assert "Share of the gain of Cayley blocks" in capsys.readouterr().out


@pytest.fixture(scope="module")
def rungs(tiny_folder, tmp_path_factory):
    """The tiny model, and one of a layer, as scripts/pretrain_nano.py would leave them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("rungs")
    for name, optimizer in (("two", "muon"), ("one", "adamw")):
        shutil.copytree(tiny_folder, folder / name)
        record = {
            "optimizer": optimizer,
            "lost_by_half": {"svd": 0.5, "gaussian": 0.6},
            "corpus": {"digest": "one text"},
        }
        (folder / name / "training_record.json").write_text(json.dumps(record))
    config = LlamaConfig.from_pretrained(tiny_folder, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(folder / "one")
    return folder


def test_a_ladder_measures_every_rung_on_its_own_model(words, rungs, story_file, tmp_path, capsys):
    more = [f"model.path={rungs / 'two'}", "model.name=two", f"study.rungs=[{rungs / 'one'}]", "study.dims=[4]",
            "study.controls=[lora]", "study.rates=[1e-2,1e-1]", "study.ratios=[0.75]", "compression=svd", "noise=gates",
            "data@home=text", f"home.path={story_file}", "evaluation.max_tokens=320",
            *(word for word in NOISE if word.startswith("noise."))]  # fmt: skip
    mine = [word for word in words if not word.startswith(("protocol@second", "data@home"))]
    results = study("ladder", [*mine, *more], results=tmp_path, name="ladder")
    from qrun.studies import module

    found = module("ladder").numbers(results)
    assert found["models"][["rung", "optimizer"]].to_numpy().tolist() == [["two", "muon"], ["one", "adamw"]]
    assert found["models"]["size"].nunique() == found["models"]["perplexity"].nunique() == 2
    trained = rows(results, "train")
    assert trained.groupby("rung")["key"].count().to_dict() == {"two": 6, "one": 6} and trained["key"].is_unique
    device = rows(results, "measure")
    device = device[device["axis"].notna()]
    assert device.groupby(["rung", "axis"])["rate"].nunique().to_dict() == {
        (rung, axis): (2 if axis == "gates" else 0) for rung in ("two", "one") for axis in ("preset", "gates")
    }
    assert (device["penalty"] != 0).all() and found["device"]["penalty"].nunique() == 2
    assert (found["compressed"]["compressed"] != found["compressed"]["original"]).all()
    assert len(rows(results, "compress")) == 2 and "## Rungs" in capsys.readouterr().out


def test_a_failed_cell_is_named_and_does_not_stop_the_others(qrun, words, dims, tmp_path, monkeypatch):
    from qrun.errors import RunFailed
    from qrun.training import loop

    step = loop.optimizer_step

    def fail_at_seed_one(model, windows, optimizer, parameters, config, index, seed, *rest):
        if seed == 1 and parameters[0].shape[1] == 6:
            raise RunFailed("this one breaks")
        return step(model, windows, optimizer, parameters, config, index, seed, *rest)

    monkeypatch.setattr(loop, "optimizer_step", fail_at_seed_one)
    code, _, err = qrun("sweep", "dim", *words, f"results={tmp_path}", "name=dims")
    assert code == 1 and err.count("\n") == 1
    assert "2 of 9 cells failed: train sites=adapter b=4 method=cayley seed=1 (this one breaks); measure" in err
    store, lost = Store(tmp_path), set(dims[0].table[(dims[0].table["b"] == 4) & (dims[0].table["seed"] == 1)]["key"])
    kept = finished(store)
    assert set(kept) == set(dims[0].table["key"]) - lost and store.find("dims").info.status == "FAILED"
    assert set(store.tagged("study", "cell_key", "FAILED")) == set(rows(dims[0], "train", b=4, seed=1)["key"])
    monkeypatch.undo()
    results = study("dim", words, results=tmp_path, name="dims")
    assert {key: run for key, run in finished(store).items() if key not in lost} == kept
    pd.testing.assert_frame_equal(columns(results.table), columns(dims[0].table), check_exact=True)
    assert store.find("dims").info.status == "FINISHED" and len(store.tagged("study", "study_key")) == 1


def test_a_study_killed_in_the_middle_goes_on_and_ends_with_the_same_table(start, dims, words, tmp_path):
    process, store = start("sweep", "dim", *words, f"results={tmp_path}", "name=dims"), Store(tmp_path)
    until(lambda: len(finished(store)) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(store)
    results = study("dim", words, results=tmp_path, name="dims")
    after = finished(store)
    assert 3 <= len(before) <= len(after) == 9 and before.items() <= after.items()
    pd.testing.assert_frame_equal(columns(results.table), columns(dims[0].table), check_exact=True)
    written = saved(tmp_path, "dims")
    pd.testing.assert_frame_equal(columns(written.table), columns(saved(dims[1].folder, "dims").table))
    assert written.units == dims[0].units
    assert store.find("dims").info.status == "FINISHED" and not store.tagged("study", "cell_key", "RUNNING")


def test_two_studies_in_one_store_are_refused(qrun, words, tmp_path):
    with (tmp_path / "study.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = qrun("sweep", "dim", *words, f"results={tmp_path}")
    assert code == 2 and "another study is running" in err and not finished(Store(tmp_path))


@pytest.mark.parametrize("change", [rope_base, swapped_entries], ids=["rope base", "tokenizer"])
def test_models_of_equal_weights_and_name_share_no_cell(words, tiny_folder, tmp_path, change):
    shutil.copytree(tiny_folder, tmp_path / "other")
    change(tmp_path / "other")
    small = [*words, "study.dims=[2]", "study.seeds=[0]"]
    first = study("dim", small, results=tmp_path / "r")
    assert study("dim", small, results=tmp_path / "r").table["run_id"].tolist() == first.table["run_id"].tolist()
    typed = [w if not w.startswith("model.path") else f"model.path={tmp_path / 'other'}" for w in small]
    second = study("dim", typed, results=tmp_path / "r")
    assert set(first.table["model_weights"]) == set(second.table["model_weights"])
    assert not set(first.table["key"]) & set(second.table["key"]) and len(finished(Store(tmp_path / "r"))) == 6
    fresh = study("dim", typed, results=tmp_path / "fresh")
    pd.testing.assert_frame_equal(columns(second.table), columns(fresh.table), check_exact=True)
    assert (first.table["perplexity"] != second.table["perplexity"]).any()


def test_the_whole_grid_is_listed_without_store_or_text(qrun, words, tmp_path):
    typed = [w for w in words if not w.startswith("data.path")] + ["data.path=/nowhere.json"]
    code, out, err = qrun("sweep", "dim", *typed, "--dry-run", f"results={tmp_path / 'r'}")
    assert code == 0, err
    assert [line.split(" seed")[0] for line in out.splitlines()[:3]] == [
        "measure method=none", "train sites=adapter b=2 method=cayley", "measure sites=adapter b=2 method=cayley"
    ]  # fmt: skip
    assert "9 cells (5 measure, 4 train)" in out and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("dim", ["study.dims=[4,5]"], "does not divide the input width 32"),
        ("dim", ["study.dims=[]"], "give a list"),
        ("dim", ["study.seeds=[0,0]"], "different values"),
        ("noise", ["study.rates=[1e-2,1e-3]"], "rising order"),
        ("noise", ["study.readout_rates=[1e-2,1e-3]"], "rising order"),
        ("noise", ["study.axes=[gates,nowhere]"], "study.axes"),
        ("noise", ["study.rates=[1e-3]", "noise=none"], "its cz is 0"),
        ("dim", ["study.dims=[4,5]", "study.indivisible=stop"], "study.indivisible=skip leaves such dimensions out"),
        ("dim", ["model=local,nano"], "one run takes one model"),
        ("dim", ["study.controls=[cayley]"], "oft"),
        ("dim", ["study.controls=[oft]"], "qrun sweep controls"),
        ("dim", ["study.control_lr.nothing=0.1"], "study.control_lr.nothing"),
        ("dim", ["launcher=ray", "launcher.workers=0"], "give 1 or more"),
        ("noise", ["study.rates=[1e-3]", "device=exact"], "device=noisy"),
        ("noise", ["study.rates=[1e-3]", "study.dims=[6]"], "powers of two"),
        ("noise", ["study.readout=on"], "no such key"),
    ],
)
def test_bad_axes_end_in_one_line(qrun, words, tmp_path, verb, more, said):
    code, _, err = qrun("sweep", verb, *words, *more, f"results={tmp_path / 'r'}")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()


def test_a_rate_that_no_noise_has_is_left_out_and_said(qrun, words, tmp_path):
    more = [w for w in NOISE if not w.startswith("study.rates")] + ["study.rates=[1e-3,0.9]"]
    code, out, err = qrun("sweep", "noise", *words, *more, "--dry-run", f"results={tmp_path / 'r'}")
    said, listed = (part.splitlines() for part in out.split("measure method=none"))
    assert code == 0 and sum("b=4" in line and "noise.cz=0.9" in line for line in said) == 1, err
    assert not any("rate=0.9" in line for line in listed) and any("axis=gates rate=0.001" in line for line in listed)
