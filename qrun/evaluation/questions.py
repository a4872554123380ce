"""Answers by likelihood and by sampling, and paired tests between models on the same questions.

score of a choice   sum of log p(token | prompt and the tokens before), per byte of the choice where choices differ in
                    length (lm-evaluation-harness's acc_norm)
sampled answer      a choice drawn with probability proportional to exp(sum of log p / T), n trials per question and
                    temperature
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from qrun.errors import RunFailed
from qrun.evaluation.perplexity import token_losses
from qrun.language.questions import Question
from qrun.rows import number, numbered

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Log-likelihoods [questions, 4] in nats, bytes of the choices, and the right answers."""

    likelihood: Floats
    bytes: NDArray[np.int64]
    right: NDArray[np.int64]

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The likeliest choice, per byte."""
        return (self.likelihood / self.bytes).argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.chosen == self.right

    def sampled(self, temperature: float, trials: int, seed: int) -> NDArray[np.int64]:
        """Right answers out of `trials` for every question."""
        logits = self.likelihood / temperature
        p = np.exp(logits - logits.max(1, keepdims=True))
        drawn = np.random.default_rng([seed, round(1e6 * temperature)]).multinomial(trials, p / p.sum(1, keepdims=True))
        return drawn[np.arange(len(drawn)), self.right]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[Question], batch: int, chat: bool = False) -> Answers:
    """Score every choice after its prompt, which in a chat has its special tokens already. Prompts beyond the model's
    positions lose their beginning. Raises RunFailed for likelihoods that are not finite."""
    positions = model.config.max_position_embeddings
    rows: list[tuple[list[int], int]] = []
    for question in questions:
        prompt = tokenizer(question.prompt, add_special_tokens=not chat)["input_ids"]
        for choice in question.choices:
            tokens = tokenizer(choice, add_special_tokens=False)["input_ids"]
            rows.append(((prompt + tokens)[-positions:], len(tokens)))
    likelihood = np.zeros(len(rows))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(len(ids) for ids, _ in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        places = np.empty((len(part), longest - 1), np.int64)
        for row, (tokens, _) in enumerate(part):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            places[row] = number(start + row, 0, len(tokens) - 1, longest - 1)
        ids = ids.to(model.device)
        with numbered(places):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        losses = token_losses(model, hidden, ids[:, 1:]).double().cpu().numpy()
        for row, (tokens, count) in enumerate(part):
            likelihood[start + row] = -losses[row, len(tokens) - 1 - count : len(tokens) - 1].sum()
    if not np.isfinite(likelihood).all():
        raise RunFailed("the model's log-likelihoods are not finite")
    size = np.array([[max(1, len(c.encode())) for c in q.choices] for q in questions])
    return Answers(likelihood.reshape(len(questions), -1), size, np.array([q.answer for q in questions]))


def binomial_interval(right: int, trials: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval of a share."""
    found = scipy.stats.binomtest(right, trials).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """Questions that one model answers and the other does not, and the exact two-sided McNemar p value."""
    lost, won = np.flatnonzero(first & ~second).tolist(), np.flatnonzero(~first & second).tolist()
    p = float(scipy.stats.binomtest(len(won), len(won) + len(lost)).pvalue) if won or lost else 1.0
    return {"right_to_wrong": lost, "wrong_to_right": won, "p": p}


def both_fail(
    original: Bools, compressed: Bools, adapted: Bools, before: NDArray[np.number], after: NDArray[np.number]
) -> dict[str, Any]:
    """Questions that both baselines fail and the adapter answers, with what chance alone gives.

    Booleans say who is right; `before` and `after` are the choices of the compressed model and the adapter. `guessing`:
    expected number if the adapter guessed evenly among the four choices; `flips`: if its answers that differ from the
    compressed model's (`changed`) fell evenly on the other three choices.
    """
    fail = ~original & ~compressed
    changed = fail & (after != before)
    found = np.flatnonzero(fail & adapted).tolist()
    tail = float(scipy.stats.binom.sf(len(found) - 1, int(changed.sum()), 1 / 3)) if changed.any() else 1.0
    return {
        "failed": int(fail.sum()), "answered": found, "changed": int(changed.sum()),
        "guessing": float(fail.sum()) / 4, "flips": float(changed.sum()) / 3, "p": tail,
    }  # fmt: skip
