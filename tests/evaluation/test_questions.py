"""Likelihoods against a direct sum, McNemar against a hand count, and what chance gives."""

import argparse
import copy
import difflib
import json
import random
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from scipy import stats

from qrun.config.schema import QuestionsConfig
from qrun.errors import InputError
from qrun.evaluation.questions import (
    Answers,
    answer,
    binomial_interval,
    both_fail,
    clustered_p,
    clustered_share,
    encoded,
    mcnemar,
    share_right,
)
from qrun.language.questions import Question, in_chat, load
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
    short = load(QuestionsConfig(name="continuation", source="continuation", limit=100, characters=20), 0).questions
    assert max(len(c) for q in short for c in q.choices) <= 21  # also where a word is longer than that
    assert answer(nano.model, nano.tokenizer, first.questions, 16).correct.mean() > 0.45


def test_a_subject_of_several_files_is_asked_once_and_whole(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name, *questions):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = {"question": questions, "choices": [["1", "2"]] * len(questions), "answer": [0] * len(questions)}
        pq.write_table(pa.table(rows), path)
        return path

    def texts(**words):
        found = load(QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path), **words), 0)
        return [question.text for question in found.questions]

    last = write("sums/test-00001-of-00002.parquet", "Two?")
    write("sums/test-00000-of-00002.parquet", "Zero?", "One?")
    assert texts() == texts(subjects=["sums"]) == ["Zero?", "One?", "Two?"]
    everything = write("all/test-00000-of-00001.parquet", "Zero?", "One?", "Two?", "Three?")
    assert texts() == ["Zero?", "One?", "Two?", "Three?"] and len(texts(subjects=["all", "sums"])) == 7
    everything.unlink()
    last.unlink()
    with pytest.raises(InputError, match="sums has 1 files that are not one set"):
        texts()
    (tmp_path / "sums_test.csv").write_text(MMLU)
    with pytest.raises(InputError, match=r"sums has 2 files that are not one set of questions: .*sums_test.csv"):
        texts()
    with pytest.raises(InputError, match=r"subjects=\['a', 'b'\]: .*sums_test.csv is one file"):
        load(QuestionsConfig("mmlu", "mmlu", path=str(tmp_path / "sums_test.csv"), subjects=["a", "b"]), 0)


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
        ("question,a,answer\nx,1,0\n", "has 3 columns; expected question, 2 to 10 choices, answer"),
        ("q,1,2,3,4,E\n", "answer 'E'; expected 0-3 or A-D"),
        ("q,1,2,,,C\n", "answer 'C'; expected 0-1 or A-B"),
        ("q,1,,3,4,A\n", "expected a question and 2 to 10 choices, all texts in UTF-8, none of them blank"),
        ("", "no questions there"),
        (
            "answer,question,a,b\nA,x,1,2\n",
            "the columns are answer, question, a, b; expected question, 2 to 10 choices",
        ),
        ("id,Question,a,b,Answer\n7,x,1,2,A\n", "the columns are id, question, a, b, answer; expected question"),
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


def test_a_file_of_ones_own_is_told_apart_by_its_ending_and_gives_the_subject_its_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"question": "One?", "choices": ["1", "2"], "answer": "B"}
    pq.write_table(pa.table({key: [value] for key, value in row.items()}), tmp_path / "sums.parquet")
    (tmp_path / "sums.CSV").write_text("Question,A,B,Answer\nOne?,1,2,B\n")
    for suffix in (".json", ".jsonl"):
        (tmp_path / f"sums{suffix}").write_text(json.dumps(row))
    own = configure("questions", ["questions=own"]).questions
    for suffix in (".parquet", ".CSV", ".json", ".jsonl"):
        (question,) = load(replace(own, path=str(tmp_path / f"sums{suffix}")), 0).questions
        assert (question.name, question.shown, question.answer) == ("sums 0", ("1", "2"), 1)
        assert "(with answers) about sums.\n\nOne?\nA. 1\nB. 2\nAnswer:" in question.prompt
    (tmp_path / "sums.tsv").write_text("One?\t1\t2\tB\n")
    with pytest.raises(InputError, match=r"sums.tsv: give a .csv, .jsonl or .parquet file"):
        load(replace(own, path=str(tmp_path / "sums.tsv")), 0)
    with pytest.raises(InputError, match=r"questions=own \(questions.source=mmlu\): give questions.path="):
        load(own, 0)


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
    found = Answers(np.tile([0.0, -1.0, -2.0, -3.0], (500, 1)), np.ones((500, 4), int), *np.zeros((2, 500), int))
    cold, even = (found.sampled(t, 20, 0).mean() / 20 for t in (0.05, 1000.0))
    p = np.exp([0.0, -1, -2, -3]) / np.exp([0.0, -1, -2, -3]).sum()
    assert (
        cold == 1.0
        and even == pytest.approx(0.25, abs=0.02)
        and found.sampled(1.0, 20, 0).mean() / 20 == pytest.approx(p[0], abs=0.02)
    )


