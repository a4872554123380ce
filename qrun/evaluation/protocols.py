"""How a perplexity is computed. Numbers of different protocols are never compared: a fingerprint says which is which.

    fixed_window(ctx)        joined text in disjoint windows; the first token of each is unscored, the tail is kept
    hf_strided(ctx, stride)  joined text, window moved by stride; all tokens but the first scored (transformers guide)
    lm_eval_wikitext         each document alone after the prefix token, all tokens scored once, the last window moved
                             back to a full context, normalised by words (lm-evaluation-harness, task `wikitext`
                             version 2; Gao et al.)

`evaluation.sample=passages` draws windows that keep to one document (whole documents for lm_eval_wikitext) by hash.

All three also give bits per byte = nats / ln 2 / bytes of the scored tokens.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qrun.config.schema import Dtype, EvaluationConfig, ModelConfig, ProtocolConfig, ProtocolKind, Quantization, Sample
from qrun.errors import InputError
from qrun.language.corpus import Corpus, text_digest
from qrun.language.models import LanguageModel
from qrun.language.tokens import Array, TokenStream, page_streams, stream, tokenizer_digest


@dataclass(frozen=True)
class Window:
    """Feed stream[start:end-1], predict stream[start+1:end], score the targets from index `first` on."""

    start: int
    end: int
    first: int


@dataclass(frozen=True)
class Passage:
    """One token stream and the windows over it."""

    stream: TokenStream
    windows: list[Window]


@dataclass(frozen=True)
class Task:
    """A fully stated measurement: what is fed, what is scored, and its fingerprint."""

    passages: list[Passage]
    words: Array  # per document
    statement: dict[str, Any]
    bytes: Array | None = None  # per document, where the protocol does not count those of the scored tokens
    first: int = 0  # windows before this one were measured at an earlier look

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.statement, sort_keys=True).encode()).hexdigest()[:12]

    def rows(self, first: int = 0, end: int | None = None) -> list[tuple[int, int, Passage, Window]]:
        """Windows from `first` on: number of the passage, number in it, passage, window."""
        found = [(p, w, passage, window) for p, passage in enumerate(self.passages)
                 for w, window in enumerate(passage.windows)]  # fmt: skip
        return found[first:end]

    def head(self, windows: int) -> "Task":
        """The first so many windows; where a document is a passage, and its words count, all of the last one begun."""
        kept = []
        for passage in self.passages:
            whole = self.bytes is not None and windows > 0
            kept.append(passage if whole else Passage(passage.stream, passage.windows[: max(windows, 0)]))
            windows -= len(passage.windows)
        return replace(self, passages=kept)

    @property
    def scored(self) -> int:
        """Tokens still to be scored."""
        return sum(w.end - w.first for *_, w in self.rows(self.first))

    @property
    def documents(self) -> Array:
        """Scored tokens of each document that has any."""
        owners = [p.stream.document[w.first : w.end] for p in self.passages for w in p.windows]
        count = np.bincount(np.concatenate(owners))
        return count[count > 0]


def build(
    protocol: ProtocolConfig, evaluation: EvaluationConfig, corpus: Corpus, tokenizer: Any, positions: int,
    dtype: Dtype = Dtype.float32, quantization: Quantization | None = None, key: str = "protocol.ctx",
) -> Task:  # fmt: skip
    """State the measurement of a model with weights of such a type. Raises InputError for a context (told as `key`)
    beyond the model's positions or a text shorter than one window."""
    ctx = protocol.ctx or positions
    if ctx > positions:
        raise InputError(f"{key}={ctx}: the model has {positions} positions")
    if protocol.stride is not None and protocol.stride > ctx:
        raise InputError(f"protocol.stride={protocol.stride}: windows have {ctx} tokens, those between go unscored")
    split = evaluation.split.value
    documents = corpus.splits[split]
    statement: dict[str, Any] = {
        "protocol": protocol.kind.value, "ctx": ctx, "stride": protocol.stride, "data": corpus.name, "split": split,
        "data_digest": text_digest(documents), "tokenizer": tokenizer_digest(tokenizer),
        "max_tokens": evaluation.max_tokens,
    }  # fmt: skip
    if dtype is not Dtype.float32:
        statement["dtype"] = dtype.value
    if quantization is not None:
        statement["quantization"] = quantization.value
    drawn = evaluation.sample is Sample.passages
    if drawn:
        statement["sample"] = "passages"
    if corpus.cut is not None:
        statement["clean"] = True
    if evaluation.precision is not None:
        statement |= {"precision": evaluation.precision, "looks": 1}
    if protocol.kind is ProtocolKind.lm_eval_wikitext:
        prefix = prefix_token(tokenizer)
        if drawn:  # whole documents here, in the order of their hashes
            documents = sorted(documents, key=lambda d: hashlib.sha256(d.encode()).digest())
        words = [len(re.split(r"\s+", page)) for page in documents]
        pages = [detokenize(page) for page in documents] if corpus.wikitext else documents
        passages: list[Passage] = []
        # max_tokens keeps whole documents: words and bytes belong to all of a document
        for page in page_streams(tokenizer, pages, words):
            if evaluation.max_tokens is None or sum(len(p.stream.ids) for p in passages) < evaluation.max_tokens:
                passages.append(_with_prefix(page, prefix, ctx))
        kept = documents[: len(passages)]
        size = np.array([len(page.encode()) for page in kept])  # of the original pages, as the harness counts
        return Task(passages, np.array(words[: len(kept)]), {**statement, "prefix": prefix, "unit": "word"}, size)
    text = stream(tokenizer, documents, corpus.wikitext)
    stride = protocol.stride if protocol.kind is ProtocolKind.hf_strided else None
    if drawn:
        windows = draw(text, ctx, stride, evaluation.max_tokens)
        if not windows:
            raise InputError(f"data={corpus.name}: no document of its {split} split has two tokens, so none is scored")
    else:
        whole, text = len(text.ids), text.head(evaluation.max_tokens)
        if whole < ctx:
            has = f"its {split} split has {whole} tokens"
            raise InputError(f"data={corpus.name}: {has}, shorter than one window ({key}={ctx})")
        if len(text.ids) < ctx:
            more = f"shorter than one window ({key}={ctx}); give {ctx} or more, or null for all"
            raise InputError(f"evaluation.max_tokens={evaluation.max_tokens}: {more}")
        windows = cut(len(text.ids), ctx, stride)
    return Task([Passage(text, windows)], text.words, {**statement, "prefix": None, "unit": "token"})


