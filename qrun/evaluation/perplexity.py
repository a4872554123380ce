"""Perplexity and bits per byte of a model on a stated task, per document, and paired differences of two such
measurements.

    measure(model, task) -> Measurement      sums of negative log-likelihood in nats, per document
    difference(a, b) -> Difference           refused unless both have the same fingerprint

Perplexity = exp(sum of nats / scored tokens), or / words for lm_eval_wikitext. Nothing is averaged over windows,
skipped or dropped.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qrun.errors import InputError, RunFailed
from qrun.evaluation.protocols import Passage, Task, Window

LOGITS = 2**26  # numbers of a logits table held at once; longer batches are scored in pieces


@dataclass(frozen=True)
class Measurement:
    """Per document: nats of the scored tokens, their count, their bytes, and the document's words."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]
    words: list[int]
    statement: dict[str, Any]
    fingerprint: str
    seconds: float = 0.0

    @property
    def normaliser(self) -> list[int]:
        return self.words if self.statement["unit"] == "word" else self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(sum(self.nats) / sum(self.normaliser))

    @property
    def bits_per_byte(self) -> float:
        return sum(self.nats) / math.log(2) / sum(self.bytes)

    def to_json(self) -> str:
        return json.dumps(
            {**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}, indent=1
        )

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        values = json.loads(text)
        return cls(
            **{k: values[k] for k in ("nats", "tokens", "bytes", "words", "statement", "fingerprint", "seconds")}
        )


@torch.no_grad()
def measure(model: Any, task: Task, batch: int, progress: Callable[[int], None] = lambda _: None) -> Measurement:
    """Run every window once.

    `progress` is told the tokens scored. Raises RunFailed if a log-likelihood is not finite.
    """
    import time

    started = time.perf_counter()
    documents = len(task.words)
    nats, tokens, size = np.zeros(documents), np.zeros(documents, dtype=np.int64), np.zeros(documents, dtype=np.int64)
    for passages in _batches(task, batch):
        losses = window_losses(model, passages)
        scored = 0
        for (passage, window), loss in zip(passages, losses, strict=True):
            at = slice(window.first, window.end)
            document = passage.stream.document[at]
            np.add.at(nats, document, loss)
            np.add.at(tokens, document, 1)
            np.add.at(size, document, passage.stream.bytes[at])
            scored += len(loss)
        progress(scored)
    if not np.isfinite(nats).all():
        raise RunFailed("the model's log-likelihoods are not finite; nothing is averaged over what is missing")
    if task.bytes is not None:
        size = task.bytes
    seen = tokens > 0  # a document can lie wholly in an unscored position
    statement, pick = task.statement, lambda values: [v.item() for v in values[seen]]
    return Measurement(
        pick(nats),
        pick(tokens),
        pick(size),
        pick(task.words),
        statement,
        task.fingerprint,
        time.perf_counter() - started,
    )


def _batches(task: Task, batch: int) -> Iterator[list[tuple[Passage, Window]]]:
    everything = [(passage, window) for passage in task.passages for window in passage.windows]
    for start in range(0, len(everything), batch):
        yield everything[start : start + batch]


def window_losses(model: Any, windows: list[tuple[Passage, Window]]) -> list[np.ndarray]:
    """Nats of each window's scored targets, float64.

    Shorter windows are padded at the end, where a causal model cannot see it.
    """
    longest = max(w.end - w.start - 1 for _, w in windows)
    ids = torch.zeros(len(windows), longest + 1, dtype=torch.long)
    for row, (passage, window) in enumerate(windows):
        ids[row, : window.end - window.start] = torch.from_numpy(passage.stream.ids[window.start : window.end])
    ids = ids.to(model.device)
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    losses = token_losses(model, hidden, ids[:, 1:]).double().cpu().numpy()
    return [losses[row, w.first - w.start - 1 : w.end - w.start - 1] for row, (_, w) in enumerate(windows)]


def token_losses(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, float32 [batch, T].

    The vocabulary is never expanded over all positions at once.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = max(1, LOGITS // model.config.vocab_size)
    pieces = [
        cross_entropy(model.lm_head(h).float(), t, reduction="none")
        for h, t in zip(flat.split(rows), wanted.split(rows), strict=True)
    ]
    return torch.cat(pieces).view(targets.shape)


@dataclass(frozen=True)
class Difference:
    """Paired difference a - b of two measurements of the same task, with a 95 % interval over documents (or
    windows)."""

    value: float
    low: float
    high: float
    unit: str
    units: int


def difference(a: Measurement, b: Measurement, resamples: int, seed: int) -> Difference:
    """PPL_a - PPL_b, interval by BCa bootstrap over documents, both measurements resampled together.

    Raises InputError if they differ in protocol.
    """
    if a.fingerprint != b.fingerprint:
        differing = [
            f"{k} {a.statement.get(k)} / {b.statement.get(k)}"
            for k in sorted({*a.statement, *b.statement})
            if a.statement.get(k) != b.statement.get(k)
        ]
        raise InputError(f"these perplexities follow different protocols and are not compared: {'; '.join(differing)}")
    from qrun.evaluation.intervals import paired_interval

    low, high = paired_interval(np.array(a.nats), np.array(b.nats), np.array(a.normaliser), resamples, seed)
    return Difference(a.perplexity - b.perplexity, low, high, "documents", len(a.nats))
