"""A run repeated from its record has the same bits, and what differs is named with what was recorded of its making."""

import json

import pytest

from qrun.config.compose import compose, from_yaml, to_yaml
from qrun.config.verbs import VERBS
from qrun.errors import InputError
from qrun.studies import STUDIES, configure, module
from qrun.tracking.store import Store

SMALL = [
    "protocol.ctx=64", "evaluation.max_tokens=300", "evaluation.resamples=99", "training.steps=3", "training.batch=2",
    "training.context=64", "training.eval_tokens=300",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tiny_folder, story_file, tmp_path_factory):
    results = tmp_path_factory.mktemp("rerun") / "results"
    model = ["model=local", f"model.path={tiny_folder}", "model.device=cpu", "data=text", f"data.path={story_file}"]
    return [*model, f"results={results}", *SMALL], results


@pytest.fixture(scope="module")
def trained(words):
    from qrun.recipes.train import train

    return train(compose("train", [*words[0], "name=done", "adapter.layers=last"]))


@pytest.mark.parametrize(("verb", "more"), [
    ("train", ["adapter=circuit", "adapter.dim=8", "adapter.layers=[0,2-3]", "adapter.projections=mlp"]),
    ("train", ["model@teacher=smollm2", "training.distill_weight=0.5", "name=x"]),
    ("perplexity", ["device=noisy", "noise=paper", "noise.factor=3", "signs=two_settings", "estimate=calibrated"]),
    ("tasks", ["tasks=[a,b]", "prompt.chat=off"]),
])  # fmt: skip
def test_a_config_comes_back_from_its_record(verb, more):
    config = compose(verb, more)
    assert from_yaml(to_yaml(config), VERBS[verb]) == config


@pytest.mark.parametrize("name", STUDIES)
def test_a_studys_config_comes_back_from_its_record(name):
    config = configure(name, ["questions=continuation"] if name == "questions" else [])
    assert from_yaml(to_yaml(config), module(name).Config) == config


@pytest.mark.parametrize("text", ["name: ${oc.env:HF_TOKEN}", "nothing: 1", "seed: x", "seed: -1", "a: [", "[1]"])
def test_a_record_that_is_no_config_is_one_line(text):
    with pytest.raises(InputError, match=r"config.yaml|seed=-1") as stop:
        from_yaml(text, VERBS["train"])
    assert str(stop.value).isprintable() and len(str(stop.value)) < 300


def rerun(qrun, name, words, *more):
    return qrun("rerun", name, "--results", words[1], *more)


@pytest.mark.slow
def test_a_training_is_repeated_to_the_same_bits_and_its_record_stays(qrun, words, trained):
    before = {file: file.stat().st_mtime_ns for file in words[1].rglob("*") if file.is_file()}
    code, out, err = rerun(qrun, "done", words)
    assert code == 0 and "numbers and files of 1 run have the same bits" in out and "other" not in out, err
    assert int(out.split(" numbers and files")[0].split()[-1]) > 20
    after = {file: file.stat().st_mtime_ns for file in words[1].rglob("*") if file.is_file()}
    assert {f for f in before.keys() | after.keys() if before.get(f) != after.get(f)} <= {words[1] / "mlflow.db"}


@pytest.mark.slow
def test_what_differs_is_named_with_what_it_was_made_with(qrun, words, trained):
    from qrun.recipes.train import train

    train(compose("train", [*words[0], "name=other", "adapter.layers=last"]))
    store = Store(words[1])
    run = store.recorded(store.find("other").info.run_id)
    store.client.log_metric(run.run_id, "gain", 9.5)
    environment = json.loads(run.text("env.json"))
    environment["packages"]["torch"] = "1.0"
    store.client.log_text(run.run_id, json.dumps(environment), "env.json")
    measured = json.loads(run.text("perplexity_adapted.json"))
    measured["nats"][0] += 1e-9
    store.client.log_text(run.run_id, json.dumps(measured), "perplexity_adapted.json")
    code, out, err = rerun(qrun, "other", words)
    assert code == 1 and err.startswith("qrun: other: 2 of ") and "made with another torch" in err
    assert "gain" in out and "9.5" in out and "perplexity_adapted, nats of each document" in out
    assert "other torch: 1.0 in the record" in out


