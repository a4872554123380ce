"""Benchmarks of lm-evaluation-harness, with the harness itself as the oracle of the frozen model."""

import json
import random

import numpy as np
import pytest
import torch

from qrun.adapters.linear import attach, detach
from qrun.adapters.saving import save
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig
from qrun.recipes.harness import paired
from qrun.tracking.store import Store

pytestmark = pytest.mark.slow

TASK = """task: {name}
dataset_path: {kind}
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_choice: "{choices}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory):
    """A task of 40 made-up questions, data and YAML on this machine."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(0)
    words = ["gates", "reads", "a block", "of text", "rotates", "each slice", "before", "the weight"]
    with (folder / "made.jsonl").open("w") as file:
        for index in range(40):
            choices = rng.sample(words, 4)
            asked = {"question": f"The model {index}", "choices": choices, "answer": rng.randrange(4)}
            file.write(json.dumps(asked) + "\n")
    task = {"kind": "json", "file": folder / "made.jsonl", "text": "{{question}}", "choices": "{{choices}}"}
    (folder / "made.yaml").write_text(TASK.format(name="made", **task))
    return folder


@pytest.fixture
def words(nano, tmp_path):
    """A command with an adapter that turns much."""
    adapter = attach(nano.model, select(sites(nano.shape), ["v_proj", "down_proj"], ["all"]), AdapterConfig(dim=4))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.tensors().values():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    save(tmp_path / "adapter", adapter, nano.identity, {})
    detach(nano.model, adapter)
    return ["model.device=cpu", f"results={tmp_path / 'r'}", "name=run", f"adapter.path={tmp_path / 'adapter'}"]


def harness(language, include, task, limit=None):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    scored = HFLM(pretrained=language.model, tokenizer=language.tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(include))
    return simple_evaluate(model=scored, tasks=[task], task_manager=manager, limit=limit)["results"][task]


@pytest.mark.long
def test_the_frozen_models_numbers_are_the_harnesss_and_differences_are_paired(
    qrun, words, nano, tasks_folder, tmp_path
):
    device = ["device=shots", "device.shots=null", "signs=exact"]
    code, out, err = qrun("eval", "tasks", "tasks=[made]", f"include_path={tasks_folder}", *words, *device)
    assert code == 0, err
    run = Store(tmp_path / "r").recorded(Store(tmp_path / "r").find("run").info.run_id)
    plain = harness(nano, tasks_folder, "made")
    for metric in ("acc", "acc_norm"):
        assert run.metrics[f"base/made/{metric}"] == plain[f"{metric},none"]
        assert run.metrics[f"base/made/{metric}_stderr"] == plain[f"{metric}_stderr,none"] > 0
        assert run.metrics[f"shots/made/{metric}"] == run.metrics[f"adapted/made/{metric}"]
        gain = run.metrics[f"adapted/made/{metric}"] - run.metrics[f"base/made/{metric}"]
        assert run.metrics[f"gain/made/{metric}"] == pytest.approx(gain)
    right = {
        arm: np.array([json.loads(line)["acc"] for line in run.text(f"samples_{arm}.jsonl").splitlines()])
        for arm in ("base", "adapted")
    }
    change = right["adapted"] - right["base"]
    assert len(change) == 40 and change.any()
    error = change.std(ddof=1) / 40**0.5
    assert run.metrics["gain/made/acc_stderr"] == pytest.approx(error)
    assert run.tags["device"] == "shots" and run.tags["chat"] == "false" and len(run.tags["tasks_digest"]) == 16
    assert run.metrics["circuit/circuits"] > 0 and f"{change.mean():+.4f}" in out and "made" in out
    code, out, err = qrun("rerun", "run", "--results", tmp_path / "r")
    assert code == 0 and "numbers and files of 1 run have the same bits" in out, err
    assert int(out.split(" numbers and files")[0].split()[-1]) >= 20


@pytest.mark.data
@pytest.mark.long
def test_questions_of_a_shared_file_are_a_task_like_any_other(qrun, nano, shared, tmp_path):
    choices = "{{[choice0, choice1, choice2, choice3]}}"
    file = shared / "mmlu" / "test" / "astronomy_test.csv"
    task = {"kind": "csv", "file": file, "text": "{{question}}", "choices": choices}
    (tmp_path / "stars.yaml").write_text(TASK.format(name="stars", **task))
    words = [f"include_path={tmp_path}", f"results={tmp_path / 'r'}", "name=run", "limit=12", "batch=4"]
    code, _, err = qrun("eval", "tasks", "tasks=[stars]", "model.device=cpu", *words)
    assert code == 0, err
    found = Store(tmp_path / "r").find("run").data
    plain = harness(nano, tmp_path, "stars", 12)
    for metric in ("acc", "acc_norm"):
        assert found.metrics[f"base/stars/{metric}"] == plain[f"{metric},none"]
    assert not any(name.startswith("gain") for name in found.metrics)


def test_only_means_over_documents_are_paired():
    def results(values, stated):
        samples = [
            {"doc_id": i, "filter": "none", "metrics": ["acc", "ppl", "pair"], "acc": v, "ppl": v, "pair": (v, v)}
            for i, v in enumerate(values)
        ]
        return {
            "results": {"t": {"acc,none": np.mean(values), "ppl,none": stated, "alias": "t"}},
            "samples": {"t": samples},
        }

    first, second = results([0.0, 1.0, 0.0, 1.0], 5.0), results([1.0, 1.0, 0.0, 1.0], 4.0)
    (only,) = paired(first, second).items()
    assert only[0] == ("t", "acc") and only[1].value == 0.25 and only[1].error == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["tasks=[arc_easi]"], "tasks=arc_easi: no task of lm-evaluation-harness; near it: arc_eas"),
        (["tasks=[]"], "tasks=[]: name one or more"),
        (["tasks=[arc_easy]", "include_path=/nowhere"], "include_path=/nowhere: no such folder"),
        (["tasks=[arc_easy]"], "tasks=[arc_easy]: their data could not be read (HF_HUB_OFFLINE is set)"),
        (["tasks=[made]", "device=shots"], "device.kind=shots: no adapter to run there"),
    ],
    ids=str,
)
def test_a_wrong_word_about_tasks_is_told_in_one_line(qrun, tmp_path, given, said):
    code, _, err = qrun("eval", "tasks", *given, "model.device=cpu", f"results={tmp_path / 'r'}")
    assert code == 2 and said in err, err
    assert len([line for line in err.splitlines() if line.startswith("qrun:")]) == 1
