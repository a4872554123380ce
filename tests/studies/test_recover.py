"""Recovery, controls, questions and the report on a tiny model: what is shared, what is recorded, what is written."""

import json
import random
import shutil

import pandas as pd
import pytest
from tests_support import columns, finished, saved, study

from qrun.studies import module
from qrun.tracking.store import Store

STEPS = ["training.context=64", "training.batch=2", "training.steps=4", "training.eval_every=4", "training.warmup=1",
         "training.lr=0.05", "protocol.ctx=64", "study.trials=1", "launcher.workers=1"]  # fmt: skip


@pytest.fixture(scope="module")
def home_file(tmp_path_factory):
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("home") / "home.json"
    known = ["a", "model", "of", "its", "own", "text", "reads", "other", "words", "again"]
    path.write_text(json.dumps([" ".join(rng.choices(known, k=40)) + f" {i}." for i in range(300)]))
    return path


@pytest.fixture(scope="module")
def words(tiny_folder, story_file):
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny", "data=text", f"data.path={story_file}"]
    return [*model, *STEPS]


@pytest.fixture(scope="module")
def axes(home_file):
    return ["study.ratios=[0.6]", "study.dims=[4]", "study.seeds=[0,1]", "study.controls=[lora,diagonal]",
            "compression=svd", "data@home=text", f"home.path={home_file}"]  # fmt: skip


@pytest.fixture(scope="module")
def recovered(words, axes, tmp_path_factory):
    """A finished recovery: results and store."""
    store = Store(tmp_path_factory.mktemp("recover") / "results")
    return study("recover", [*words, *axes], results=store.folder, name="rec"), store


@pytest.mark.slow
def test_recovery_stands_beside_its_controls_on_both_texts(recovered):
    results, store = recovered
    assert set(finished(store)) == set(results.table["key"]) and results.table["key"].is_unique
    found = module("recover").numbers(results)
    table = found["recovery"]
    assert set(table[["text", "what"]].itertuples(index=False, name=None)) == {
        *(("shifted", what) for what in (
            "adapter, distilled", "adapter", "sign-constrained, distilled", "lora, distilled", "diagonal, distilled",
            "healing, distilled")),
        *(("home", what) for what in ("adapter, distilled", "lora, distilled", "healing, distilled")),
    }  # fmt: skip
    assert (table["seeds"] == 2).all()
    measured = results.table[results.table["kind"] == "measure"]
    assert measured["perplexity"].notna().all() and (measured["effective_documents"] > 20).all()
    for row in table.to_dict("records"):
        own = measured[(measured["text"] == row["text"]) & (measured["ratio"] == 0.6)]
        mean = own[own["what"] == row["what"]]["perplexity"].mean()
        assert row["perplexity"] == pytest.approx(mean) and row["compressed"] != row["original"]
        assert row["recovery_document_low"] <= row["recovery"] <= row["recovery_document_high"], row
        share = (row["compressed"] - mean) / (row["compressed"] - row["original"])
        assert row["recovery"] == pytest.approx(share, rel=0.05, abs=0.02)  # of averaged nats, not perplexities
        if row["text"] == "shifted":
            share = (row["compressed"] - mean) / (row["compressed"] - row["original_adapted"])
            assert row["adapted"] == pytest.approx(share, rel=0.05, abs=0.02)


@pytest.mark.slow
def test_the_compressed_model_is_smaller_and_healing_trains_all_of_what_is_left(recovered):
    results, store = recovered
    (made,) = results.table[results.table["kind"] == "compress"].to_dict("records")
    assert made["kept_ratio"] <= 0.6 and (store.folder / "compressed" / made["run"] / "config.json").is_file()
    trained = results.table[(results.table["kind"] == "train") & (results.table["ratio"] == 0.6)]
    healing, adapter = (trained[trained["what"] == what]["parameters"] for what in ("healing, distilled", "adapter"))
    assert set(healing) == {made["kept_parameters"]} and healing.iloc[0] > adapter.iloc[0] == 720


