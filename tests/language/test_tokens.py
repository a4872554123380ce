import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrun.errors import InputError
from qrun.language import tokens
from qrun.language.tokens import join_documents, page_streams, stream, tokenizer_digest


@settings(deadline=None, max_examples=50)
@given(documents=st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=6))
def test_bytes_of_all_tokens_add_up_to_the_bytes_of_the_text(nano, documents):
    documents = [d.encode("utf-8", "ignore").decode() or "x" for d in documents]
    text = "\n\n".join(documents)
    found = stream(nano.tokenizer, documents)
    assert found.bytes.sum() == len(text.encode()) and (found.bytes >= 0).all()
    assert found.document[-1] == len(documents) - 1 and (found.document[1:] >= found.document[:-1]).all()


def test_tokens_belong_to_the_document_they_end_in(nano):
    first, second = "A frozen model.", "Another document, with naïve café ✓ and 漢字."
    found = stream(nano.tokenizer, [first, second])
    of_first = nano.tokenizer.decode(found.ids[found.document == 0])
    assert first.startswith(of_first) and len(of_first) >= len(first) - 1
    assert found.words.tolist() == [3, 8]


def test_wikitext_rows_are_joined_as_the_hub_gives_them():
    pages = [" \n = A = \n \n text \n", " = B = \n"]
    assert "".join(join_documents(pages, wikitext=True)) == "\n\n".join(["", " = A = \n", "", " text \n", " = B = \n"])


def test_rows_of_wikitext_end_at_line_feeds_alone():
    page = " a\u2028b\x85c\x0cd \n e\r\n"
    assert join_documents([page], wikitext=True) == [" a\u2028b\x85c\x0cd \n\n\n e\r\n"]


def test_head_keeps_the_first_tokens_and_their_documents(nano):
    found = stream(nano.tokenizer, ["one two three", "four five", "six"]).head(4)
    assert len(found.ids) == 4 and found.documents == found.document[-1] + 1 < 3


def test_pages_are_tokenised_alone(nano):
    pages = page_streams(nano.tokenizer, ["one two", "three"], [2, 1])
    assert [p.document.tolist() for p in pages] == [[0] * len(pages[0].ids), [1] * len(pages[1].ids)]


def test_an_empty_text_is_refused(nano):
    with pytest.raises(InputError, match=r"model\.path=.*: its tokenizer makes no token of 0 characters"):
        stream(nano.tokenizer, [""])


def test_the_tokenizers_fingerprint_sees_all_but_padding_and_truncation(nano):
    from tokenizers import pre_tokenizers

    tokenizer = copy.deepcopy(nano.tokenizer)
    before = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.backend_tokenizer.enable_truncation(5)
    assert len(before) == 8 and tokenizer_digest(tokenizer) == before
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer_digest(tokenizer) != before


@pytest.mark.data
def test_real_tokenizer_gives_the_known_token_count_and_every_byte(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "smollm2-135m-tokenizer")
    text = (shared / "wikitext-2-raw" / "wiki.test.raw").read_text()
    found = stream(tokenizer, [text])
    assert len(found.ids) == 303_415 and found.bytes.sum() == 1_290_590
    assert len(tokenizer_digest(tokenizer)) == 8


@pytest.mark.data
def test_sentencepiece_style_tokenizer_counts_bytes_too(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf")
    text = "Once upon a time, there was a café.\n\nThe end."
    assert stream(tokenizer, [text]).bytes.sum() == len(text.encode())


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder of kept tokens, where every text counts as long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tokens, "LONG", 1)
    return tmp_path / "qrun" / "tokens"


def same(one, two):
    return all((getattr(one, name) == getattr(two, name)).all() for name in ("ids", "document", "bytes", "words"))


def test_tokens_of_a_long_text_are_read_the_second_time_and_are_the_same(nano, kept, monkeypatch):
    documents = ["A frozen model.", "naïve café ✓ and 漢字 " * 20]
    first = stream(nano.tokenizer, documents)
    monkeypatch.setattr(tokens, "_tokens", None)  # nothing is tokenised
    assert same(stream(nano.tokenizer, documents), first) and len(list(kept.iterdir())) == 1
    with pytest.raises(TypeError):
        stream(nano.tokenizer, [*documents, "more"])
    other = copy.deepcopy(nano.tokenizer)
    other.backend_tokenizer.normalizer = None
    other.add_tokens(["frozen"])
    with pytest.raises(TypeError):
        stream(other, documents)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_broken_file_of_kept_tokens_is_made_again(nano, kept, how):
    first = stream(nano.tokenizer, ["A frozen model. " * 50])
    file = next(kept.iterdir())
    whole = file.read_bytes()
    at = len(whole) // 2
    file.write_bytes(
        {"cut": whole[:at], "flipped": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "empty": b""}[how]
    )
    assert same(stream(nano.tokenizer, ["A frozen model. " * 50]), first)
    assert file.stat().st_size == len(whole)


def test_kept_tokens_stay_within_their_bound(nano, kept, monkeypatch):
    monkeypatch.setattr(tokens, "MOST", 3 * 4096)
    for number in range(5):
        stream(nano.tokenizer, [f"text {number}"])
    assert 1 <= len(list(kept.iterdir())) <= 3
    monkeypatch.setattr(tokens, "MOST", 1)
    stream(nano.tokenizer, ["a text that finds no room"])
    assert not list(kept.iterdir())
