from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrun.config.schema import EvaluationConfig, ProtocolConfig, ProtocolKind, Sample
from qrun.errors import InputError, RunFailed
from qrun.evaluation.measurement import Measurement
from qrun.evaluation.protocols import build, detokenize, disjoint, draw, prefix_token, strided
from qrun.language.corpus import Corpus
from qrun.language.tokens import TokenStream

KINDS = [
    ProtocolConfig(ProtocolKind.fixed_window, 64),
    ProtocolConfig(ProtocolKind.hf_strided, 64, 24),
    ProtocolConfig(ProtocolKind.lm_eval_wikitext, 64),
]
DOCUMENTS = [f"Document {i} speaks of rotations, shots and counts; it is not long. " * (i % 4 + 1) for i in range(12)]


def corpus(documents=DOCUMENTS):
    return Corpus("made-up", dict.fromkeys(("train", "validation", "test"), documents), "here")


@given(tokens=st.integers(2, 400), ctx=st.integers(2, 60), data=st.data())
def test_strided_windows_score_every_token_but_the_first_exactly_once(tokens, ctx, data):
    stride = data.draw(st.integers(1, ctx))
    scored = np.zeros(tokens, dtype=int)
    for window in strided(tokens, ctx, stride):
        assert 0 <= window.start < window.first < window.end <= tokens and window.end - window.start <= ctx
        scored[window.first : window.end] += 1
    # at stride = ctx windows do not overlap and the first token of each has no context: it stays unscored, as in
    # fixed_window
    unscored = {0} if stride < ctx else set(range(0, tokens, ctx))
    assert set(np.flatnonzero(scored == 0)) == unscored and scored.max() == 1


@given(tokens=st.integers(2, 400), ctx=st.integers(2, 60))
def test_disjoint_windows_keep_the_tail(tokens, ctx):
    scored = np.zeros(tokens, dtype=int)
    for window in disjoint(tokens, ctx):
        scored[window.first : window.end] += 1
    assert set(np.flatnonzero(scored == 0)) == set(range(0, tokens, ctx)) and scored.max() == 1


def test_every_strided_token_has_the_promised_context():
    for window in strided(1000, 64, 24)[1:]:
        assert window.first - window.start >= 64 - 24


@pytest.mark.parametrize("protocol", KINDS, ids=lambda p: p.kind.value)
def test_fingerprint_changes_with_everything_that_changes_the_number(nano, protocol):
    def fingerprint(protocol=protocol, evaluation=None, text=None):
        return build(protocol, evaluation or EvaluationConfig(), text or corpus(), nano.tokenizer, 1024).fingerprint

    changed = [
        fingerprint(ProtocolConfig(protocol.kind, 63, protocol.stride)),
        fingerprint(evaluation=EvaluationConfig(max_tokens=200)),
        fingerprint(text=corpus([*DOCUMENTS, "One more."])),
        *(fingerprint(other) for other in KINDS if other is not protocol),
    ]
    assert fingerprint() == fingerprint() and len({fingerprint(), *changed}) == 6