@pytest.mark.slow
def test_a_compressed_folder_that_is_gone_is_made_again_only_for_a_cell_that_wants_it(recovered, words, axes):
    results, store = recovered
    before = finished(store)
    gone = store.folder / "compressed"
    shutil.rmtree(gone)
    again = study("recover", [*words, *axes], results=store.folder, name="rec")
    assert finished(store) == before and not gone.exists() and again.table["run_id"].equals(results.table["run_id"])
    more = study("recover", [*words, *axes, "study.controls=[block]"], results=store.folder, name="more")
    after = finished(store)
    made = results.table[results.table["kind"] == "compress"]["key"].iloc[0]
    assert gone.is_dir() and after[made] != before[made]
    assert {key for key in before if after[key] != before[key]} == {made}
    assert len(set(more.table["key"]) - set(before)) == 8


@pytest.fixture(scope="module")
def controls(words, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("controls") / "results")
    more = ["study.seeds=[0,1]", "study.sites=[adapter]", "noise=gates", "noise.cz=1e-3", "data@home=null",
            "protocol@second=null"]  # fmt: skip
    return study("controls", [*words, *more], results=store.folder, name="controls")


@pytest.mark.slow
def test_a_trained_oft_is_the_same_adapter_by_other_hands(controls):
    trained = controls.table[(controls.table["kind"] == "measure") & (controls.table["null"] == "trained")]
    ours, oft = (trained[trained["method"] == m].set_index("seed")["perplexity"] for m in ("cayley", "oft"))
    assert len(ours) == len(oft) == 2 and oft.to_numpy() == pytest.approx(ours.to_numpy(), rel=1e-4)
    base = controls.table[(controls.table["kind"] == "measure") & (controls.table["method"] == "none")]
    assert ours.mean() < 0.999 * base["perplexity"].iloc[0]  # it did move
    found = module("controls").numbers(controls)
    assert found["pairs"]["oft"].iloc[0] == pytest.approx(float((oft / ours - 1).abs().max()))
    verdicts = {v.claim: v.outcome.value for v in module("controls").grades(found)}
    assert verdicts["oft"] == "reproduced" and set(verdicts) == {"oft", "efficiency"}


@pytest.mark.slow
def test_untrained_nulls_stand_beside_the_trained_methods(controls):
    gains = module("controls").numbers(controls)["gains"].set_index(["method", "null"])
    assert set(gains.index) == {
        *((m, "trained") for m in ("cayley", "oft", "boft", "lora", "diagonal", "block", "dense")),
        *(("cayley", null) for null in ("shuffled K", "K = 0 on the device", "adapter on the device")),
    }  # fmt: skip
    level = controls.table[controls.table["method"] == "none"]["perplexity"].iloc[0]
    nothing = gains.loc[("cayley", "K = 0 on the device")]
    assert nothing["parameters"] == 0 and abs(nothing["gain"]) < 0.05 * level
    assert gains.loc[("cayley", "trained"), "gain"] > max(0, gains.loc[("cayley", "shuffled K"), "gain"])


@pytest.fixture(scope="module")
def asked(recovered, tiny_folder):
    results, store = recovered
    made = results.table[results.table["kind"] == "compress"].iloc[0]
    trained = results.table[(results.table["kind"] == "train") & (results.table["what"] == "adapter")]
    adapter = store.folder / "runs" / trained[trained["ratio"] == 0.6]["run"].iloc[0] / "adapter"
    own = json.loads((adapter / "qrun.json").read_text())["base_model"]["path"]
    assert own.endswith(made["run"])
    typed = ["model=local", f"model.path={own}", "model.name=small", "model@original=local",
             f"original.path={tiny_folder}", "original.name=tiny", f"adapter.path={adapter}", "questions.limit=12",
             "trials=5", "launcher.workers=1", "device=shots"]  # fmt: skip
    return typed, study("questions", typed, results=store.folder, name="asked"), store


