"""Likelihoods against a direct sum, McNemar against a hand count, and what chance gives."""

import numpy as np
import pytest
import torch
from scipy import stats

from qrun.config.schema import QuestionsConfig
from qrun.errors import InputError
from qrun.evaluation.questions import Answers, answer, binomial_interval, both_fail, mcnemar
from qrun.language.questions import load
from qrun.studies import configure

MMLU = "question,choice0,choice1,choice2,choice3,answer\nOne and one?,1,2,3,4,1\nTwo and two?,1,2,3,4,3\n"


def mmlu(path, text=MMLU, **more):
    (path / "sums_test.csv").write_text(text)
    (path / "sums_dev.csv").write_text("Zero and one?,1,2,3,4,A\n")
    return QuestionsConfig(name="mmlu", source="mmlu", path=str(path), **more)


def test_likelihood_is_the_sum_over_the_tokens_of_the_choice(tiny, tmp_path):
    asked = load(mmlu(tmp_path), 0).questions
    found = answer(tiny.model, tiny.tokenizer, asked, 3)
    assert found.likelihood.shape == (2, 4) and found.right.tolist() == [1, 3]
    prompt, choice = (tiny.tokenizer(text)["input_ids"] for text in (asked[1].prompt, asked[1].choices[2]))
    with torch.no_grad():
        logs = tiny.model(input_ids=torch.tensor([prompt + choice])).logits[0].double().log_softmax(-1)
    direct = sum(float(logs[len(prompt) - 1 + k, token]) for k, token in enumerate(choice))
    assert found.likelihood[1, 2] == pytest.approx(direct, abs=1e-4)


@pytest.mark.slow
def test_continuation_is_built_by_seed_from_held_out_text_and_nano_is_far_above_chance(nano):
    config = QuestionsConfig(name="continuation", source="continuation", limit=24)
    first, again, other = load(config, 0), load(config, 0), load(config, 1)
    assert first.digest == again.digest != other.digest and len(first.questions) == 24
    assert {q.answer for q in first.questions} == {0, 1, 2, 3}
    assert all(len(set(q.choices)) == 4 and 100 < len(c) <= 161 for q in first.questions for c in q.choices)
    assert answer(nano.model, nano.tokenizer, first.questions, 16).correct.mean() > 0.45


def test_examples_go_before_each_question_and_letters_are_answers(tmp_path):
    question = load(mmlu(tmp_path, examples=1), 0).questions[0]
    assert "about sums" in question.prompt and question.prompt.index("Zero and one?") < question.prompt.index(
        "One and one?"
    )
    assert (
        "Answer: A\n\n" in question.prompt
        and question.prompt.endswith("Answer:")
        and question.choices == (" A", " B", " C", " D")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question,a,b,answer\nx,1,2,0\n", "has 4 columns; expected question, four choices, answer"),
        ("q,1,2,3,4,E\n", "answer 'E'; expected 0-3 or A-D"),
        ("", "no questions there"),
    ],
)
def test_wrong_columns_are_named(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load(mmlu(tmp_path, text), 0)


def test_parquet_is_read_and_its_columns_checked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "sums" / "test-00000.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"question": ["One?"], "choices": [["1", "2", "3", "4"]], "answer": [0]}), path)
    config = QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path))
    assert load(config, 0).questions[0].shown == ("1", "2", "3", "4")
    pq.write_table(pa.table({"question": ["One?"], "options": [["1", "2", "3", "4"]], "answer": [0]}), path)
    with pytest.raises(InputError, match="no column choices"):
        load(config, 0)


@pytest.mark.data
def test_the_papers_two_questions_stand_where_the_config_says(shared):

    config = configure("questions", ["questions=paper", f"questions.path={shared / 'mmlu'}"]).questions
    first, second = load(config, 0).questions
    assert first.text == "Which of the jovian planets have rings?" and first.shown[first.answer] == "all of the above"
    assert (
        second.text.startswith("Gene flow between populations results in")
        and "genetic homogeneity" in second.shown[second.answer]
    )


def test_sampling_goes_to_the_likeliest_as_the_temperature_falls_and_to_chance_as_it_rises():
    found = Answers(np.tile([0.0, -1.0, -2.0, -3.0], (500, 1)), np.ones((500, 4), int), np.zeros(500, int))
    cold, even = (found.sampled(t, 20, 0).mean() / 20 for t in (0.05, 1000.0))
    p = np.exp([0.0, -1, -2, -3]) / np.exp([0.0, -1, -2, -3]).sum()
    assert (
        cold == 1.0
        and even == pytest.approx(0.25, abs=0.02)
        and found.sampled(1.0, 20, 0).mean() / 20 == pytest.approx(p[0], abs=0.02)
    )


def test_mcnemar_counts_changed_answers_only():
    first = np.array([True] * 10 + [False] * 10)
    second = np.array([True] * 9 + [False] * 3 + [True] * 8)
    found = mcnemar(first, second)
    assert found["right_to_wrong"] == [9] and found["wrong_to_right"] == list(range(12, 20))
    assert found["p"] == pytest.approx(2 * stats.binom.cdf(1, 9, 0.5))


def test_what_both_fail_is_compared_with_random_changes():
    before = np.full(30, 2)  # where choice 0 is right
    after = np.where(np.arange(30) < 5, 0, np.where(np.arange(30) < 15, 3, 2))
    found = both_fail(np.zeros(30, bool), before == 0, after == 0, before, after)
    assert found["failed"] == 30 and found["answered"] == [0, 1, 2, 3, 4] and found["flips"] == 5.0
    assert found["changed"] == 15 and found["guessing"] == 7.5
    assert found["p"] == pytest.approx(stats.binom.sf(4, 15, 1 / 3))


def test_binomial_interval_is_clopper_pearson():
    low, high = binomial_interval(7, 20)
    assert low == pytest.approx(stats.beta.ppf(0.025, 7, 14)) and high == pytest.approx(stats.beta.ppf(0.975, 8, 13))
