"""What a training is made of: its curves while it runs, its checkpoint, text that fits its model."""

import json
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.config.schema import ModelConfig
from qrun.errors import InputError
from qrun.evaluation.questions import answer
from qrun.language.corpus import Corpus
from qrun.language.models import load
from qrun.language.questions import Question
from qrun.recipes import fitting
from qrun.recipes.compress import compress_into
from qrun.recipes.fitting import _curve, prepared, validation_task
from qrun.recipes.generate import generate
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


@pytest.fixture(scope="module")
def foreign(tiny_folder, tmp_path_factory):
    """A model whose tokenizer has a token more than it has."""
    folder = tmp_path_factory.mktemp("foreign")
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzzz"])
    tokenizer.save_pretrained(folder)
    return folder


WORDS = ["model=local", "model.device=cpu", "protocol.ctx=64", "training.context=64", "training.eval_tokens=320"]


@pytest.mark.parametrize("way", ["validation", "answers", "generation", "compression"])
def test_a_token_that_the_model_does_not_have_is_one_line_wherever_it_stands(foreign, tmp_path, way):
    language = load(ModelConfig(name="foreign", path=str(foreign)))
    text = tmp_path / "text.json"
    text.write_text(json.dumps([f"a zzzz of text {i} " * 30 for i in range(60)]))
    model, documents = [f"model.path={foreign}", "model=local"], ["data=text", f"data.path={text}"]

    def validated():
        corpus = Corpus("x", {"validation": ["a zzzz of text " * 40]}, "here")
        opened = SimpleNamespace(language=language, corpus=corpus)
        return validation_task(compose("train", [*WORDS, *model]), opened)

    asked = [Question("sums 0", "", "One?", (" zzzz", " b"), ("", ""), 0)]
    ways = {
        "validation": validated,
        "answers": lambda: answer(language.model, language.tokenizer, asked, 2),
        "generation": lambda: generate(compose("generate", [*model, "adapter.path=null"]), "a zzzz"),
        "compression": lambda: compress_into(
            compose("compress", [*model, *documents, "compression=asvd", "compression.calibration=64"]),
            tmp_path / "small",
        ),
    }
    with pytest.raises(InputError, match="take the tokenizer that belongs to the model"):
        ways[way]()


@pytest.mark.slow
def test_calibration_takes_as_many_short_documents_as_it_needs(tiny_folder, tmp_path):
    text = tmp_path / "text.json"
    text.write_text(json.dumps([f"line {i}" for i in range(900)]))
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={text}", "compression=asvd"]
    facts = compress_into(compose("compress", [*words, "compression.calibration=512"]), tmp_path / "small")
    assert facts["kept_ratio"] < 1
    with pytest.raises(InputError, match=r"calibration=100000: the training split has only [0-9]{4} tokens"):
        compress_into(compose("compress", [*words, "compression.calibration=100000"]), tmp_path / "other")
