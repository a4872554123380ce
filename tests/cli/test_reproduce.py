"""The whole paper in one command: which words go where, the estimate, what commands leave to each other, failures."""

import pandas as pd
import pytest

from qrun.cells.keys import Keys
from qrun.cli import reproduce
from qrun.cli.reproduce import Command, Missing, Published, Stated, compare, configure, left_by, opened, stated
from qrun.config.tree import options
from qrun.errors import InputError, RunFailed
from qrun.evaluation.results import Results

SIZES = sorted(options()["reproduce"])
TINY = [
    "data=text", "training.steps=2", "training.context=32", "training.batch=1", "training.accumulation=1",
    "training.warmup=1", "training.eval_tokens=100", "protocol.ctx=32", "evaluation.max_tokens=300",
    "evaluation.resamples=99", "evaluation.batch=2", "study.dims=[4]", "study.seeds=[0]", "study.trials=1",
    "study.sites=[one]", "study.rates=[1e-3]", "study.readout_rates=[1e-3]", "adapter.layers=last",
    "questions=continuation", "questions.limit=2", "trials=1", "temperatures=[1.0]",
]  # fmt: skip


def test_sizes_are_those_of_the_paper_and_nano_at_all_sites_and_at_one():
    assert SIZES == ["llama", "nano", "nano_v_proj", "smollm2"]


@pytest.mark.parametrize("size", SIZES)
def test_every_command_of_a_size_composes_without_weights(size):
    for command in configure([f"reproduce={size}"]).reproduce.steps:
        step = stated(command)
        assert step.study is None or step.cells()


def test_words_go_to_the_commands_that_have_their_key_and_nowhere_else():
    config = configure(["reproduce=smollm2", "study.dims=[4]", "model.path=/m", "training.steps=2", "results=/r"])
    runs = [step.run for step in config.reproduce.steps]
    assert config.results == "/r"
    assert [("study.dims" in run, "training.steps=2" in run) for run in runs] == [
        (False, False), (False, False), *[(True, True)] * 8, (False, False),
    ]  # fmt: skip
    assert all("model.path=/m" in run for run in runs[:-1])
    assert "model.path={model}" in runs[-1] and "original.path=/m" in runs[-1] and "model.path=/m" not in runs[-1]


def test_a_key_of_an_optional_model_goes_to_the_command_that_has_one():
    runs = [step.run for step in configure(["reproduce=smollm2", "original.shape=null"]).reproduce.steps]
    assert ["original.shape=null" in run for run in runs] == [False] * 10 + [True]
    assert stated(Command(runs[-1].replace("{path}", "/m"))).config.original.shape is None


def test_a_word_that_no_command_has_is_refused(qrun):
    with pytest.raises(InputError, match=r"study.dimz=\[2\]: no command takes it"):
        configure(["reproduce=nano", "study.dimz=[2]"])
    code, _, err = qrun("reproduce", "reproduce=nano", "experiment=routed")
    assert code == 2 and err == "qrun: experiment=routed: no command takes it; each command has its own\n"
    assert "reproduce has llama, nano, nano_v_proj, smollm2" in qrun("reproduce", "reproduce=big")[2]


def test_folders_that_commands_leave_go_into_later_ones(tmp_path):
    command = Command("eval perplexity -m model.path={model} adapter.path={adapter}")
    step = opened(command, {"model": "/made", "adapter": "/trained"})
    assert step.config.model.path == "/made" and "adapter.path=/trained" in step.typed
    with pytest.raises(Missing, match="model"):
        opened(command, {"adapter": "/trained"})


def test_braces_in_a_path_are_its_own():
    commands = configure(["reproduce=smollm2", "model.path=/tmp/{a}"]).reproduce.steps
    assert stated(commands[2]).config.model.path == "/tmp/{a}"
    last = opened(commands[-1], {"model": "/made", "adapter": "/trained"}).config
    assert (last.model.path, last.original.path, last.adapter.path) == ("/made", "/tmp/{a}", "/trained")