def cut(tokens: int, ctx: int, stride: int | None) -> list[Window]:
    """Windows over a text of so many tokens, sliding by `stride` or disjoint."""
    return disjoint(tokens, ctx) if stride is None else strided(tokens, ctx, stride)


def draw(text: TokenStream, ctx: int, stride: int | None, most: int | None) -> list[Window]:
    """Windows that keep to one document, in the order of their hashes until `most` tokens are scored. Every document
    gives its first draw before any gives a second, so that long documents do not outweigh the others."""
    ranked = []
    starts = np.searchsorted(text.document, np.arange(text.documents + 1))
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        own = [Window(w.start + first, w.end + first, w.first + first) for w in cut(last - first, ctx, stride)]
        hashes = [hashlib.sha256(text.ids[w.start : w.end].tobytes()).digest() for w in own]
        order = sorted(zip(hashes, range(len(own)), strict=True))
        ranked += [(rank, key, own[i]) for rank, (key, i) in enumerate(order)]
    drawn: list[Window] = []
    scored = 0
    for _, _, window in sorted(ranked, key=lambda item: item[:2]):
        if most is not None and scored + window.end - window.first > most and drawn:
            break
        drawn.append(window)
        scored += window.end - window.first
    return drawn


def disjoint(tokens: int, ctx: int) -> list[Window]:
    """Windows of ctx tokens, each scoring all but its first; the last may be shorter."""
    return [Window(s, min(s + ctx, tokens), s + 1) for s in range(0, tokens - 1, ctx)]


def strided(tokens: int, ctx: int, stride: int) -> list[Window]:
    """Windows of ctx tokens moved by stride. Each token but the very first is scored by the first window that holds
    it."""
    windows, scored = [], 1
    for start in range(0, tokens, stride):
        end, first = min(start + ctx, tokens), max(scored, start + 1)
        if first < end:  # at stride = ctx a last token alone has nothing to be predicted from
            windows.append(Window(start, end, first))
            scored = end
        if end == tokens:
            break
    return windows


def _with_prefix(page: TokenStream, prefix: int, ctx: int) -> Passage:
    """The harness's rolling windows. Ctx tokens predicted from the token before them and each other; the last, shorter
    one moves back to a full context."""
    ids, document = np.concatenate([[prefix], page.ids]), np.concatenate([page.document[:1], page.document])
    text, size = TokenStream(ids, document, np.concatenate([[0], page.bytes]), page.words), len(page.ids)
    windows = [Window(max(0, min(s, size - ctx)), min(s + ctx, size) + 1, s + 1) for s in range(0, size, ctx)]
    return Passage(text, windows)


def prefix_token(tokenizer: Any) -> int:
    """Beginning of sequence, else end of sequence, as the harness chooses."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    why = "the tokenizer has neither a BOS nor an EOS token to start a document with"
    raise InputError(f"protocol=lm_eval_wikitext: {why}")


# WikiText's tokenisation undone by the rules, and in the order, of the harness's `wikitext_detokenizer`: plain
# replacements, spaces inside brackets and quotes, plain replacements again.
_BEFORE = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" : ", ": "), (" ; ", "; "),
    (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_AFTER = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"),
    (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def detokenize(page: str) -> str:
    """WikiText page as running text, by the harness's rules."""
    for old, new in _BEFORE:
        page = page.replace(old, new)
    for left, right in _PAIRS:
        page = re.sub(rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}", rf"{left}\1{right}", page)
    for old, new in _AFTER:
        page = page.replace(old, new)
    return page


def check_ids(model: Any, ids: Array) -> None:
    """Raise InputError where the tokenizer of a *ForCausalLM gives more tokens than the model has."""
    size, most = model.get_input_embeddings().num_embeddings, int(ids.max(initial=0))
    if most >= size:
        has = f"the model has {size:,} tokens, its tokenizer gives number {most:,}"
        raise InputError(f"model: {has} on this text; take the tokenizer that belongs to the model")


def stated(
    language: LanguageModel, corpus: Corpus, model: ModelConfig, protocol: ProtocolConfig, evaluation: EvaluationConfig
) -> Task:
    """What is to be measured. Raises InputError where the tokenizer is not the model's."""
    words = (protocol, evaluation, corpus, language.tokenizer, language.shape.max_position_embeddings)
    task = build(*words, model.dtype, model.quantization)
    for passage in task.passages:
        check_ids(language.model, passage.stream.ids)
    return task
