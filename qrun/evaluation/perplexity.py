"""Perplexity of a model on a stated task, per document: measure(model, task) -> Measurement (sums of nats)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qrun.errors import NotFinite
from qrun.evaluation.measurement import Measurement
from qrun.evaluation.protocols import Passage, Task, Window
from qrun.evaluation.trunk import Trunk, last_hidden
from qrun.rows import number as numbers
from qrun.rows import numbered

LOGITS = 2**20  # numbers of a logits table held at once: with its softmax and gradient it stays in a processor's cache
ROWS = 128  # never fewer tokens at once: below, reading the head's weights costs more than it saves
POOL = 64  # batches whose windows are sorted by length, so that little is padding
PADDED = 0.75  # the shortest window of a batch has at least this share of its longest


@torch.no_grad()
def measure(
    model: Any, task: Task, batch: int, progress: Callable[[int], None] = lambda _: None, trunk: Trunk | None = None,
    before: Measurement | None = None,
) -> Measurement:  # fmt: skip
    """Run every window once, at most `batch` together. `progress` is told the tokens scored; `trunk` keeps what the
    frozen layers make of the task's windows; `before` is what the windows before `task.first` came to. Raises RunFailed
    if a log-likelihood is not finite."""
    started = time.perf_counter()
    documents = len(task.words)
    nats, tokens, size = np.zeros(documents), np.zeros(documents, dtype=np.int64), np.zeros(documents, dtype=np.int64)
    if before is not None:
        seen = sorted({int(d) for *_, passage, w in task.rows(0, task.first)
                       for d in np.unique(passage.stream.document[w.first : w.end])})  # fmt: skip
        nats[seen], tokens[seen], size[seen] = before.nats, before.tokens, before.bytes
    for pool in pools(task, batch):
        found: dict[int, np.ndarray] = {}
        for windows in pool:
            losses = window_losses(model, windows, trunk)
            found |= {placed.row: loss for placed, loss in zip(windows, losses, strict=True)}
            progress(sum(map(len, losses)))
        for placed in sorted((p for windows in pool for p in windows), key=lambda p: p.row):
            at = slice(placed.window.first, placed.window.end)
            document = placed.passage.stream.document[at]
            np.add.at(nats, document, found[placed.row])
            np.add.at(tokens, document, 1)
            np.add.at(size, document, placed.passage.stream.bytes[at])
    if not np.isfinite(nats).all():
        raise NotFinite("the model's log-likelihoods are not finite; nothing is averaged over what is missing")
    if task.bytes is not None:
        size = task.bytes
    scored = tokens > 0  # a document can lie wholly in an unscored position
    rows = [[value.item() for value in values[scored]] for values in (nats, tokens, size, task.words)]
    seconds = time.perf_counter() - started + (before.seconds if before else 0.0)
    return Measurement(rows[0], rows[1], rows[2], rows[3], task.statement, task.fingerprint, seconds)


@dataclass(frozen=True)
class Placed:
    """A window and where it stands: number in the task, of its passage, and in the passage."""

    row: int
    text: int
    number: int
    passage: Passage
    window: Window

    @property
    def length(self) -> int:
        """Tokens that are fed."""
        return self.window.end - self.window.start - 1


def pools(task: Task, batch: int) -> Iterator[list[list[Placed]]]:
    """Batches of windows of about one length, longest first, sorted within so many windows of the task."""
    everything = [Placed(row, *place) for row, place in enumerate(task.rows(task.first), start=task.first)]
    for start in range(0, len(everything), POOL * batch):
        batches: list[list[Placed]] = []
        for placed_window in sorted(everything[start : start + POOL * batch], key=lambda p: -p.length):
            full = not batches or len(batches[-1]) == batch
            if full or placed_window.length < PADDED * batches[-1][0].length:
                batches.append([])
            batches[-1].append(placed_window)
        yield batches


def fed(windows: list[Placed]) -> Tensor:
    """Token ids [batch, longest + 1] of a batch. Shorter windows are padded at the end, where a causal model cannot see
    it."""
    ids = torch.zeros(len(windows), windows[0].length + 1, dtype=torch.long)
    for row, placed in zip(ids, windows, strict=True):
        row[: placed.length + 1] = torch.from_numpy(placed.passage.stream.ids[placed.window.start : placed.window.end])
    return ids


def window_losses(model: Any, windows: list[Placed], trunk: Trunk | None = None) -> list[np.ndarray]:
    """Nats of each window's scored targets, float64, for windows with the longest first."""
    ids = fed(windows).to(model.device)
    rows = np.stack([numbers(p.text, p.number, p.length, windows[0].length) for p in windows])
    with numbered(rows):
        if trunk is None:
            hidden = last_hidden(model, ids[:, :-1])
        else:
            hidden = trunk.hidden(model, ids[:, :-1], [p.row for p in windows])
    losses = token_losses(model, hidden, ids[:, 1:]).double().cpu().numpy()
    places = [(p.window.first - p.window.start - 1, p.length) for p in windows]
    return [loss[first:end] for loss, (first, end) in zip(losses, places, strict=True)]


def piece(vocabulary: int) -> int:
    """Tokens whose logits are held at once."""
    return max(ROWS, LOGITS // vocabulary)


def token_losses(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, float32 [batch, T]. The vocabulary is never expanded over all
    positions at once."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = piece(model.config.vocab_size)
    pieces = zip(flat.split(rows), wanted.split(rows), strict=True)
    losses = [cross_entropy(model.lm_head(h).float(), t, reduction="none") for h, t in pieces]
    return torch.cat(losses).view(targets.shape)
