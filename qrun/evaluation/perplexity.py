"""Perplexity of a model on a stated task, per document: measure(model, task) -> Measurement (sums of nats)."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qrun.errors import RunFailed
from qrun.evaluation.measurement import Measurement
from qrun.evaluation.protocols import Passage, Task, Window
from qrun.rows import number as numbers
from qrun.rows import numbered

LOGITS = 2**26  # numbers of a logits table held at once; longer batches are scored in pieces


@torch.no_grad()
def measure(model: Any, task: Task, batch: int, progress: Callable[[int], None] = lambda _: None) -> Measurement:
    """Run every window once. `progress` is told the tokens scored. Raises RunFailed if a log-likelihood is not
    finite."""
    started = time.perf_counter()
    documents = len(task.words)
    nats, tokens, size = np.zeros(documents), np.zeros(documents, dtype=np.int64), np.zeros(documents, dtype=np.int64)
    for passages in _batches(task, batch):
        losses = window_losses(model, passages)
        scored = 0
        for (_, _, passage, window), loss in zip(passages, losses, strict=True):
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
    rows = [[value.item() for value in values[seen]] for values in (nats, tokens, size, task.words)]
    seconds = time.perf_counter() - started
    return Measurement(rows[0], rows[1], rows[2], rows[3], task.statement, task.fingerprint, seconds)


Placed = tuple[int, int, Passage, Window]  # number of the passage, of the window in it, and both


def _batches(task: Task, batch: int) -> Iterator[list[Placed]]:
    everything = [(p, w, passage, window) for p, passage in enumerate(task.passages)
                  for w, window in enumerate(passage.windows)]  # fmt: skip
    for start in range(0, len(everything), batch):
        yield everything[start : start + batch]


def window_losses(model: Any, windows: list[Placed]) -> list[np.ndarray]:
    """Nats of each window's scored targets, float64. Shorter windows are padded at the end, where a causal model cannot
    see it."""
    longest = max(w.end - w.start - 1 for _, _, _, w in windows)
    ids = torch.zeros(len(windows), longest + 1, dtype=torch.long)
    rows = np.empty((len(windows), longest), np.int64)
    for row, (text, number, passage, window) in enumerate(windows):
        ids[row, : window.end - window.start] = torch.from_numpy(passage.stream.ids[window.start : window.end])
        rows[row] = numbers(text, number, window.end - window.start - 1, longest)
    ids = ids.to(model.device)
    with numbered(rows):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    losses = token_losses(model, hidden, ids[:, 1:]).double().cpu().numpy()
    return [losses[row, w.first - w.start - 1 : w.end - w.start - 1] for row, (_, _, _, w) in enumerate(windows)]


def token_losses(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, float32 [batch, T]. The vocabulary is never expanded over all
    positions at once."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = max(1, LOGITS // model.config.vocab_size)
    pieces = zip(flat.split(rows), wanted.split(rows), strict=True)
    losses = [cross_entropy(model.lm_head(h).float(), t, reduction="none") for h, t in pieces]
    return torch.cat(losses).view(targets.shape)