def test_sampling_weighs_a_choice_by_its_likelihood_per_character():
    """Score times the mean length: 2 of 2 characters and 8 of 4 at -4 nats each, T = 2."""
    likelihood, characters = np.tile([-4.0, -8.0], (4000, 1)), np.tile([2, 8], (4000, 1))
    found = Answers(likelihood, characters, *np.zeros((2, 4000), int))
    logits = np.array([-4 / 2, -8 / 8]) * 5 / 2
    p = np.exp(logits) / np.exp(logits).sum()
    assert found.sampled(2.0, 20, 0).mean() / 20 == pytest.approx(p[0], abs=0.005)


def test_mcnemar_counts_changed_answers_only():
    first = np.array([True] * 10 + [False] * 10)
    second = np.array([True] * 9 + [False] * 3 + [True] * 8)
    found = mcnemar(first, second)
    assert found["right_to_wrong"] == [9] and found["wrong_to_right"] == list(range(12, 20))
    assert found["p"] == pytest.approx(2 * stats.binom.cdf(1, 9, 0.5))


def test_what_both_fail_is_compared_with_random_changes():
    before = np.full(30, 2)  # where choice 0 is right
    after = np.where(np.arange(30) < 5, 0, np.where(np.arange(30) < 15, 3, 2))
    found = both_fail(np.zeros(30, bool), before == 0, after == 0, before, after, np.full(30, 4))
    assert found["failed"] == 30 and found["answered"] == [0, 1, 2, 3, 4] and found["flips"] == 5.0
    assert found["changed"] == 15 and found["guessing"] == 7.5
    assert found["p"] == pytest.approx(stats.binom.sf(4, 15, 1 / 3))


def test_chance_counts_the_choices_of_each_question():
    before, after = np.array([1, 1, 1]), np.array([0, 0, 2])
    found = both_fail(np.zeros(3, bool), before == 0, after == 0, before, after, np.array([2, 3, 5]))
    assert found["guessing"] == pytest.approx(1 / 2 + 1 / 3 + 1 / 5) and found["flips"] == pytest.approx(
        1 + 1 / 2 + 1 / 4
    )
    assert found["p"] == pytest.approx(1 - 1 / 2 * 3 / 4)  # the first is right for certain; one more of the other two


def test_questions_of_one_document_are_resampled_together():
    cluster = np.repeat(np.arange(40), 10)
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(40) < 0.5, 10).astype(float)  # all ten of a document are right or wrong
    together, apart = (clustered_share(right, np.ones(400), of) for of in (cluster, np.arange(400)))
    assert together.low < right.mean() < together.high
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(10**0.5, rel=0.1)
    assert clustered_share(right[:190], np.ones(190), cluster[:190]) is None  # 19 documents
    all_right, none = (share_right(np.full(400, share), np.ones(400), cluster) for share in (1.0, 0.0))
    assert all_right == pytest.approx(binomial_interval(40, 40)) and none == pytest.approx(binomial_interval(0, 40))
    assert share_right(right, np.ones(400), cluster) == together
    assert share_right(*np.ones((2, 190)), cluster[:190]) is None
    assert clustered_share(np.ones(400), np.ones(400), cluster) is None  # of a change, which has two sides
    won = np.where(cluster < 6, 1.0, 0.0)
    assert clustered_p(won, cluster) == pytest.approx(2 / 2**6, rel=0.15)  # six documents, all of one sign
    assert clustered_p(np.zeros(400), cluster) == 1.0