def test_a_window_beyond_the_models_positions_or_the_text_is_refused(nano):
    with pytest.raises(InputError, match=r"protocol.ctx=2000: the model has 1024 positions"):
        build(ProtocolConfig(ctx=2000), EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    with pytest.raises(InputError, match="shorter than one window"):
        build(ProtocolConfig(ctx=512), EvaluationConfig(), corpus(["Short text."]), nano.tokenizer, 1024)


def test_a_stride_beyond_the_models_positions_is_refused(nano):
    """With protocol.ctx=null the config cannot know them."""
    strided = ProtocolConfig(ProtocolKind.hf_strided, None, 1025)
    with pytest.raises(InputError, match=r"protocol.stride=1025: windows have 1024 tokens"):
        build(strided, EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    assert build(replace(strided, stride=64), EvaluationConfig(), corpus(), nano.tokenizer, 64).scored > 0


def test_the_first_windows_hold_whole_documents_where_words_count(nano):
    task = build(replace(KINDS[2], ctx=8), EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    first = len(task.passages[0].windows)
    head = task.head(first + 1)
    assert first > 1 and [len(p.windows) for p in head.passages[:3]] == [first, len(task.passages[1].windows), 0]
    stream = build(replace(KINDS[0], ctx=8), EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    assert len(stream.head(3).rows()) == 3


def test_max_tokens_cuts_a_stream_anywhere_and_pages_only_between_documents(nano):
    evaluation = EvaluationConfig(max_tokens=100)
    assert (
        sum(w.end - w.first for w in build(KINDS[1], evaluation, corpus(), nano.tokenizer, 1024).passages[0].windows)
        == 99
    )
    pages = build(KINDS[2], evaluation, corpus(), nano.tokenizer, 1024)
    whole = build(KINDS[2], EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    assert 0 < len(pages.passages) < len(whole.passages) and pages.scored >= 100
    assert pages.bytes.tolist() == [len(d.encode()) for d in DOCUMENTS[: len(pages.passages)]]


def test_detokenizing_follows_the_harness():
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    page = (
        " = Title = \n \n It 's 1 @,@ 000 @.@ 5 well @-@ known ( so called ) \" words \" ; the boys ' N ° [ "
        "2 ] = = = Sub = = = \n end ! a ? b : c . d\n"
    )
    assert detokenize(page) == wikitext_detokenizer({"page": page}) != page


@pytest.mark.data
def test_detokenizing_all_of_wikitext_follows_the_harness(shared):
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    page = (shared / "wikitext-2-raw" / "wiki.test.raw").read_text()
    assert detokenize(page) == wikitext_detokenizer({"page": page})


def test_prefix_is_bos_else_eos():
    class Tokenizer:
        bos_token_id, eos_token_id = None, 7

    assert prefix_token(Tokenizer) == 7
    Tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="neither"):
        prefix_token(Tokenizer)


# --- evaluation.sample=passages


def written(lengths, first=0):
    """Documents of so many tokens, each of tokens of its own."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    ids = np.concatenate([1000 * (first + i) + np.arange(size) for i, size in enumerate(lengths)] or [[]]).astype(int)
    return TokenStream(ids, document, np.ones_like(ids), np.ones(len(lengths), int))


def contents(text, windows):
    """What is fed of each window, whatever its place in the stream."""
    return [(tuple(text.ids[w.start : w.end].tolist()), w.first - w.start) for w in windows]


lengths = st.lists(st.integers(2, 90), min_size=1, max_size=8)
strides = st.sampled_from([None, 5, 16])


@given(lengths=lengths, stride=strides)
def test_passages_never_cross_documents_and_score_what_each_document_alone_would(lengths, stride):
    text = written(lengths)
    windows = draw(text, 16, stride, None)
    for window in windows:
        assert len(set(text.document[window.start : window.end].tolist())) == 1
        assert window.start < window.first < window.end <= window.start + 16
    scored = np.zeros(len(text.ids), int)
    for window in windows:
        scored[window.first : window.end] += 1
    at = np.cumsum([0, *lengths])
    for i, size in enumerate(lengths):
        alone = np.zeros(size, int)
        for window in disjoint(size, 16) if stride is None else strided(size, 16, stride):
            alone[window.first : window.end] += 1
        assert scored[at[i] : at[i + 1]].tolist() == alone.tolist()


@given(lengths=lengths, stride=strides, most=st.integers(2, 300) | st.none())
def test_every_document_gives_a_passage_before_any_gives_another(lengths, stride, most):
    text = written(lengths)
    given_by = [int(text.document[w.start]) for w in draw(text, 16, stride, most)]
    turns = [given_by[:i].count(d) for i, d in enumerate(given_by)]
    assert turns == sorted(turns)
    available = {d: len(disjoint(n, 16) if stride is None else strided(n, 16, stride)) for d, n in enumerate(lengths)}
    for turn in range(max(turns)):  # before the next turn, every document that can give has given
        assert {d for d, t in zip(given_by, turns, strict=True) if t == turn} == {
            d for d, count in available.items() if count > turn
        }


@given(lengths=lengths, stride=strides, most=st.integers(2, 300))
def test_max_tokens_is_kept_and_a_larger_one_only_adds(lengths, stride, most):
    text = written(lengths)
    everything, windows = draw(text, 16, stride, None), draw(text, 16, stride, most)
    size = sum(w.end - w.first for w in windows)
    assert windows == everything[: len(windows)]
    assert size <= most or len(windows) == 1  # one passage at the least
    if len(windows) < len(everything):
        assert size + everything[len(windows)].end - everything[len(windows)].first > most


@given(lengths=lengths, others=lengths, stride=strides, data=st.data())
def test_other_documents_do_not_change_which_passages_a_document_gives_first(lengths, others, stride, data):
    both, alone = [*zip(lengths, range(len(lengths)), strict=True)], written(lengths)
    both += [(size, 100 + i) for i, size in enumerate(others)]
    order = data.draw(st.permutations(both))
    parts = [written([size], first=name) for size, name in order]
    text = TokenStream(
        np.concatenate([p.ids for p in parts]), np.repeat(np.arange(len(parts)), [len(p.ids) for p in parts]),
        np.concatenate([p.bytes for p in parts]), np.ones(len(parts), int),
    )  # fmt: skip
    mine = [found for found in contents(text, draw(text, 16, stride, None)) if found[0][0] < 100_000]
    assert mine == contents(alone, draw(alone, 16, stride, None))


def drawn(**changes):
    return EvaluationConfig(sample=Sample.passages, **changes)


@pytest.mark.parametrize("protocol", KINDS, ids=lambda p: p.kind.value)
def test_only_a_drawn_sample_is_stated(nano, protocol):
    whole = build(protocol, EvaluationConfig(), corpus(), nano.tokenizer, 1024)
    passages = build(protocol, drawn(), corpus(), nano.tokenizer, 1024)
    assert "sample" not in whole.statement and passages.statement["sample"] == "passages"
    assert {**whole.statement, "sample": "passages"} == passages.statement
    assert whole.fingerprint != passages.fingerprint


def test_whole_documents_are_drawn_for_the_harness_in_an_order_of_their_own(nano):
    one, other = (build(KINDS[2], drawn(max_tokens=120), corpus(documents), nano.tokenizer, 1024) for documents in
                  (DOCUMENTS, DOCUMENTS[::-1]))  # fmt: skip
    assert [p.stream.ids.tolist() for p in one.passages] == [p.stream.ids.tolist() for p in other.passages]
    whole = build(KINDS[2], drawn(), corpus(), nano.tokenizer, 1024)
    assert 0 < len(one.passages) < len(whole.passages) == len(DOCUMENTS)
    assert one.words.tolist() == whole.words[: len(one.passages)].tolist() and len(one.words) == len(one.bytes)
    assert sorted(whole.bytes.tolist()) == sorted(len(d.encode()) for d in DOCUMENTS)


def test_a_text_shorter_than_a_window_can_still_give_passages(nano):
    task = build(ProtocolConfig(ctx=512), drawn(), corpus(["Short text."]), nano.tokenizer, 1024)
    assert len(task.passages[0].windows) == 1 and task.scored == len(task.passages[0].stream.ids) - 1


def test_a_text_of_which_nothing_can_be_scored_is_refused(nano):
    with pytest.raises(InputError, match="no document of its test split has two tokens"):
        build(ProtocolConfig(ctx=512), drawn(), corpus(["a"]), nano.tokenizer, 1024)


def test_a_word_perplexity_beyond_all_numbers_is_one_line():
    statement = {"protocol": "lm_eval_wikitext", "unit": "word", "data": "x", "split": "test"}
    found = Measurement([9000.0], [2000], [6000], [5], statement)
    with pytest.raises(RunFailed, match="1,800 nats a word, of 2,000 tokens and 5 words"):
        found.perplexity  # noqa: B018
    assert found.bits_per_byte == pytest.approx(9000 / np.log(2) / 6000)
