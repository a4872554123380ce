"""`qrun eval questions` and lm-evaluation-harness on the same questions, item by item."""

import copy
import csv
import json
import random
import shutil
from pathlib import Path

import lm_eval
import numpy as np
import pytest

from qrun.config.schema import ModelConfig, QuestionsConfig
from qrun.evaluation.questions import answer
from qrun.language import models, questions
from qrun.language.questions import Question
from qrun.tracking.store import Store

pytestmark = pytest.mark.slow

MMLU = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default" / "mmlu_astronomy.yaml"  # the harness's own
LOCAL = """task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {files}
test_split: test
output_type: multiple_choice
metric_list:
  - metric: acc
  - metric: acc_norm
"""
CONTINUED = LOCAL + "doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\n"


def written(folder, **splits):
    """Splits as files of JSON lines, by name."""
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in splits}


def of_subject(shared, split):
    """Rows of the shared MMLU as the harness's template wants them."""
    with (shared / "mmlu" / split / f"astronomy_{split}.csv").open(newline="") as file:
        next(file)
        return [{"question": q, "choices": choices, "answer": int(a)} for q, *choices, a in csv.reader(file)]


def theirs(language, folder, chat=False, **more):
    """The harness's samples in order."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    scored = HFLM(pretrained=language.model, tokenizer=copy.deepcopy(language.tokenizer), batch_size=4)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=scored, tasks=["local"], task_manager=manager, apply_chat_template=chat, log_samples=True, **more
    )
    return sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"]), found["results"]["local"]


def ours(qrun, model, *words):
    """Answers of one arm, its metrics, and what was printed."""
    results = Path(model).parent / "r"
    here = ["model=local", f"model.path={model}", "model.device=cpu", f"results={results}", "trials=1"]
    code, out, err = qrun("eval", "questions", *here, *words, "launcher.workers=1")
    assert code == 0, err
    ((_, run),) = Store(results).tagged("study", "cell_key", "FINISHED").items()
    recorded = Store(results).recorded(run.run_id)
    return [json.loads(line) for line in recorded.text("answers.jsonl").splitlines()], recorded.metrics, out


def same(qrun, language, model, folder, words, count, chat=False, **more):
    """Every likelihood, both accuracies and every chosen answer are the harness's; returns our metrics, rows, text."""
    samples, stated = theirs(language, folder, chat, limit=count, **more)
    rows, metrics, told = ours(qrun, model, *words, f"questions.limit={count}")
    assert len(rows) == len(samples) == count == metrics["questions"]
    for row, sample in zip(rows, samples, strict=True):
        sums = [value for ((value, _),) in sample["resps"]]
        assert row["loglikelihoods"] == pytest.approx(sums, abs=1e-4)
        assert (row["chosen"] == row["answer"]) == sample["acc_norm"]
        assert (np.argmax(row["loglikelihoods"]) == row["answer"]) == sample["acc"]
    assert metrics["acc"] == pytest.approx(stated["acc,none"])
    assert metrics["right"] == pytest.approx(stated["acc_norm,none"])
    return metrics, rows, told


@pytest.fixture
def stories(shared, tmp_path):
    """A trained model whose tokenizer is SentencePiece's and begins every text with <s>, beside the results."""
    model = tmp_path / "model"
    model.symlink_to(shared / "models" / "stories260K" / "hf")
    return model, models.load(ModelConfig(name="local", path=str(model), device="cpu"))


@pytest.mark.data
@pytest.mark.parametrize("examples", [pytest.param(0, marks=pytest.mark.long), 5])
def test_letters_are_scored_as_the_harnesss_own_template_of_mmlu_has_them(qrun, shared, stories, tmp_path, examples):
    files = written(tmp_path, **{split: of_subject(shared, split) for split in ("test", "dev")})
    (tmp_path / "local.yaml").write_text(f"include: {MMLU}\n" + LOCAL.format(name="local", files=files))
    asked = [f"questions.path={shared / 'mmlu'}", "questions.subjects=[astronomy]", f"questions.examples={examples}"]
    model, language = stories
    metrics, rows, told = same(qrun, language, model, tmp_path, ["questions=mmlu", *asked], 50, num_fewshot=examples)
    cut = [row for row in rows if row["lost_tokens"]]
    assert metrics["truncated"] == len(cut) and (len(cut) == 50 if examples else 0 < len(cut) < 50)
    assert metrics["right"] == metrics["acc"]
    assert "| beginning lost |" in told and f"] | {len(cut)} |" in told


