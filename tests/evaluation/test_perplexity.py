import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from tests_support import lm_eval_word_perplexity

from qrun.config.schema import Dtype, EvaluationConfig, ModelConfig, ProtocolConfig, ProtocolKind, Sample
from qrun.errors import InputError, RunFailed
from qrun.evaluation import perplexity
from qrun.evaluation.intervals import paired_interval
from qrun.evaluation.measurement import Measurement, difference, half_width
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.language.corpus import Corpus, load

TEXT = [
    f"Return element {i} of the array. Parameters: x, an array of shape (n, {i}). Returns the sum of squares, or None. "
    * (1 + i % 3)
    for i in range(9)
]
STRIDED = ProtocolConfig(ProtocolKind.hf_strided, 96, 40)


def corpus(documents=TEXT):
    return Corpus("made-up", dict.fromkeys(("train", "validation", "test"), documents), "here")


def task(nano, protocol=STRIDED, documents=TEXT, **evaluation):
    return build(protocol, EvaluationConfig(**evaluation), corpus(documents), nano.tokenizer, 1024)


@pytest.mark.slow
def test_strided_perplexity_equals_a_token_by_token_reference(nano):
    ids = torch.tensor(nano.tokenizer("\n\n".join(TEXT))["input_ids"])
    nats, tokens = 0.0, 0
    previous = 0
    for begin in range(0, len(ids), 40):
        end = min(begin + 96, len(ids))
        with torch.no_grad():
            logits = nano.model(input_ids=ids[None, begin:end]).logits[0].double().log_softmax(-1)
        for t in range(max(previous, begin + 1), end):
            nats -= logits[t - 1 - begin, ids[t]].item()
            tokens += 1
        previous = end
        if end == len(ids):
            break
    result = measure(nano.model, task(nano), batch=4)
    assert sum(result.tokens) == tokens == len(ids) - 1
    assert result.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-6)
    first = len(nano.tokenizer.decode(ids[:1]).encode())
    assert result.bits_per_byte == pytest.approx(
        nats / math.log(2) / (len("\n\n".join(TEXT).encode()) - first), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batching_and_scoring_in_pieces_change_nothing(nano, batch, monkeypatch):
    whole = measure(nano.model, task(nano), batch=4)
    monkeypatch.setattr(perplexity, "piece", lambda _: 7)
    np.testing.assert_allclose(measure(nano.model, task(nano), batch=batch).nats, whole.nats, rtol=1e-5)


def test_logits_at_once_fit_a_cache_but_are_never_of_few_tokens():
    assert [perplexity.piece(vocabulary) for vocabulary in (4096, 49_152, 128_256)] == [256, 128, 128]


def test_documents_add_up_to_the_whole(nano):
    result = measure(nano.model, task(nano), batch=4)
    assert len(result.nats) == len(TEXT) and result.words == [len(d.split()) for d in TEXT]
    assert min(result.tokens) > 0 and sum(result.bytes) < len("\n\n".join(TEXT).encode())


def test_uniform_model_has_the_vocabulary_as_its_perplexity(nano):
    import copy

    model = copy.deepcopy(nano.model)
    model.model.embed_tokens.weight.data.zero_()
    assert measure(model, task(nano), batch=4).perplexity == pytest.approx(4096, rel=1e-5)


def test_a_model_that_is_not_finite_is_not_averaged_over(nano):
    import copy

    model = copy.deepcopy(nano.model)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunFailed, match="not finite"):
        measure(model, task(nano), batch=4)


@pytest.mark.slow
def test_word_perplexity_agrees_with_the_harness(nano, tmp_path):
    found = measure(nano.model, task(nano, ProtocolConfig(ProtocolKind.lm_eval_wikitext, 64)), batch=4)
    reference = lm_eval_word_perplexity(nano, [(d, d) for d in TEXT], 64)
    assert found.perplexity == pytest.approx(reference["word_perplexity"], rel=1e-4)
    assert found.bits_per_byte == pytest.approx(reference["bits_per_byte"], rel=1e-4)


