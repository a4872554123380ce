"""Recovery, controls, questions and the report on a tiny model: what is shared, what is recorded, what is written."""

import json
import random

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


@pytest.fixture(scope="module")
def home_file(tmp_path_factory):
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("home") / "home.json"
    path.write_text(
        json.dumps(
            [
                " ".join(
                    rng.choices(["a", "model", "of", "its", "own", "text", "reads", "other", "words", "again"], k=60)
                )
                + f" {i}."
                for i in range(60)
            ]
        )
    )
    return path


@pytest.fixture(scope="module")
def words(tiny_folder, story_file, home_file, tmp_path_factory):
    results = tmp_path_factory.mktemp("recover") / "results"
    model = [
        "model=local",
        f"model.path={tiny_folder}",
        "model.name=tiny",
        "data=text",
        f"data.path={story_file}",
        "launcher.workers=1",
    ]
    return [*model, "protocol.ctx=64", "evaluation.max_tokens=640", *STEPS], results, home_file


def result(store, study):
    runs = store.tagged("study", "study_key", "FINISHED").values()
    return next(
        found
        for run in runs
        if (found := json.loads(store.artifact_text(run.info.run_id, "result.json")))["study"] == study
    )


def recover_words(words, *more):
    axes = [
        "study.ratios=[0.6]",
        "study.dims=[4]",
        "study.controls=[lora,diagonal]",
        "compression=svd",
        "data@home=text",
        f"home.path={words[2]}",
    ]
    return ["recover", *words[0], *axes, f"results={words[1]}", *more]


def test_recovery_stands_beside_its_controls_on_both_texts_and_is_never_computed_twice(qrun, words):
    code, out, err = qrun(*recover_words(words))
    assert code == 0, err
    assert "1 cells: 0 finished before, 1 to compute" in out and "11 cells: 0 finished before, 11 to compute" in out, (
        out
    )
    store = Store(words[1])
    values = result(store, "recover-svd")["values"]
    kinds = {(row["text"], row["what"]) for row in values["rows"]}
    assert (
        len(kinds) == 9 and ("home", "lora, distilled") in kinds and ("shifted", "sign-constrained, distilled") in kinds
    )
    for row in values["rows"]:
        assert row["recovery"]["value"] == pytest.approx(
            (row["compressed"] - row["adapted"]) / (row["compressed"] - row["original"])
        )
        if row["text"] == "shifted":
            expected = (row["compressed"] - row["adapted"]) / (row["compressed"] - row["original_adapted"])
            assert row["against_adapted"]["value"] == pytest.approx(expected)
    parameters = {row["what"]: row["parameters"] for row in values["rows"]}
    assert parameters["healing, distilled"] == values["sizes"]["0.6"]["kept_parameters"] > parameters["adapter"]
    code, out, _ = qrun(*recover_words(words))
    assert code == 0 and "11 cells: 11 finished before, 0 to compute" in out


def test_a_compressed_folder_that_is_gone_is_made_again(qrun, words):
    import shutil

    qrun(*recover_words(words))
    shutil.rmtree(words[1] / "compressed")
    code, out, err = qrun(*recover_words(words))
    assert code == 0 and "1 cells: 0 finished before, 1 to compute" in out and "11 finished before" in out, err


def test_controls_stand_beside_the_adapter_and_oft_is_the_same_adapter(qrun, words):
    device = ["noise=gates", "noise.cz=1e-3"]
    code, _, err = qrun(
        "sweep", "controls", *words[0], "study.seeds=[0,1]", "study.sites=[adapter]", *device, f"results={words[1]}"
    )
    assert code == 0, err
    found = result(Store(words[1]), "controls")
    methods = found["values"]["adapter-4"]
    names = {
        "cayley",
        "oft",
        "boft",
        "lora",
        "diagonal",
        "block",
        "dense",
        "K = 0 on the device",
        "adapter on the device",
        "shuffled K, exact",
    }
    assert set(methods) == names
    assert methods["cayley"]["gain"] > 0 and methods["oft"]["relative_difference"] < 1e-4, methods["oft"]
    assert (
        methods["K = 0 on the device"]["parameters"] == 0
        and abs(methods["K = 0 on the device"]["gain"]) < 0.05 * methods["cayley"]["base"]
    )
    verdicts = {v["claim"]: v["verdict"] for v in found["verdicts"]}
    assert verdicts["oft"] == "confirmed" and verdicts["efficiency"] in ("reproduced", "in part", "not reproduced")