@pytest.mark.slow
def test_an_evaluation_on_a_noisy_device_is_repeated_to_the_same_bits(qrun, words, trained):
    own = [word for word in words[0] if not word.startswith("training.")]
    device = [f"adapter.path={trained}", "device=noisy", "noise=paper", "device.shots=512", "name=noisy"]
    code, _, err = qrun("eval", "perplexity", *own, *device)
    assert code == 0, err
    code, out, err = rerun(qrun, "noisy", words)
    assert code == 0 and "1 run have the same bits" in out, err
    weights = trained / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + bytes(4))  # the adapter is another one since
    code, out, err = rerun(qrun, "noisy", words)
    weights.write_bytes(kept)
    assert code == 1 and "adapted/perplexity" in out and "base/perplexity" not in out and "other adapter_files" in out
    assert err.rstrip().endswith("numbers and files differ, made with another adapter_files")


@pytest.mark.slow
def test_a_study_and_one_of_its_cells_are_repeated_to_the_same_bits(qrun, words, trained):
    axes = [
        "study.dims=[4]",
        "study.seeds=[0]",
        "study.sites=[one]",
        "study.controls=[]",
        "launcher.workers=1",
        "study.trials=1",
        "data@home=null",
        "protocol@second=null",
    ]
    code, _, err = qrun("sweep", "dim", *words[0], *axes, "name=small")
    assert code == 0, err
    code, out, err = rerun(qrun, "small", words)
    assert code == 0 and "3 cells to repeat, 3 with" in out and "3 cells have the same bits" in out, err
    store = Store(words[1])
    (measured,) = [r for r in store.tagged("study", "cell_key").values() if r.tags["kind"] == "train"]
    code, out, err = rerun(qrun, measured.run_id, words)
    assert code == 0 and "1 cells to repeat, 1 with" in out and "1 run have the same bits" in out, err


@pytest.mark.slow
def test_a_grid_of_single_runs_is_repeated_to_the_same_bits(qrun, words):
    small = ["adapter.layers=last", "adapter.projections=[v_proj]", "launcher.workers=1", "name=grid"]
    code, _, err = qrun("train", "-m", *words[0], *small, "adapter.dim=2,4")
    assert code == 0, err
    code, out, err = rerun(qrun, "grid", words)
    assert code == 0 and "5 cells to repeat, 5 with" in out and "5 cells have the same bits" in out, err


@pytest.mark.slow
def test_the_answers_to_questions_are_repeated_to_the_same_bits(qrun, words, trained):
    asked = ["questions=continuation", "questions.limit=3", "trials=2", "temperatures=[0.5]", "launcher.workers=1"]
    own = [*words[0][:3], words[0][5], f"adapter.path={trained}", "name=asked"]
    code, _, err = qrun("eval", "questions", *own, *asked)
    assert code == 0, err
    code, out, err = rerun(qrun, "asked", words)
    assert code == 0 and "3 cells to repeat, 3 with" in out and "3 cells have the same bits" in out, err
    store = Store(words[1])
    (arm,) = [r for r in store.tagged("study", "cell_key").values() if r.params.get("arm") == "adapter"]
    store.client.log_metric(arm.run_id, "right", 0.123)
    code, out, err = rerun(qrun, "asked", words)
    assert code == 1 and "0.123" in out and "1 of " in err


@pytest.mark.slow
def test_what_cannot_be_repeated_is_one_line(qrun, words, trained):
    store = Store(words[1])
    with store.run("train", "open", {}, {}) as run:
        code, _, err = rerun(qrun, run.run_id, words)
        assert (code, err) == (2, f"qrun: {run.run_id}: is running; a finished run can be repeated\n")
    code, _, err = rerun(qrun, "nothing", words)
    assert code == 2 and err.startswith("qrun: nothing: no run of that name")