@pytest.mark.data
def test_word_perplexity_agrees_with_the_harness_on_wikitext(shared):
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    from qrun.config.schema import DataConfig
    from qrun.language.models import load as load_model

    stories = load_model(ModelConfig(name="stories", path=str(shared / "models" / "stories260K" / "hf")))
    text = load(DataConfig(name="wikitext2", source="wikitext2", path=str(shared / "wikitext-2-raw")))
    measured = build(
        ProtocolConfig(ProtocolKind.lm_eval_wikitext), EvaluationConfig(max_tokens=60_000), text, stories.tokenizer, 512
    )
    found = measure(stories.model, measured, batch=16)
    pages = text.splits["test"][: len(found.nats)]
    reference = lm_eval_word_perplexity(stories, [(page, wikitext_detokenizer({"page": page})) for page in pages], 512)
    assert found.perplexity == pytest.approx(reference["word_perplexity"], rel=1e-4)
    assert found.bits_per_byte == pytest.approx(reference["bits_per_byte"], rel=1e-4)


def test_different_protocols_refuse_to_be_compared(nano):
    a, b = (
        measure(nano.model, task(nano), 4),
        measure(nano.model, task(nano, ProtocolConfig(ProtocolKind.hf_strided, 96, 41)), 4),
    )
    with pytest.raises(InputError, match="different protocols and are not compared: stride 40 / 41"):
        difference(a, b, 99, 0)
    assert Measurement.from_json(a.to_json()) == a
    with pytest.raises(ValueError, match="nats"):
        Measurement.from_json(a.to_json().replace('"nats": [', '"nats": ["x", '))


def test_equal_measurements_differ_by_zero(nano):
    a = measure(nano.model, task(nano), 4)
    same = difference(a, a, 999, 0)
    assert (same.value, same.documents) == (0, 9)
    assert same.effective == pytest.approx(a.effective_documents) and same.interval is None  # fewer than 20 say nothing


@pytest.mark.parametrize("kind", list(ProtocolKind))
def test_measured_in_two_looks_a_text_is_what_it_is_in_one(tiny, kind):
    words = ProtocolConfig(kind, 24, 16 if kind is ProtocolKind.hf_strided else None)
    small, large = (task(tiny, words, sample=Sample.passages, max_tokens=most) for most in (200, 500))
    rows, more = len(small.rows()), replace(large, first=len(small.rows()))
    whole = measure(tiny.model, large, batch=4)
    first = measure(tiny.model, small, batch=4)
    assert 0 < rows < len(large.rows()) and sum(first.tokens) + more.scored == sum(whole.tokens)
    both = measure(tiny.model, more, batch=4, before=first)
    assert (both.tokens, both.bytes, both.words) == (whole.tokens, whole.bytes, whole.words)
    np.testing.assert_allclose(both.nats, whole.nats, rtol=1e-5)


def test_half_an_interval_is_a_share_of_the_first_perplexity():
    rng = np.random.default_rng(0)
    tokens = rng.integers(100, 200, 40).tolist()
    a = [3 * t + float(e) for t, e in zip(tokens, rng.normal(0, 30, 40), strict=True)]
    b = [n - 0.1 * t + float(e) for n, t, e in zip(a, tokens, rng.normal(0, 3, 40), strict=True)]
    one, two = (Measurement(n, tokens, tokens, tokens, {"unit": "token"}, "f") for n in (a, b))
    low, high = paired_interval(np.array(a), np.array(b), np.array(tokens), 999, 0)
    assert half_width(one, two, 999, 0) == pytest.approx((high - low) / 2 / one.perplexity)
    spread = 1.96 * np.std(np.array(a) - 3 * np.array(tokens)) / np.mean(tokens) / math.sqrt(40)  # of the mean nats
    assert half_width(one, one, 999, 0) == pytest.approx(spread, rel=0.2)
    few = Measurement(a[:19], tokens[:19], tokens[:19], tokens[:19], {"unit": "token"}, "f")
    assert half_width(few, few, 999, 0) == math.inf