def test_questions_compare_original_compressed_and_adapter(qrun, words, tiny_folder):
    qrun(*recover_words(words))
    store = Store(words[1])
    folder = next((words[1] / "compressed").iterdir())
    runs = store.tagged("study", "cell_key", "FINISHED").values()
    run = next(r for r in runs if r.data.tags["cell"].startswith("shifted compressed 0.6, adapter b=4"))
    adapter = words[1] / "runs" / run.info.run_name / "adapter"
    models = [
        "model=local",
        f"model.path={folder}",
        "model.name=small",
        "model@original=local",
        f"original.path={tiny_folder}",
        "original.name=tiny",
    ]
    asked = [f"adapter.path={adapter}", "questions.limit=12", "trials=5", f"results={words[1]}"]
    code, _, err = qrun("eval", "questions", *models, *asked, "device=shots")
    assert code == 0, err
    found = result(store, "questions-continuation")
    assert list(found["values"]["shares"]) == ["original", "compressed", "adapter", "adapter on shots"]
    for name, share in found["values"]["shares"].items():
        assert share["questions"] == 12 and share["interval"][0] <= share["right"] / 12 <= share["interval"][1], name
    pair = found["values"]["pairs"]["compressed to adapter"]
    gained = len(pair["wrong_to_right"]) - len(pair["right_to_wrong"])
    assert gained == found["values"]["shares"]["adapter"]["right"] - found["values"]["shares"]["compressed"]["right"]
    assert {v["claim"] for v in found["verdicts"]} == {"both_fail"}


def test_the_report_is_written_from_the_store_alone(qrun, words, tmp_path):
    qrun(*recover_words(words))
    qrun(
        "sweep",
        "dim",
        *words[0],
        "study.dims=[2,4]",
        "study.seeds=[0,1]",
        "study.sites=[adapter]",
        "study.controls=[]",
        f"results={words[1]}",
    )
    code, _, err = qrun("report", "--results", words[1], "--out", tmp_path / "out")
    assert code == 0, err
    folder = tmp_path / "out" / "recover-svd" / "tiny"
    assert {p.name for p in folder.iterdir()} == {
        "table.md",
        "table.json",
        "command.txt",
        "recovery.png",
        "recovery.svg",
    }
    table = json.loads((folder / "table.json").read_text())
    assert (
        table["record"]["model_weights"]
        and table["record"]["code_digest"]
        and table["command"].startswith("qrun recover")
    )
    assert "| shifted: healing, distilled, b = 4 |" in (folder / "table.md").read_text()
    claims = (tmp_path / "out" / "README.md").read_text()
    assert (
        "83 %" in claims
        and "[tiny](recover-svd/tiny/table.md)" in claims
        and "not testable here: needs gated hub weights" in claims
    )
    assert (tmp_path / "out" / "dim" / "tiny" / "dim-adapter.svg").read_text().startswith("<?xml")
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    qrun("report", "--results", words[1], "--out", tmp_path / "out")
    assert first == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_store_without_studies_has_nothing_to_report(qrun, tmp_path):
    code, _, err = qrun("report", "--results", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and "no finished study" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["study.ratios=[0.7,0.7]"], "different values"),
        (["study.ratios=[1.2]"], "between 0 and 1"),
        (["study.ratios=[0.01]"], "cannot be reached"),
        (["compression.bond=4"], "the study's axis is study.ratios"),
        (["study.dims=[6]"], "does not divide"),
        (["study.sites=[all,one]"], "one set of sites"),
    ],
)
def test_bad_axes_end_in_one_line(qrun, words, tmp_path, more, said):
    code, _, err = qrun(*recover_words((words[0], tmp_path / "r", words[2])), *more)
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()


def test_a_bond_above_full_rank_is_refused_before_anything_is_written(qrun, words, tmp_path):
    model = words[0][:3]
    code, _, err = qrun("compress", *model, "compression=mpo", "compression.bond=500", "--out", tmp_path / "small")
    assert code == 2 and "above the full rank" in err and not (tmp_path / "small").exists()
    code, out, err = qrun("compress", *model, "compression=mpo", "compression.bond=12", "--out", tmp_path / "small")
    assert code == 0 and "whole model" in out, err
    code, _, err = qrun("compress", *model, "--out", tmp_path / "small")
    assert code == 2 and "exists already" in err
