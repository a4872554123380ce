"""What counts as seen, against plain sets of words; what is cut out, and what stays."""

import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from qrun.config.schema import DataConfig, EvaluationConfig, ProtocolConfig, Sample, Split
from qrun.config.tree import option
from qrun.evaluation.intervals import effective_number
from qrun.evaluation.protocols import build
from qrun.language.corpus import Corpus, cleaned, load
from qrun.language.overlap import (
    LENGTH,
    MARGIN,
    NANO,
    SAMPLED,
    all_grams,
    grams,
    pretraining_share,
    read_sample,
    sampled,
    share,
    without,
    write_sample,
)
from qrun.language.questions import CONTINUED
from qrun.studies import configure

NOTHING = np.zeros(0, np.uint32)


def made(seed, words=400, vocabulary=500):
    """A text that shares no 13-gram with that of another seed."""
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(words))


def plain(text):
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {tuple(words[i : i + LENGTH]) for i in range(len(words) - LENGTH + 1)}


def test_grams_are_equal_where_words_are_whatever_case_and_punctuation():
    text = made(0, 60, 8)  # few words, so that grams could be mixed up
    hashes, places = grams(text)
    assert len(set(hashes.tolist())) == len(plain(text)) and len(hashes) == 60 - LENGTH + 1
    assert grams(text.upper().replace(" ", ", "))[0].tolist() == hashes.tolist()
    assert [text[a:b].split() for a, b in places.tolist()] == [text.split()[i : i + LENGTH] for i in range(48)]
    assert not len(grams("of a few words only")[0]) and not len(grams("")[0])


def test_places_are_of_the_text_as_it_stands_where_lower_case_is_longer():
    text = "\u0130 " * 20 + made(1, 20)
    assert grams(text)[1][-1, 1] == len(text)


def test_the_share_of_grams_is_that_of_plain_sets():
    seen, text = made(1), made(1, 150) + " " + made(2, 150)
    exact = len(plain(seen) & plain(text)) / len(plain(text))
    assert 0.4 < exact < 0.5 and share([text], all_grams([seen])) == pytest.approx(exact, abs=1e-9)


def test_a_sample_is_read_as_it_was_kept_and_judges_one_gram_in_eight(tmp_path):
    texts = [made(seed) for seed in range(60)]
    hashes = all_grams(texts)
    kept = write_sample(tmp_path / "grams.xz", hashes)
    sample = read_sample(tmp_path / "grams.xz")
    assert kept == len(sample) == sampled(hashes).sum() and (np.diff(sample.astype(np.int64)) > 0).all()
    assert kept == pytest.approx(len(hashes) / SAMPLED, rel=0.1)
    assert pretraining_share(texts[:3], sample) == 1 and pretraining_share([made(1000), made(1001)], sample) == 0
    half = [made(5), made(1002)]
    assert pretraining_share(half, sample) == pytest.approx(0.5, abs=0.1) and pretraining_share([""], sample) == 0


def test_shared_text_goes_with_its_surroundings_and_the_rest_stays_word_by_word():
    before, shared, after = made(1), made(2, 40), made(3)
    left = without(f"{before} {shared} {after}", NOTHING, [all_grams([f"{made(4)} {shared} {made(5)}"])])
    first, second = left.split("\n\n")
    assert before.startswith(first) and after.endswith(second)
    assert 0 <= len(before) - len(first) - MARGIN < 12 and 0 <= len(after) - len(second) - MARGIN < 12
    assert without(before, NOTHING, [all_grams([after])]) == before
    assert without(shared, NOTHING, [all_grams([shared])]) == ""
    short = f"{made(6, 30)} {shared} {made(7, 30)}"  # fewer than MARGIN characters are left on both sides
    assert without(short, NOTHING, [all_grams([shared])]) == ""


def test_held_out_splits_lose_what_other_splits_have_and_training_text_stays():
    twin, own, other = made(1), made(2), made(3)
    dirty = Corpus("made", {"train": [twin, made(4)], "validation": [own, made(5)], "test": [twin, own, other]}, "")
    clean = cleaned(dirty)
    assert clean.splits == {"train": dirty.splits["train"], "validation": [made(5)], "test": [own, other]}
    assert clean.cut["test"] == pytest.approx(1 / 3, abs=0.02) and clean.cut["validation"] == pytest.approx(
        0.5, abs=0.02
    )
    assert clean.digests["test"] != dirty.digests["test"] and "cut out before: test 3" in clean.overlap()


def test_what_nano_was_trained_on_is_told_from_what_it_was_not():
    trained = [value.__doc__ for value in vars(np.linalg).values() if len(value.__doc__ or "") > 1000]
    assert len(trained) > 10
    assert pretraining_share(trained, read_sample(NANO)) > 0.3
    assert pretraining_share([made(seed) for seed in range(20)], read_sample(NANO)) < 0.01


@pytest.mark.slow
def test_the_studies_text_is_clean_and_has_a_hundred_effective_documents(nano):
    config = configure("dim", [])
    text = load(config.data)
    for split, least in ((Split.test, 100), (Split.validation, 60)):
        drawn = replace(config.evaluation, split=split)
        task = build(config.protocol, drawn, text, nano.tokenizer, 1024)
        assert effective_number(task.documents) > least and task.statement["clean"] is True
        assert pretraining_share(text.splits[split.value], read_sample(NANO)) == 0
        assert share(text.splits[split.value], all_grams(text.splits["train"])) == 0


def test_clean_is_part_of_the_fingerprint_and_of_the_digest(tmp_path, nano):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([made(seed) for seed in range(60)]))
    tasks = [
        build(ProtocolConfig(ctx=64), EvaluationConfig(sample=Sample.passages), load(data), nano.tokenizer, 1024)
        for data in (DataConfig("text", "text", path=str(path), clean=clean) for clean in (False, True))
    ]
    assert tasks[0].scored == tasks[1].scored and tasks[0].fingerprint != tasks[1].fingerprint


def test_questions_are_cut_from_the_text_of_the_studies():
    assert option("data", "pydoc_clean", DataConfig) == CONTINUED