def test_examples_of_one_file_are_taken_from_it_and_never_scored(tmp_path):
    rows = [f"What is {k}?,{k},{k + 1},{k + 2},A" for k in range(6)]
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    config = QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path / "all.csv"), examples=2)
    asked = load(config, 0)
    assert [q.text for q in asked.questions] == [f"What is {k}?" for k in range(2, 6)]
    for question in asked.questions:
        assert question.prompt.count("What is 0?") == question.prompt.count("What is 1?") == 1
        assert question.prompt.count(question.text) == 1 and question.choices == (" A", " B", " C")
    assert "the first 2 rows are examples and not scored" in asked.source
    config.subjects, config.pick = ["all"], [1]
    with pytest.raises(InputError, match="6 questions, the first 2 are examples"):
        load(config, 0)


def test_an_example_that_is_scored_too_is_left_out(tmp_path):
    config = mmlu(tmp_path, examples=2)
    (tmp_path / "sums_dev.csv").write_text("One and one?,1,2,3,4,1\nZero and one?,1,2,3,4,A\n")
    assert load(config, 0).questions[0].prompt.count("One and one?") == 1


def test_json_lines_hold_questions_of_two_to_ten_choices(tmp_path):
    given = [{"question": "Many?", "choices": [str(k) for k in range(10)], "answer": "J"},
             {"question": "Few?", "choices": ["yes", "no"], "answer": 1}]  # fmt: skip
    (tmp_path / "mix_test.jsonl").write_text("\n".join(map(json.dumps, given)))
    config = QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path))
    first, second = load(config, 0).questions
    assert (first.answer, len(first.choices), second.answer, second.choices) == (9, 10, 1, (" A", " B"))
    (tmp_path / "mix_test.jsonl").write_text('{"question": "Few?", "choices": ["a", "b"]}')
    with pytest.raises(InputError, match="row 1 has no answer"):
        load(config, 0)
    (tmp_path / "mix_test.jsonl").write_text('{"question": "Half \\ud800?", "choices": ["a", "b"], "answer": 0}')
    with pytest.raises(InputError, match="row 1: expected a question and 2 to 10 choices, all texts in UTF-8"):
        load(config, 0)


def test_letters_share_one_pass_and_give_what_passes_of_their_own_give(tiny, tmp_path, monkeypatch):
    given = [{"question": "Many words in one?", "choices": list("abcdefg"), "answer": 3},
             {"question": "Few?", "choices": ["yes", "no"], "answer": 1}]  # fmt: skip
    (tmp_path / "mix_test.jsonl").write_text("\n".join(map(json.dumps, given)))
    asked = load(QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path)), 0).questions
    fed = []
    forward = tiny.model.model.forward
    monkeypatch.setattr(tiny.model.model, "forward", lambda **kw: fed.append(kw["input_ids"]) or forward(**kw))
    found = answer(tiny.model, tiny.tokenizer, asked, 8)
    assert sum(map(len, fed)) == 2 and found.choices.tolist() == [7, 2] and not found.lost.any()
    assert np.isneginf(found.likelihood[1, 2:]).all() and (found.sampled(1.0, 50, 0) <= 50).all()
    for q, question in enumerate(asked):
        prompt = tiny.tokenizer(question.prompt)["input_ids"]
        with torch.no_grad():
            logs = tiny.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        direct = [float(logs[tiny.tokenizer(choice)["input_ids"][0]]) for choice in question.choices]
        assert found.likelihood[q, : len(direct)].tolist() == pytest.approx(direct, abs=1e-4)


@pytest.mark.parametrize("kind", ["letters", "examples", "chat", "passages"])
def test_what_a_long_prompt_loses_is_counted_and_the_rest_scored_as_the_harness_does(tiny, tmp_path, kind):
    from lm_eval.models.huggingface import HFLM

    long = MMLU.replace("One and one?", "one " * (60 if kind == "examples" else 300))
    asked = load(mmlu(tmp_path, long, examples=int(kind == "examples")), 0)
    if kind == "chat":
        tiny.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[a]\n"
        asked = in_chat(asked, tiny.tokenizer)
    found, positions = asked.questions, 128
    if kind == "passages":
        passages = (" the model reads it", " a block of text and then some more of it " * 3)
        found = [replace(q, choices=passages, answer=0) for q in found]
    if kind == "examples":
        found = [replace(q, prompt=q.prompt.replace("Zero and one?", "zero " * 60)) for q in found]
    scored = answer(tiny.model, tiny.tokenizer, found, 3)
    fed = [max(len(tiny.tokenizer(q.prompt + c)["input_ids"]) - 1 for c in q.choices) for q in found]
    assert scored.lost.tolist() == [max(0, count - positions) for count in fed] and scored.lost[0] > 50
    harness = HFLM(pretrained=tiny.model, tokenizer=copy.deepcopy(tiny.tokenizer), batch_size=1)
    for sums, question in zip(scored.likelihood, found, strict=True):
        pairs = [Instance("loglikelihood", {}, (question.prompt, choice), 0) for choice in question.choices]
        theirs = [value for value, _ in harness.loglikelihood(pairs, disable_tqdm=True)]
        assert sums.tolist() == pytest.approx(theirs, abs=1e-4)