@pytest.mark.slow
def test_questions_compare_original_compressed_and_adapter(asked):
    typed, results, store = asked
    found = module("questions").numbers(results)
    shares = found["shares"].set_index("arm")
    arms = ["original", "compressed", "adapter", "adapter on shots", "shuffled K", "K = 0 on shots"]
    assert list(shares.index) == arms
    assert (shares["questions"] == 12).all()
    own = shares.dropna(subset="low")  # questions of fewer than 20 documents have no interval
    assert (own["low"] <= own["right"] / 12).all() and (own["right"] / 12 <= own["high"]).all()
    pair = found["pairs"].set_index(["first", "second"]).loc[("compressed", "adapter")]
    gained = pair["wrong_to_right"] - pair["right_to_wrong"]
    assert gained == shares.loc["adapter", "right"] - shares.loc["compressed", "right"]
    assert {v.claim for v in module("questions").grades(found)} <= {"both_fail"}
    again = study("questions", typed, results=store.folder, name="asked")
    assert again.table["run_id"].tolist() == results.table["run_id"].tolist()


@pytest.mark.long
def test_the_report_is_written_from_the_store_alone_and_again_from_itself(qrun, recovered, asked, words, tmp_path):
    _, store = recovered
    more = ["study.dims=[2,4]", "study.seeds=[0]", "study.sites=[adapter]", "study.controls=[]"]
    study("dim", [*words, *more], results=store.folder, name="dims")
    code, _, err = qrun("report", "--results", store.folder, "--out", tmp_path / "out")
    assert code == 0, err
    folders = {p.parent.relative_to(tmp_path / "out").parts[0]: p.parent for p in tmp_path.glob("out/*/*/study.json")}
    assert set(folders) == {"recover", "questions", "dim"}
    assert not (tmp_path / "out" / "README.md").exists()  # two seeds and four steps are below the standard
    here = folders["dim"]
    assert {"page.md", "cells.csv", "units.json", "study.json"} < {p.name for p in here.iterdir()}
    original = saved(store.folder, "dims")
    assert (here / "cells.csv").read_bytes() == (store.folder / "studies" / "dims" / "cells.csv").read_bytes()
    pd.testing.assert_frame_equal(columns(pd.read_csv(here / "cells.csv", float_precision="round_trip")),
                                  columns(original.table))  # fmt: skip
    pictures = list(here.glob("*.svg"))
    assert pictures and all(p.read_text().startswith("<?xml") for p in pictures)
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for source in (["--results", store.folder], ["--from", tmp_path / "out"]):
        code, _, err = qrun("report", *source, "--out", tmp_path / "out")
        assert code == 0, err
        assert first == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_report_needs_a_folder_and_a_study(qrun, tmp_path, monkeypatch):
    code, _, err = qrun("report", "--results", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and "no finished study" in err and not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    code, _, err = qrun("report", "--results", tmp_path)
    assert code == 2 and "--out" in err and err.count("\n") == 1 and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["study.ratios=[0.7,0.7]"], "different values"),
        (["study.ratios=[1.2]"], "between 0 and 1"),
        (["study.ratios=[0.01]"], "cannot be reached"),
        (["compression.bond=4"], "the study's axis is study.ratios"),
        (["study.dims=[6]"], "does not divide"),
        (["study.sites=[all,one]"], "one set of sites"),
        (["study.healing_lr=0.1"], "no such key"),
    ],
)
def test_bad_axes_end_in_one_line(qrun, words, axes, tmp_path, more, said):
    code, _, err = qrun("recover", *words, *axes, *more, f"results={tmp_path / 'r'}")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()


def test_a_bond_above_full_rank_is_refused_before_anything_is_written(qrun, words, tmp_path):
    model = words[:3]
    code, _, err = qrun("compress", *model, "compression=mpo", "compression.bond=500", "--out", tmp_path / "small")
    assert code == 2 and "above the full rank" in err and not (tmp_path / "small").exists()
    code, out, err = qrun("compress", *model, "compression=mpo", "compression.bond=12", "--out", tmp_path / "small")
    assert code == 0 and "whole model" in out, err
    code, _, err = qrun("compress", *model, "--out", tmp_path / "small")
    assert code == 2 and "exists already" in err