def test_all_failed_commands_are_named_also_without_a_report(monkeypatch, tmp_path):
    def run(*_):
        raise RunFailed("all cells failed")

    monkeypatch.setattr(reproduce, "run_study", run)
    monkeypatch.setattr(reproduce, "estimate", lambda steps: None)
    with pytest.raises(RunFailed, match="13 of 14 commands failed"):
        reproduce.reproduce(configure(["reproduce=nano", f"results={tmp_path}"]), False)


def test_questions_are_asked_of_the_first_adapter_in_the_most_compressed_model():
    made, trained = left_by(stated(Command("recover")).cells(), Keys(Stated()))
    assert made.axes == {"text": "shifted", "ratio": 0.6}
    assert {key: trained.axes[key] for key in ("text", "ratio", "what", "b", "seed")} == {
        "text": "shifted", "ratio": 0.6, "what": "adapter, distilled", "b": 4, "seed": 0,
    }  # fmt: skip
    made, trained = left_by(stated(Command("train -m adapter=paper")).cells(), Keys(Stated()))
    assert made is None and trained.task.config.adapter.projections == ["v_proj"]


@pytest.mark.long
def test_the_estimate_counts_shared_cells_once_and_reads_no_weights(qrun, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "speed", lambda *_: 2e12)
    code, out, err = qrun("reproduce", "reproduce=smollm2", "--dry-run", f"results={tmp_path}/none")
    assert code == 0, err
    rows = {line.split("qrun ")[1].strip(): line.split()[:3] for line in out.splitlines() if "qrun sweep" in line}
    dim, wall = (rows[f"sweep {name} experiment=smollm2_{name}"] for name in ("dim", "wall"))
    assert dim[0] == "385" and int(wall[1]) < int(wall[0])  # its adapters are those of sweep dim and sweep noise
    assert int(dim[2].replace(",", "")) > 0 and "GiB a process" in out and "nothing was run" in out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("found", "warned"), [(8.9, False), (9.2, True), (float("nan"), True), (128_000.0, True)])
def test_a_number_far_from_what_is_published_is_warned_of(found, warned, capsys):
    compare(Results(pd.DataFrame({"perplexity": [found]}), {}), Published(8.877, 0.03, "the paper"))
    out = capsys.readouterr().out
    assert "published 8.877 (the paper)" in out and ("WARNING" in out) is warned


@pytest.mark.parametrize("error", [RunFailed, InputError])
def test_a_failed_command_is_named_at_the_end_and_stops_only_what_needs_it(monkeypatch, tmp_path, capsys, error):
    ran = []

    def run(name, module, config, dry_run, typed):
        ran.append(" ".join(typed[:2]))
        if name == "recover":
            raise error("compression.ratio=0.001: a rank of 0")

    monkeypatch.setattr(reproduce, "run_study", run)
    monkeypatch.setattr(reproduce, "estimate", lambda steps: None)
    monkeypatch.setattr(reproduce, "leaves", lambda *_: {})
    monkeypatch.setattr(reproduce, "report", lambda *_: ran.append("report"))
    with pytest.raises(RunFailed, match=r"2 of 14 commands failed: recover.*\(no model was left.*goes on"):
        reproduce.reproduce(configure(["reproduce=nano", f"results={tmp_path}"]), False)
    assert ran[-2:] == [f"recover results={tmp_path}", "report"] and ran.count("sweep noise") == 3
    assert "failed: compression.ratio=0.001: a rank of 0" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.data
def test_llama_runs_to_its_report_and_a_second_time_computes_nothing(qrun, tiny_folder, story_file, tmp_path):
    own = [f"data.path={story_file}", f"model.path={tiny_folder}", "model.shape=null", f"results={tmp_path}/r"]
    words = [*TINY, *own]  # shape: the folder may be of another model
    code, out, err = qrun("reproduce", "reproduce=llama", *words)
    assert code == 0, err
    assert out.count("WARNING: farther than 3%") == 2 and "1,328" not in out  # a tiny model has fewer blocks
    noise = next((tmp_path / "r" / "report" / "noise").glob("*/page.md")).read_text()
    assert "qrun sweep noise experiment=llama_noise" in noise and "qrun reproduce" not in noise
    code, out, err = qrun("reproduce", "reproduce=llama", *words)
    assert code == 0 and out.count(", 0 to compute") == 5, err