def test_looking_again_whenever_the_texts_double_costs_an_interval_less_than_one_point_in_a_hundred():
    """Student's intervals of 20, 40 ... 320 documents, each looked at until it is narrow, for any width."""
    drawn = np.random.default_rng(0).standard_normal((20_000, 320), np.float32)
    sizes = [20 * 2**look for look in range(5)]
    half = [stats.t.ppf(0.975, n - 1) * drawn[:, :n].std(1, ddof=1) / math.sqrt(n) for n in sizes]
    holds = np.stack([abs(drawn[:, :n].mean(1)) <= h for n, h in zip(sizes, half, strict=True)])
    assert holds.mean(1) == pytest.approx(0.95, abs=0.005)  # of one look each
    found = []
    for wanted in np.geomspace(0.06, 0.6, 10):
        narrow = np.stack(half) <= wanted
        narrow[-1] = True
        found.append(holds[narrow.argmax(0), range(len(drawn))].mean())
    assert 0.94 <= min(found) < 0.946  # 94.2 in 100


def test_interval_is_reproducible_needs_two_units_and_brackets_the_difference():
    rng = np.random.default_rng(0)
    weight = rng.integers(50, 200, 40)
    a = weight * rng.normal(3.0, 0.5, 40)
    b = a - weight * rng.normal(0.05, 0.02, 40)
    low, high = paired_interval(a, b, weight, 1999, 1)
    value = np.exp(a.sum() / weight.sum()) - np.exp(b.sum() / weight.sum())
    assert (low, high) == paired_interval(a, b, weight, 1999, 1)
    assert 0 < low < value < high < 2 * value
    assert paired_interval(a, a, weight, 99, 0) == (0, 0)
    assert paired_interval(a[:1], b[:1], weight[:1], 99, 0) is None


def test_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng, hits, trials = np.random.default_rng(1), 0, 200
    for trial in range(trials):
        weight = rng.integers(80, 120, 50)
        difficulty = rng.normal(3.0, 0.4, 50)
        a, b = weight * difficulty, weight * (difficulty - rng.normal(0.04, 0.05, 50))
        truth = np.exp(3.0) * (1 - np.exp(-0.04))
        low, high = paired_interval(a, b, weight, 399, trial)
        hits += low <= truth <= high
    assert 0.88 <= hits / trials <= 0.99


def test_windows_of_about_one_length_share_a_batch_and_little_is_padding(nano):
    documents = [f"{TEXT[i % 9]} " * (1 + 7 * i % 23) for i in range(40)]
    measured = task(nano, ProtocolConfig(ProtocolKind.lm_eval_wikitext, 512), documents)
    batches = [batch for pool in perplexity.pools(measured, 8) for batch in pool]
    padded = sum(len(batch) * batch[0].length for batch in batches)
    real = sum(placed.length for batch in batches for placed in batch)
    assert padded < 1.1 * real and max(map(len, batches)) == 8
    rows = sorted(placed.row for batch in batches for placed in batch)
    assert rows == list(range(sum(len(p.windows) for p in measured.passages)))


def test_documents_of_unequal_length_have_the_nats_they_have_alone(nano):
    documents = [TEXT[i % 9] * (1 + 3 * i % 5) for i in range(7)]
    kind = ProtocolConfig(ProtocolKind.lm_eval_wikitext, 128)
    alone = measure(nano.model, task(nano, kind, documents), batch=1)
    np.testing.assert_allclose(measure(nano.model, task(nano, kind, documents), batch=4).nats, alone.nats, rtol=1e-5)


def test_numbers_of_another_weight_type_are_not_compared(nano):
    words = (STRIDED, EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    full, half = (measure(nano.model, build(*words, dtype), 4) for dtype in (Dtype.float32, Dtype.bfloat16))
    with pytest.raises(InputError, match="dtype None / bfloat16"):
        difference(full, half, 99, 0)
    assert full.fingerprint == measure(nano.model, task(nano), 4).fingerprint
