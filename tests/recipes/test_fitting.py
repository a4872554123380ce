"""The curves of a training in the store while it runs."""

import pytest

from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.recipes import fitting
from qrun.recipes.fitting import _curve, prepared
from qrun.tracking.store import Store
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(fitting.time, "monotonic", lambda: now[0])
    return now


class Sent:
    """A run that remembers the last step of each request."""

    def __init__(self):
        self.last = []

    def series(self, rows):
        self.last.append(rows[-1][0])


def steps(on_step, clock, seconds, first, last):
    """Steps first to last, validated at multiples of 50."""
    progress = Progress(evaluations=[{"step": first - first % 50, "validation_nats": 3.0}])
    progress.history = [{"step": step, "loss": 4.0, "cross_entropy": 4.0} for step in range(1, first + 1)]
    for step in range(first + 1, last + 1):
        clock[0] += seconds
        progress.step = step
        progress.history.append({"step": step, "loss": 4.0, "cross_entropy": 4.0})
        if step % 50 == 0:
            progress.evaluations.append({"step": step, "validation_nats": 2.0})
        on_step(progress)


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [(1.0, [20, 40, 50, 70, 90]), (0.0625, [32, 50, 82]), (0.0, [50])],
    ids=["slow", "fast", "idle"],
)
def test_steps_are_logged_while_training_runs_and_no_oftener_than_a_store_likes(seconds, sent, clock):
    run = Sent()
    steps(_curve(run, False, Interrupt(), lambda *_: None), clock, seconds, 0, 95)
    assert run.last == sent


def test_a_run_killed_between_its_log_and_its_checkpoint_has_no_step_twice(tmp_path, clock):
    store = Store(str(tmp_path))
    with store.run("train", "killed", {}, {}) as run:
        steps(_curve(run, False, Interrupt(), lambda *_: None), clock, 1.0, 0, 70)
        steps(_curve(run, True, Interrupt(), lambda *_: None), clock, 1.0, 40, 120)  # its checkpoint was of step 40
    for metric, expected in (("train/loss", list(range(1, 121))), ("validation/nats", [50, 100])):
        assert [point.step for point in store.client.get_metric_history(run.run_id, metric)] == expected


def test_a_cells_checkpoint_is_of_its_key_and_rate_whatever_changes_no_number(tiny_folder, story_file):
    model = ["model=local", f"model.path={tiny_folder}", "model.device=cpu", "data=text", f"data.path={story_file}"]
    words = [*model, "protocol.ctx=64", "training.context=64", "training.batch=2", "evaluation.max_tokens=300"]
    workspace = Workspace()

    def facts(key, *more):
        with prepared(compose("train", [*words, *more]), workspace, key) as job:
            return job.facts

    of_cell, of_run = facts("k"), facts(None)
    assert facts("k", "evaluation.resamples=999") == of_cell != facts("other")
    assert facts("k", "training.lr=0.5") != of_cell  # a trial of a scan, whose key all its rates share
    assert facts(None, "evaluation.resamples=999") != of_run and "config_hash" in of_run
