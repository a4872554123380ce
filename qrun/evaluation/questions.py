"""Answers by likelihood and by sampling, and paired tests between models on the same questions.

score of a choice   sum of log p(token | prompt and the tokens before), per byte of the choice where choices differ in
                    length; tokens, cut and acc_norm are lm-evaluation-harness's
sampled answer      a choice drawn with probability proportional to exp(score * mean bytes of the choices / T), n trials
                    per question and temperature
cluster             questions cut from one document; they are resampled together
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from qrun.errors import RunFailed
from qrun.evaluation.intervals import Floats, Interval, over_documents
from qrun.evaluation.perplexity import token_losses
from qrun.language.questions import Question
from qrun.rows import number, numbered

Bools = NDArray[np.bool_]
RESAMPLES = 9999  # of bootstraps and of random flips, always from seed 0


@dataclass(frozen=True)
class Answers:
    """Log-likelihoods [questions, most choices] in nats, -inf where a question has fewer; bytes of the choices, the
    right answers, and how many prompts lost their beginning to the model's context."""

    likelihood: Floats
    bytes: NDArray[np.int64]
    right: NDArray[np.int64]
    truncated: int = 0

    @property
    def choices(self) -> NDArray[np.int64]:
        """How many each question has."""
        return np.isfinite(self.likelihood).sum(1)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The likeliest choice, per byte."""
        return (self.likelihood / self.bytes).argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.chosen == self.right

    def sampled(self, temperature: float, trials: int, seed: int) -> NDArray[np.int64]:
        """Right answers out of `trials` for every question."""
        there = np.isfinite(self.likelihood)
        size = (self.bytes * there).sum(1, keepdims=True) / self.choices[:, None]
        logits = self.likelihood / self.bytes * size / temperature
        p = np.exp(logits - logits.max(1, keepdims=True))
        drawn = np.random.default_rng([seed, round(1e6 * temperature)]).multinomial(trials, p / p.sum(1, keepdims=True))
        return drawn[np.arange(len(drawn)), self.right]


class Choice(NamedTuple):
    """A choice to score: of which question, at which place, as tokens."""

    question: int
    place: int
    tokens: list[int]


def encoded(tokenizer: Any, prompt: str, choice: str, chat: bool) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of a choice behind it, as the harness has them: the prompt's last spaces belong to the
    choice, and the choice has what the two together have more than the prompt. In a chat, whose template writes special
    tokens and the last line's end, the prompt stays whole."""
    bare = prompt if chat else prompt.rstrip()
    whole, before = (tokenizer(text, add_special_tokens=not chat)["input_ids"] for text in (prompt + choice, bare))
    return before, whole[len(before) :]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[Question], batch: int, chat: bool = False) -> Answers:
    """Score every choice after its prompt, which in a chat has its special tokens already. Choices of one token each,
    such as letters, share one pass over the prompt. Prompts beyond the model's positions lose their beginning. Raises
    RunFailed for likelihoods that are not finite."""
    positions, truncated = model.config.max_position_embeddings, 0
    rows: list[tuple[list[int], list[Choice]]] = []  # tokens that are fed, and the choices scored behind them
    for at, question in enumerate(questions):
        pairs = [encoded(tokenizer, question.prompt, choice, chat) for choice in question.choices]
        prompt, asked = pairs[0][0], [Choice(at, k, own[-positions:]) for k, (_, own) in enumerate(pairs)]
        together = [asked] if all(len(choice.tokens) == 1 for choice in asked) else [[choice] for choice in asked]
        rows += [((prompt + of[0].tokens)[:-1][-positions:], of) for of in together]
        truncated += len(prompt) + max(len(own) for _, own in pairs) - 1 > positions
    most = max(len(q.choices) for q in questions)
    likelihood, size = np.full((len(questions), most), -np.inf), np.ones((len(questions), most), np.int64)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(len(fed) for fed, _ in part)
        ids, places = torch.zeros(len(part), longest, dtype=torch.long), np.empty((len(part), longest), np.int64)
        for row, (fed, _) in enumerate(part):
            ids[row, : len(fed)] = torch.tensor(fed)
            places[row] = number(start + row, 0, len(fed), longest)
        with numbered(places):
            hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        scored = [(hidden[row, : len(fed)], choice) for row, (fed, asked) in enumerate(part) for choice in asked]
        behind = torch.cat([states[-len(choice.tokens) :] for states, choice in scored])
        targets = torch.tensor([token for _, choice in scored for token in choice.tokens], device=behind.device)
        losses = token_losses(model, behind[None], targets[None])[0].double().cpu()
        sums = losses.split([len(choice.tokens) for _, choice in scored])
        for (_, choice), own in zip(scored, sums, strict=True):
            likelihood[choice.question, choice.place] = -own.sum()
            text = questions[choice.question].choices[choice.place]
            size[choice.question, choice.place] = max(1, len(text.encode()))
    right = np.array([q.answer for q in questions])
    found = Answers(likelihood, size, right, truncated)
    if (found.choices != [len(q.choices) for q in questions]).any():
        raise RunFailed("the model's log-likelihoods are not finite")
    return found


def clustered_share(part: Floats, whole: Floats, cluster: NDArray[np.number]) -> Interval | None:
    """BCa interval over clusters of sum(part) / sum(whole), of values [questions]; None below 20 effective clusters."""
    _, at = np.unique(cluster, return_inverse=True)
    sums = [np.bincount(at, values).astype(float) for values in (part, whole)]
    kept = sums[1] > 0

    def ratio(part: Floats, whole: Floats, weight: Floats, axis: int = -1) -> Floats:
        return part.sum(axis) / whole.sum(axis)

    return over_documents(ratio, [values[kept] for values in sums], sums[1][kept], RESAMPLES, 0)


def clustered_p(won: Floats, cluster: NDArray[np.number]) -> float:
    """Two-sided p value of net changes [questions], +1, 0 or -1, whose sign is flipped cluster by cluster at random."""
    _, at = np.unique(cluster, return_inverse=True)
    net = np.bincount(at, won)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (RESAMPLES, len(net)))
    return float((1 + (np.abs(signs @ net) >= abs(net.sum()) - 1e-9).sum()) / (1 + RESAMPLES))


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
    original: Bools, compressed: Bools, adapted: Bools, before: NDArray[np.number], after: NDArray[np.number],
    choices: NDArray[np.number],
) -> dict[str, Any]:  # fmt: skip
    """Questions that both baselines fail and the adapter answers, with what chance alone gives.

    Booleans say who is right; `before` and `after` are the choices of the compressed model and the adapter, of
    `choices` each. `guessing`: expected number if the adapter guessed evenly among the choices; `flips`: if its answers
    that differ from the compressed model's (`changed`) fell evenly on the other choices, `p` the chance of as many.
    """
    fail = ~original & ~compressed
    changed = fail & (after != before)
    found = np.flatnonzero(fail & adapted).tolist()
    chances, tail = 1 / (choices[changed] - 1), np.ones(1)
    for chance in chances:  # the sum of unequal coins: Poisson's binomial
        tail = np.convolve(tail, [1 - chance, chance])
    return {
        "failed": int(fail.sum()), "answered": found, "changed": int(changed.sum()),
        "guessing": math.fsum(1 / choices[fail]), "flips": math.fsum(chances),
        "p": float(min(tail[len(found) :].sum(), 1.0)),
    }  # fmt: skip
