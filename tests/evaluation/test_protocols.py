import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrun.config.schema import EvaluationConfig, ProtocolConfig, ProtocolKind
from qrun.errors import InputError
from qrun.evaluation.protocols import build, detokenize, disjoint, prefix_token, strided
from qrun.language.corpus import Corpus

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
        assert 0 <= window.start < window.first <= window.end <= tokens and window.end - window.start <= ctx
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