def sentencepiece(kind):
    """A tokenizer as SentencePiece makes them, trained on documentation: a space before every text or before the first
    word (`always`, `first`), as Llama-2's file writes it (`prepend`), and none at all behind <s> (`plain`)."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE, Unigram
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind == "prepend":
        made = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(Unigram())
        scheme = {"plain": "never"}.get(kind, kind)
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "plain")
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    made.decoder = decoders.Metaspace()
    made.train_from_iterator([module.__doc__ for module in (argparse, difflib, random, shlex, json)] * 3, trainer)
    if kind != "first":  # this one writes no <s>
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


PROMPTS = ["", "The matrix", "The matrix ", "two  ", "Answer:", "Answer:\n", "x\n\n ", "inter", "über ", "日本", "e",
           "<s>The", "<s>[user] Hi\n", "tab\t", "fixed\u00a0", "  leading", "🙂", "("]  # fmt: skip
BEHIND = ["A", " A", "\nA", "  two words", "polation", "és", "本語", "\u0301 mark", "🙂", "s)", "<s>", "</s> A"]


@pytest.mark.parametrize("kind", ["always", "first", "prepend", "plain", "bytes"])
def test_tokens_of_a_prompt_and_a_choice_are_the_harnesss(tiny, kind, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    tokenizer = tiny.tokenizer if kind == "bytes" else sentencepiece(kind)
    scored = HFLM(pretrained=tiny.model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    monkeypatch.setattr(scored, "_loglikelihood_tokens", lambda found, **_: found)
    pairs = [(prompt, behind) for prompt in PROMPTS for behind in BEHIND]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    alone = 0
    for pair, before, own in scored.loglikelihood(instances, disable_tqdm=True):
        assert encoded(tokenizer, *pair) == (before, own), pair
        alone += own != tokenizer(pair[1], add_special_tokens=False)["input_ids"]
    assert alone > len(pairs) / 10  # the seam matters


def test_a_choice_without_a_token_of_its_own_is_named(tiny):
    merged = next(
        w for w in ("interpolation", "matrix", "function", "string") if len(tiny.tokenizer(w)["input_ids"]) == 1
    )
    asked = [Question("sums 0", "", merged[:1], (merged[1:], " B"), ("", ""), 0)]
    with pytest.raises(InputError, match=rf"question sums 0: choice '{merged[1:]}' has no token of its own"):
        answer(tiny.model, tiny.tokenizer, asked, 1)


def test_likelihoods_are_the_harnesss_where_choices_merge_with_their_prompt(tiny):
    from lm_eval.models.huggingface import HFLM

    scored = HFLM(pretrained=tiny.model, tokenizer=copy.deepcopy(tiny.tokenizer), batch_size=1, max_length=128)
    asked = [
        Question(f"q {k}", "", prompt, choices, choices, 0)
        for k, (prompt, choices) in enumerate([
            ("The matrix ", ("is orthogonal", "has no rows")), ("inter", ("polation of data", "national", " A")),
            ("word " * 200, (" a longer end of it", " B")), ("", ("The matrix is", " one")),
        ])
    ]  # fmt: skip
    found = answer(tiny.model, tiny.tokenizer, asked, 4)
    assert (found.lost > 0).sum() == 1
    for q, question in enumerate(asked):
        theirs = scored.loglikelihood([
            Instance(request_type="loglikelihood", doc={}, arguments=(question.prompt, choice), idx=0)
            for choice in question.choices
        ], disable_tqdm=True)  # fmt: skip
        assert found.likelihood[q, : len(theirs)].tolist() == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_binomial_interval_is_clopper_pearson():
    low, high = binomial_interval(7, 20)
    assert low == pytest.approx(stats.beta.ppf(0.025, 7, 14)) and high == pytest.approx(stats.beta.ppf(0.975, 8, 13))