@pytest.mark.data
def test_passages_of_differing_length_are_scored_as_a_task_of_texts(qrun, stories, tmp_path):
    built = questions.load(QuestionsConfig("continuation", "continuation", limit=50, characters=60), 0).questions
    rows = [{"question": q.prompt, "choices": [c[1:] for c in q.choices], "answer": q.answer} for q in built]
    (tmp_path / "local.yaml").write_text(CONTINUED.format(name="local", files=written(tmp_path, test=rows)))
    model, language = stories
    _, answered, _ = same(qrun, language, model, tmp_path, ["questions.characters=60"], 50)
    assert any(np.argmax(row["loglikelihoods"]) != row["chosen"] for row in answered)  # lengths differ, and decide


WORDS = [
    "gates",
    "der Drehung größe",
    "a block of text",
    "回転",
    "naïve é",
    "weights",
    "🙂🙂",
    "reads it",
    "x",
    "Ωmega",
]


def test_two_to_five_texts_of_any_alphabet_are_normalised_by_their_characters(tiny, tmp_path):
    rng, rows = random.Random(0), []
    for index in range(60):
        choices = [" ".join(rng.sample(WORDS, rng.randint(1, 3))) for _ in range(rng.randint(2, 5))]
        rows.append({"question": f"The model {index}:", "choices": choices, "answer": rng.randrange(len(choices))})
    (tmp_path / "local.yaml").write_text(CONTINUED.format(name="local", files=written(tmp_path, test=rows)))
    samples, stated = theirs(tiny, tmp_path)
    asked = [
        Question("q", "", row["question"], tuple(f" {c}" for c in row["choices"]), (), row["answer"]) for row in rows
    ]
    found = answer(tiny.model, tiny.tokenizer, asked, 8)
    assert found.correct.tolist() == [sample["acc_norm"] for sample in samples]
    assert found.likeliest.tolist() == [sample["acc"] for sample in samples]
    assert found.correct.mean() == stated["acc_norm,none"] and (found.likeliest != found.correct).any()
    for sums, sample in zip(found.likelihood, samples, strict=True):
        expected = [value for ((value, _),) in sample["resps"]]
        assert sums[: len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


ROLES = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"


@pytest.mark.data
@pytest.mark.parametrize(
    "template",
    [
        pytest.param("<s>" + ROLES, marks=pytest.mark.long),
        pytest.param(ROLES, marks=pytest.mark.long),
        REFUSES + ROLES,
    ],
    ids=["special", "bare", "refuses"],
)
def test_a_chat_has_topic_examples_and_special_tokens_as_the_harness_writes_them(qrun, shared, tmp_path, template):
    model = tmp_path / "model"
    shutil.copytree(shared / "models" / "stories260K" / "hf", model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    rng = random.Random(0)
    splits = {
        f"astronomy_{split}": [
            {"question": f"{split} {k}?", "choices": rng.sample(["red", "a cat", "Tom", "rain"], 4), "answer": k % 4}
            for k in range(50)
        ]
        for split in ("test", "dev")
    }
    files = {name.split("_")[1]: file for name, file in written(tmp_path, **splits).items()}
    (tmp_path / "local.yaml").write_text(f"include: {MMLU}\n" + LOCAL.format(name="local", files=files))
    language = models.load(ModelConfig(name="local", path=str(model), device="cpu"))
    asked = ["questions=mmlu", f"questions.path={tmp_path}", "questions.subjects=[astronomy]", "questions.examples=2"]
    metrics, _, _ = same(
        qrun, language, model, tmp_path, [*asked, "prompt.chat=on"], 50, chat=True, num_fewshot=2,
    )  # fmt: skip
    assert metrics["truncated"] == 0
