"""Scans of learning rates: the same rule for every method, on validation text, and its rate is what trainings take."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from tests_support import study

from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.errors import Interrupted, RunFailed
from qrun.evaluation.trainings import trainings
from qrun.recipes import scanning
from qrun.recipes.scanning import Trial, behind, best, beyond, grid, scan, units
from qrun.report.page import About, scans
from qrun.report.page import _template as template
from qrun.training.interrupt import Interrupt


def tried(*nats, **changes):
    """Trials at rates 1, 10^0.5, 10 ...; two documents of 10 and 30 tokens."""
    return [
        Trial(10 ** (at / 2), value, 30, 30, False, False, [10 * value, 30 * value], [10.0, 30.0], **changes)
        for at, value in enumerate(nats)
    ]


@pytest.mark.parametrize(("trials", "powers"), [(1, [0]), (2, [0, 1]), (3, [-1, 0, 1]), (5, [-2, -1, 0, 1, 2])])
def test_rates_stand_half_a_decade_apart_around_the_stated_one(trials, powers):
    assert grid(0.02, trials) == pytest.approx([0.02 * 10 ** (power / 2) for power in powers])


def test_one_more_trial_where_the_best_is_at_an_edge():
    assert beyond(tried(3.0, 2.9, 3.1)) is None
    assert beyond(tried(3.0, 2.9, 2.8)) == pytest.approx(10**1.5)
    assert beyond(tried(2.7, 2.9, 2.8)) == pytest.approx(10**-0.5)


def test_a_rate_at_which_all_diverge_is_told():
    assert best(tried(math.inf, 3.0)).lr == pytest.approx(10**0.5)
    with pytest.raises(RunFailed, match=r"every rate tried \(1, 3.16228\)"):
        best(tried(math.inf, math.inf))


def test_the_gap_to_the_best_is_paired_over_documents():
    winner = Trial(1.0, 2.9, 30, 30, False, False, [29.0, 87.0], [10.0, 30.0])
    even = Trial(2.0, 2.95, 30, 30, False, False, [29.5, 88.5], [10.0, 30.0])
    assert behind(even, winner) == pytest.approx((0.05, 0.0), abs=1e-9)  # every document by as much a token
    odd = Trial(2.0, 2.95, 30, 30, False, False, [31.0, 87.0], [10.0, 30.0])  # all of it in one document
    gap, error = behind(odd, winner)  # residues 2 - 0.05 * 10 and 0 - 0.05 * 30
    assert gap == pytest.approx(0.05) and error == pytest.approx(math.sqrt(2 * (1.5**2 + 1.5**2)) / 40)


def test_what_pages_tell_of_trials_is_in_order_of_rates_and_has_null_for_what_does_not_exist():
    rows = [*tried(2.9, 3.0), Trial(0.1, math.inf, 3, 0, False, False), Trial(0.3, 3.5, 15, 0, True, False)]
    found = units(rows)
    assert found["lr"] == pytest.approx([0.1, 0.3, 1, 10**0.5]) and found["nats"] == [None, 3.5, 2.9, 3.0]
    assert found["pruned"] == [0, 1, 0, 0] and found["error"][:2] == [None, None]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(("best", "edge", "told"), [
    (1, "no", ""),
    (2, "yes", "The best rate is the last one tried in 1 of its 1 scans."),
    (0, "yes", "in 1 of its 1 scans."),
])  # fmt: skip
def test_a_best_rate_with_none_tried_beyond_it_is_told_in_the_table_and_in_the_verdict(best, edge, told):
    rows = [{"point": "b=4", "lr": 10.0**at, "nats": 3.0 + abs(at - best), "best": at == best, "behind": abs(at - best),
             "error": 0.1, "tied": False} for at in range(3)]  # fmt: skip
    trials = pd.DataFrame(rows)
    assert scans(trials)["edge"].tolist() == [edge]
    said = template("training", About("dim", "nano", "", "", "", "", "", ""), {"rates": trials})
    assert told in str(said.ends()) and bool(str(said.ends()).strip()) == bool(told)
    assert scans(trials[trials["best"]])["edge"].tolist() == ["no"]  # one stated rate is no scan


def test_an_interrupted_scan_keeps_its_finished_trials(tmp_path, monkeypatch):
    config, asked = compose("train", ["training.lr=1"]), []
    results = iter(tried(3.0, 2.9, 2.95))

    def one(config, lr, *rest):
        asked.append(lr)
        if len(asked) == 3:
            raise Interrupted(15)
        return scanning.replace(next(results), lr=lr)

    monkeypatch.setattr(scanning, "trial", one)
    words = (config, 3, None, tmp_path / "cell", None, None, None)
    with pytest.raises(Interrupted):
        scan(*words)
    found = scan(*words)
    third = 10**0.5
    assert asked == pytest.approx([1 / third, 1, third, third])  # the interrupted one again, the finished ones not
    assert [trial.nats for trial in found] == [3.0, 2.9, 2.95] and best(found).lr == 1


def test_a_trial_is_judged_by_the_forward_pass_that_it_was_trained_for(tiny_folder, story_file, tmp_path):
    """training.kept=0.5 expects half of the counts; its exact forward pass is another number."""
    words = [
        "model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64",
        "training.context=64", "training.batch=2", "training.steps=4", "training.eval_every=2", "training.warmup=0",
        "training.eval_tokens=320", "training.lr=0.3", "training.kept=0.5", f"results={tmp_path}",
    ]  # fmt: skip
    seen = []
    run = SimpleNamespace(run_id="r")
    store = SimpleNamespace(exists=lambda run_id: False)
    with pytest.MonkeyPatch.context() as patch:
        fit = scanning.fit_adapter
        patch.setattr(scanning, "fit_adapter", lambda *given: seen.append(fit(*given)) or seen[-1])
        found = scanning.trial(
            compose("train", words), 0.3, Workspace(), tmp_path / "state", store, run, Interrupt()
        )  # fmt: skip
    assert found.nats == pytest.approx(seen[0].best_nats, rel=1e-9) and not found.pruned


@pytest.mark.slow
def test_trainings_take_the_rate_of_their_scan_and_the_page_tells_the_trials(tiny_folder, story_file, tmp_path):
    """Rates far too low, of use, and far too high: the first validation after the warm-up ends the last."""
    words = [
        "model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64",
        "training.context=64", "training.batch=2", "training.steps=6", "training.eval_every=2", "training.warmup=1",
        "training.eval_tokens=320", "training.lr=1.0", "training.patience=null", "study.dims=[4]", "study.seeds=[0,1]",
        "study.sites=[adapter]", "study.controls=[]", "study.trials=3", "training.divergence=100",
        "study.trial_steps=4", "launcher.workers=1",
    ]  # fmt: skip
    results = study("dim", words, results=tmp_path, name="rates")
    rows, (scanned,) = results.table, results.table[results.table["kind"] == "scan"].to_dict("records")
    trained = rows[rows["kind"] == "train"]
    assert len(trained) == 2 and set(trained["lr"]) == {scanned["lr"]} and set(trained["steps"]) == {6}
    found = trainings(results)
    rates = found["rates"]
    kept = rates[~rates["pruned"]]
    assert set(kept["steps"]) == {4} and set(rates.loc[rates["pruned"], "steps"]) == {2}
    assert rates.loc[rates["best"], "nats"].item() == rates["nats"].min()
    assert rates.loc[rates["best"], "lr"].item() == scanned["lr"] < 1
    assert found["budget"].iloc[0][["trainings", "at_cap"]].tolist() == [2, 0]
    assert scans(rates)["tried"].item().startswith(f"{len(rates)}, ")
    assert not (tmp_path / "runs" / scanned["run"]).exists()
