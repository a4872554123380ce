"""How often a 95 % interval holds the truth, by simulation, for as many documents and seeds as studies have.

python scripts/intervals.py [simulations]     300 of each column by default: a minute or two on one core

Documents have lengths (lognormal) and perplexities of their own; an adapter's gain in nats per token has a part that is
the document's, one that is the seed's, and one of both. Columns tell the standard deviations of the documents' and the
seeds' parts as shares of the gain. Truth is the population's: all documents, all seeds. The intervals over one of the
two say nothing of the other, and their own truth holds it fixed.
"""

import sys
from collections.abc import Iterator

import numpy as np

from qrun.evaluation.intervals import (
    effective_number,
    over_documents,
    over_seeds_and_documents,
    perplexity_difference,
    share_of_gain,
)
from qrun.evaluation.trends import mean_interval

NATS, SPREAD, GAIN, BOTH = 3.28, 0.4, 0.02, 0.3  # of nano on pydoc; BOTH is of the gain
LENGTHS, RESAMPLES = 0.6, 999  # sigma of the logarithm
CASES = ((1.0, 0.0), (0.0, 0.3), (1.0, 0.3), (2.0, 0.1))


def draw(
    rng: np.random.Generator, documents: int, seeds: int, of_documents: float, of_seeds: float
) -> tuple[np.ndarray, ...]:
    """Tokens [D]; nats of the frozen model [D], adapted [S, D], and keeping 60 % of that gain [S, D]; what nats adapted
    [D] are over all seeds; each seed's own gain [S]."""
    tokens = np.round(400 * np.exp(LENGTHS * rng.standard_normal(documents))) + 1
    level = NATS + SPREAD * rng.standard_normal(documents)
    seed = GAIN * (1 + of_seeds * rng.standard_normal(seeds))
    own = GAIN * of_documents * rng.standard_normal(documents)
    gains = seed[:, None] + own + GAIN * BOTH * rng.standard_normal((seeds, documents))
    kept = 0.6 * gains + GAIN * BOTH * rng.standard_normal((seeds, documents))
    over_all = tokens * (level - GAIN - own)
    return tokens, tokens * level, tokens * (level - gains), tokens * (level - kept), over_all, seed


def intervals(rng: np.random.Generator, *size: float) -> Iterator[tuple[str, bool]]:
    """Of one simulated study: a kind of interval, and whether it holds its truth."""
    tokens, frozen, adapted, kept, over_all, seed = draw(rng, *size)  # type: ignore[arg-type]
    truth, here = np.exp(NATS) - np.exp(NATS - GAIN), np.exp(frozen.sum() / tokens.sum())
    by_seed = mean_interval(here - np.exp(adapted.sum(1) / tokens.sum()))
    words = (tokens, RESAMPLES, int(rng.integers(2**31)))
    over = over_documents(perplexity_difference, (frozen, adapted.mean(0)), *words)
    kinds = {
        "t over seeds, these documents": (by_seed, here - np.exp(over_all.sum() / tokens.sum())),
        "BCa over documents, these seeds": (over, np.exp(NATS) - np.exp(NATS - seed.mean())),
        "t over seeds": (by_seed, truth),
        "BCa over documents": (over, truth),
        "over seeds and documents": (over_seeds_and_documents(perplexity_difference, (frozen, adapted), *words), truth),
        "over both, share of a gain": (over_seeds_and_documents(share_of_gain, (frozen, kept, adapted), *words), 0.6),
    }
    for kind, (interval, value) in kinds.items():
        if interval is not None:
            yield kind, bool(interval.low <= value <= interval.high)


def coverage(simulations: int, documents: int, seeds: int, case: tuple[float, float]) -> dict[str, float]:
    """Share of the intervals that hold their truth, by kind."""
    held: dict[str, list[bool]] = {}
    for number in range(simulations):
        for kind, holds in intervals(np.random.default_rng([number, documents]), documents, seeds, *case):
            held.setdefault(kind, []).append(holds)
    return {kind: float(np.mean(found)) for kind, found in held.items()}


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    heads = [(documents, 5, case) for documents in (41, 100) for case in CASES]
    columns = [coverage(simulations, *head) for head in heads]
    effective = {d: effective_number(draw(np.random.default_rng(0), d, 2, 0, 0)[0]) for d in (41, 100)}
    print(
        "| documents (effective), seeds, of documents, of seeds | "
        + " | ".join(f"{d} ({effective[d]:.0f}), {s}, {a:g}, {b:g}" for d, s, (a, b) in heads)
        + " |"
    )
    print("| --- |" + " ---: |" * len(heads))
    for kind in columns[0]:
        print(f"| {kind} | " + " | ".join(f"{column[kind]:.0%}" for column in columns) + " |")


if __name__ == "__main__":
    main()
