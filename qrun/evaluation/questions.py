"""Answers by likelihood and by sampling, and paired tests between models on the same questions.

score of a choice   sum of log p(token | prompt and the tokens before), per character of the choice without the space
                    before it: tokens, cut, acc (by the sum) and acc_norm (by the score) are lm-evaluation-harness's
sampled answer      a choice drawn with probability proportional to exp(score * mean characters of the choices / T), n
                    trials per question and temperature
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

from qrun.errors import InputError, RunFailed
from qrun.evaluation.intervals import LEAST, Floats, Interval, effective_number, over_documents
from qrun.evaluation.perplexity import token_losses
from qrun.evaluation.protocols import check_ids
from qrun.language.questions import Question
from qrun.rows import number, numbered

Bools = NDArray[np.bool_]
RESAMPLES = 9999  # of bootstraps and of random flips, always from seed 0


@dataclass(frozen=True)
class Answers:
    """Log-likelihoods [questions, most choices] in nats, -inf where a question has fewer; characters of the choices,
    the right answers, and how many tokens of each question's beginning were beyond the model's context."""

    likelihood: Floats
    characters: NDArray[np.int64]
    right: NDArray[np.int64]
    lost: NDArray[np.int64]

    @property
    def choices(self) -> NDArray[np.int64]:
        """How many each question has."""
        return np.isfinite(self.likelihood).sum(1)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The likeliest choice, per character."""
        return (self.likelihood / self.characters).argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """The harness's acc_norm, question by question."""
        return self.chosen == self.right

    @property
    def likeliest(self) -> NDArray[np.bool_]:
        """Whether the right answer has the greatest sum, the harness's acc; where choices are letters, `correct`."""
        return self.likelihood.argmax(1) == self.right

    def sampled(self, temperature: float, trials: int, seed: int) -> NDArray[np.int64]:
        """Right answers out of `trials` for every question."""
        there = np.isfinite(self.likelihood)
        size = (self.characters * there).sum(1, keepdims=True) / self.choices[:, None]
        logits = self.likelihood / self.characters * size / temperature
        p = np.exp(logits - logits.max(1, keepdims=True))
        drawn = np.random.default_rng([seed, round(1e6 * temperature)]).multinomial(trials, p / p.sum(1, keepdims=True))
        return drawn[np.arange(len(drawn)), self.right]


class Choice(NamedTuple):
    """A choice to score: of which question, at which place, as tokens."""

    question: int
    place: int
    tokens: list[int]


def encoded(tokenizer: Any, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of a choice behind it, as the harness's `_encode_pair` has them: the prompt's last spaces
    and line ends belong to the choice, the choice has what the two together have more than the prompt, and a text that
    opens with the first special token (a chat's) gets no second one. That token stands for a prompt of no words."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    first = "" if start is None else tokenizer.decode(start)

    def ids(text: str) -> list[int]:
        whole = bool(prompt.strip()) and not (first and text.startswith(first))
        found: list[int] = tokenizer(text, add_special_tokens=whole, verbose=False)["input_ids"]
        return found

    both = ids(prompt + choice)
    before = ids(prompt.rstrip()) if prompt.strip() else both[:1] if both[:1] == [start] else []
    return before or [start], both[len(before) :]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[Question], batch: int) -> Answers:
    """Score every choice after its prompt. Choices that differ in their last token only, such as letters, share one
    pass over the prompt. Prompts beyond the model's positions lose their beginning. Raises InputError for a choice
    without a token of its own, RunFailed for likelihoods that are not finite."""
    positions, lost = model.config.max_position_embeddings, np.zeros(len(questions), np.int64)
    rows: list[tuple[list[int], list[Choice]]] = []  # tokens that are fed, and the choices scored behind them
    for at, question in enumerate(questions):
        pairs = [encoded(tokenizer, question.prompt, choice) for choice in question.choices]
        prompt, asked = pairs[0][0], [Choice(at, k, own[-positions:]) for k, (_, own) in enumerate(pairs)]
        none = next((choice for choice in asked if not choice.tokens), None)
        if none is not None:
            what = f"choice {question.choices[none.place]!r:.80} has no token of its own behind its prompt"
            raise InputError(f"question {question.name}: {what}; begin choices with a space or another word")
        together = [asked] if len({tuple(c.tokens[:-1]) for c in asked}) == 1 else [[choice] for choice in asked]
        rows += [((prompt + of[0].tokens)[:-1][-positions:], of) for of in together]
        lost[at] = max(0, len(prompt) + max(len(own) for _, own in pairs) - 1 - positions)
    check_ids(model, np.array([max(fed + [c.tokens[-1] for c in of]) for fed, of in rows]))
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
            size[choice.question, choice.place] = max(1, len(text.lstrip()))
    right = np.array([q.answer for q in questions])
    found = Answers(likelihood, size, right, lost)
    if (found.choices != [len(q.choices) for q in questions]).any():
        raise RunFailed("the model's log-likelihoods are not finite")
    return found


def clustered_share(part: Floats, whole: Floats, cluster: NDArray[np.number]) -> Interval | None:
    """BCa interval over clusters of sum(part) / sum(whole), of values [questions]; None below 20 effective clusters,
    and where all clusters are alike."""
    _, at = np.unique(cluster, return_inverse=True)
    sums = [np.bincount(at, values).astype(float) for values in (part, whole)]
    kept = sums[1] > 0
    if np.array_equal(sums[0], sums[1]):
        return None

    def ratio(part: Floats, whole: Floats, weight: Floats, axis: int = -1) -> Floats:
        return part.sum(axis) / whole.sum(axis)

    return over_documents(ratio, [values[kept] for values in sums], sums[1][kept], RESAMPLES, 0)


def share_right(part: Floats, whole: Floats, cluster: NDArray[np.number]) -> Interval | None:
    """`clustered_share` of what is right, 0 <= part <= whole. None or all are as many effective clusters without one of
    the other kind: Clopper and Pearson's interval of those."""
    right, count = float(part.sum()), float(whole.sum())
    if 0 < right < count or not count:
        return clustered_share(part, whole, cluster)
    _, at = np.unique(cluster, return_inverse=True)
    size = effective_number(np.bincount(at, whole).astype(float))
    return Interval(*binomial_interval(int(size) if right else 0, int(size))) if size >= LEAST else None


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
