"""Learning rates by the same rule for every method: as many trials on a logarithmic grid around the rate that it
states, one more beyond the edge if the best is the edge, compared on validation text with a seed that no study uses.

    scan(config, trials, workspace, folder, store, run, interrupt) -> [Trial, ...], the best by `best`

A trial ends when it diverges, and at the first validation after the warm-up if that is worse than no training. What is
finished is kept in a file, and the trial that a signal ends goes on at its checkpoint.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from qrun.cells.workspace import Workspace
from qrun.config.verbs import TrainConfig
from qrun.errors import RunFailed
from qrun.evaluation.intervals import mean_error
from qrun.files import replaced
from qrun.recipes.fitting import fit_adapter, prepared, resume, validated
from qrun.tracking.runs import Run
from qrun.tracking.store import Store
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import Diverged, at_cap

RATIO = 10**0.5  # of neighbouring rates
TRIALS = "trials.json"


@dataclass(frozen=True)
class Trial:
    """One rate; `nats` per validation token of its best parameters, inf if it diverged."""

    lr: float
    nats: float
    steps: int
    best_step: int
    pruned: bool
    at_cap: bool
    documents: list[float] = field(default_factory=list)  # nats of each; none of a trial that did not end by itself
    tokens: list[float] = field(default_factory=list)


class Worse(Exception):
    """The first validation after the warm-up is worse than no training."""


def grid(stated: float, trials: int) -> list[float]:
    """Rates from low to high, the stated one in the middle, or below it for an even number."""
    return [stated * RATIO**power for power in range(-((trials - 1) // 2), trials // 2 + 1)]


def beyond(tried: Sequence[Trial]) -> float | None:
    """The next rate where the best of all is at an edge."""
    rates, winner = [trial.lr for trial in tried], best(tried).lr
    if winner == max(rates):
        return winner * RATIO
    return winner / RATIO if winner == min(rates) else None


def best(tried: Sequence[Trial]) -> Trial:
    """The least nats; the lowest rate of several with the same bits. Raises RunFailed if all diverged."""
    winner = min(tried, key=lambda trial: (trial.nats, trial.lr))
    if not np.isfinite(winner.nats):
        rates = ", ".join(f"{trial.lr:g}" for trial in tried)
        raise RunFailed(f"training diverged at every rate tried ({rates}); state a lower one")
    return winner


def behind(trial: Trial, winner: Trial) -> tuple[float, float]:
    """Nats per token behind the best, and the standard error of that over documents, paired; nan where it did not end
    by itself."""
    if not trial.documents:
        return trial.nats - winner.nats, np.nan
    gap = np.subtract(trial.documents, winner.documents)
    return mean_error(gap, np.asarray(winner.tokens))


def units(tried: Sequence[Trial]) -> dict[str, list[float | None]]:
    """A number for each trial, from the lowest rate up: what pages tell. Null is a number that does not exist."""
    ordered, winner = sorted(tried, key=lambda trial: trial.lr), best(tried)
    gaps = [behind(trial, winner) for trial in ordered]
    columns: dict[str, list[float]] = {
        "lr": [t.lr for t in ordered], "nats": [t.nats for t in ordered], "behind": [gap for gap, _ in gaps],
        "error": [error for _, error in gaps], "steps": [t.steps for t in ordered],
        "best_step": [t.best_step for t in ordered], "pruned": [t.pruned for t in ordered],
        "at_cap": [t.at_cap for t in ordered],
    }  # fmt: skip
    return {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in columns.items()}


def scan(
    config: TrainConfig, trials: int, workspace: Workspace, folder: Path, store: Store, run: Run, interrupt: Interrupt,
    key: str | None = None,
) -> list[Trial]:  # fmt: skip
    """Every trial, in the order it ran. `folder` keeps what is finished until the caller removes it; `key` is the
    scan's cell's."""
    kept = folder / TRIALS
    tried = [Trial(**row) for row in json.loads(kept.read_text())] if kept.is_file() else []
    rates = grid(config.training.lr, trials)
    while (lr := rates[len(tried)] if len(tried) < trials else beyond(tried)) is not None and len(tried) <= trials:
        state = folder / f"trial-{len(tried)}.safetensors"
        tried.append(trial(config, lr, workspace, state, store, run, interrupt, key))
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(kept) as file:
            file.write_text(json.dumps([asdict(each) for each in tried]))
    return tried


def trial(
    config: TrainConfig, lr: float, workspace: Workspace, state: Path, store: Store, run: Run, interrupt: Interrupt,
    key: str | None = None,
) -> Trial:  # fmt: skip
    """One training at one rate."""
    own = replace(config, training=replace(config.training, lr=lr))
    with prepared(own, workspace, key) as job:
        seen, _ = resume(job, state, store)

        def watch(now: Progress) -> None:
            nonlocal seen
            seen = now
            looks = [row for row in now.evaluations if row["step"] >= own.training.warmup and row["step"]]
            if len(looks) == 1 and looks[0]["validation_nats"] > now.evaluations[0]["validation_nats"]:
                raise Worse

        try:
            done = fit_adapter(job, run, state, seen, interrupt, watch)
            with job.adapter.expecting(own.training.kept):  # as the parameters and the other rates were judged
                result = validated(job)
            cap = at_cap(own.training, done.evaluations)
            nats, size = [float(x) for x in result.nats], [float(x) for x in result.tokens]
            return Trial(lr, sum(nats) / sum(size), done.step, done.best_step, False, cap, nats, size)
        except Worse:
            return Trial(lr, seen.evaluations[-1]["validation_nats"], seen.step, 0, True, False)
        except Diverged:
            return Trial(lr, float("inf"), seen.step, 0, False, False)
        finally:
            if interrupt.received is None:
                state.unlink(missing_ok=True)
