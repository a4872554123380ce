"""`-m`: a grid of single runs as cells; the same numbers as without it, and none of them twice."""

import json

import pytest
from tests_support import finished, saved

from qrun.adapters.saving import read
from qrun.errors import InputError
from qrun.studies import module, multirun
from qrun.tracking.store import Store

STEPS = ["training.context=64", "training.batch=2", "training.steps=2", "training.eval_every=2", "training.warmup=1",
         "training.lr=0.05"]  # fmt: skip


@pytest.fixture
def text(tiny_folder, story_file, tmp_path):
    model = ["model=local", f"model.path={tiny_folder}", "model.name=tiny", "data=text", f"data.path={story_file}"]
    return [*model, "protocol.ctx=64", "evaluation.resamples=199", f"results={tmp_path}"]


def test_a_grid_says_what_it_computes_before_anything_runs(tiny_folder, story_file):
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "name=g", "results=r"]
    config = multirun.configure(
        "train", [*words, "adapter.dim=2,4", "seed=range(0,3)", "launcher.workers=1", "cache.gib=0"]
    )
    grid = list(module("multirun").cells(config, print))
    assert len(grid) == 3 * 6 and config.launcher.workers == 1 and (config.name, config.results) == ("g", "r")
    trained = [cell.task.config for cell in grid if cell.task.kind == "train"]
    assert [(c.adapter.dim, c.seed) for c in trained] == [(b, s) for b in (2, 4) for s in range(3)]
    assert {c.training.lr for c in trained} == {0.006}  # as the words stand: a study would scale it to b
    assert {cell.task.config.cache.gib for cell in grid} == {0}


@pytest.mark.parametrize("word", ["results=a,b", "name=a,b"])
def test_one_place_for_the_whole_grid(word):
    with pytest.raises(InputError, match="one for the whole grid"):
        multirun.configure("train", [word])


def test_a_wrong_point_is_told_before_anything_runs():
    with pytest.raises(InputError, match=r"adapter.dim=1"):
        multirun.configure("train", ["adapter.dim=2,1"])
    with pytest.raises(InputError, match=r"launcher.workers=1,2: one run takes one value"):
        multirun.configure("train", ["launcher.workers=1,2"])


@pytest.mark.long
def test_a_grid_has_the_numbers_of_single_runs_and_computes_none_twice(qrun, text, tmp_path):
    words = [*text, *STEPS, "launcher.workers=1"]
    code, out, err = qrun("train", "-m", *words, "adapter.dim=2,4", "name=grid")
    assert code == 0 and "| 4 |" in out and "95% over documents" in out, err
    table, before = saved(tmp_path, "grid").table, finished(Store(tmp_path))
    code, out, err = qrun("train", "-m", *words, "adapter.dim=4,8", "name=wider")
    assert code == 0 and "3 finished before, 2 to compute" in out, err
    assert before.items() <= finished(Store(tmp_path)).items()
    code, _, err = qrun("train", *text, *STEPS, "adapter.dim=4", "name=single")
    assert code == 0, err
    single = Store(tmp_path).find("single").data.metrics
    rows = table[(table["kind"] == "measure") & (table["role"] == "adapter")].set_index("adapter.dim")
    assert rows.loc[4, "gain"] == pytest.approx(single["gain"], abs=1e-6)
    assert rows.loc[4, "gain_low"] == pytest.approx(single["gain_low"], abs=1e-6)
    assert rows.loc[2, "gain"] != rows.loc[4, "gain"]

    adapter = tmp_path / "runs" / "single" / "adapter"
    assert read(adapter).config.dim == 4
    (tmp_path / "own" / "noise").mkdir(parents=True)
    (tmp_path / "own" / "noise" / "lab.yaml").write_text("# The lab's chip\nname: lab\ncz: 4e-3\n")
    own = ["--config-dir", tmp_path / "own"]
    noisy = [*text, *own, f"adapter.path={adapter}", "device=noisy", "noise=lab", "launcher.workers=1"]
    code, _, err = qrun("eval", "perplexity", "-m", *noisy, "noise.factor=1,4", "name=louder")
    assert code == 0, err
    found = saved(tmp_path, "louder").table.query("role == 'device'").set_index("noise.factor")
    assert found.loc[1, "gain"] > found.loc[4, "gain"] and json.dumps(list(found.index)) == "[1, 4]"
    code, _, err = qrun("eval", "perplexity", *noisy[:-1], "noise.factor=4", "name=alone")
    assert code == 0, err
    for run in ("louder", "alone"):
        assert Store(tmp_path).find(run).data.tags["config_folders"] == str(tmp_path / "own")
    assert "config_folders" not in Store(tmp_path).find("single").data.tags
    assert found.loc[4, "penalty"] == pytest.approx(Store(tmp_path).find("alone").data.metrics["penalty"], abs=1e-6)
