"""How often a 95 % interval holds the truth, by simulation, for as many documents and seeds as studies have.

python scripts/intervals.py [simulations]     300 of each column by default: four minutes on one core

Documents have lengths (lognormal) and perplexities of their own; an adapter's gain in nats per token has a part that is
the document's, one that is the seed's, and one of both. Columns tell the standard deviations of the documents' and the
seeds' parts as shares of the gain, or of the damage of noise and compression. Truth is the population's: all documents,
all seeds. The intervals over one of the two say nothing of the other, and their own truth holds it fixed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qrun.evaluation.intervals import Interval, effective_number, over_documents, perplexity, perplexity_difference
from qrun.evaluation.resampling import over_seeds_and_documents, recovery, share_of_gain
from qrun.evaluation.trends import crossings, mean_interval, power_law, widths

NATS, SPREAD, GAIN, BOTH = 3.28, 0.4, 0.02, 0.3  # of nano on pydoc; BOTH is of the gain
LENGTHS, RESAMPLES = 0.6, 999  # sigma of the logarithm
RATES, COUNTS = np.geomspace(1e-4, 3.2e-2, 16), (1.0, 2.0, 4.0, 8.0, 16.0, 42.0)  # as sweep noise and sweep sites have
CRITICAL, PENALTY, DAMAGE, BACK = 3e-3, 0.002, 0.5, 0.4  # rate; nats of one site; nats of compression; recovered
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


def damages(
    rng: np.random.Generator, documents: int, seeds: int, of_documents: float, of_seeds: float
) -> dict[str, tuple[Interval | None, float]]:
    """Of one simulated study, intervals over seeds and documents of what is read off or fitted to curves, each with the
    truth: the rate at which a gain ends, and the decades it takes, where damage is in proportion to the rate; the
    exponent of a penalty in proportion to the sites; a recovery."""
    tokens, frozen, adapted, _, _, _ = draw(rng, documents, seeds, of_documents, of_seeds)

    def share() -> np.ndarray:
        """Damage as a multiple of its mean, [S, D]: a document's, a seed's and its own part."""
        of_each = BOTH * rng.standard_normal((seeds, documents)) + of_documents * rng.standard_normal(documents)
        return tokens * (1 + of_seeds * rng.standard_normal(seeds)[:, None] + of_each)

    noise = share()
    shots = tokens * GAIN * BOTH * rng.standard_normal((len(RATES), seeds, documents))  # other ones at every rate
    noisy = [adapted + GAIN * rate / CRITICAL * noise + own for rate, own in zip(RATES, shots, strict=True)]
    device = [adapted + PENALTY * count * share() for count in COUNTS]  # other sites at every count
    harmed = frozen + DAMAGE * tokens * (1 + 0.3 * rng.standard_normal(documents))
    back = harmed - BACK * DAMAGE * share()

    def gains(frozen: np.ndarray, *sums: np.ndarray) -> np.ndarray:
        return perplexity(frozen, sums[-1])[..., None] - np.exp(np.concatenate(sums[:-1], -1) / sums[-1])

    def ends(*sums: np.ndarray) -> np.ndarray:
        return np.clip(crossings(RATES.tolist(), gains(*sums)), RATES[0], RATES[-1])

    def width(*sums: np.ndarray) -> np.ndarray:
        found = gains(*sums)
        return widths(RATES.tolist(), found[..., 1:], found[..., 0])

    def exponent(exact: np.ndarray, *sums: np.ndarray) -> np.ndarray:
        return power_law(COUNTS, (np.concatenate(sums[:-1], -1) - exact) / sums[-1])[0]

    words = (tokens, RESAMPLES, int(rng.integers(2**31)))

    def fitted(fit: Callable[..., np.ndarray], arrays: Sequence[np.ndarray], most: float) -> Interval | None:
        """As studies/statistics.py has it: a draw without a fit may have any value."""
        ends = [over_seeds_and_documents(lambda *sums, v=v: np.nan_to_num(fit(*sums), nan=v), arrays, *words)
                for v in (-most, most)]  # fmt: skip
        return None if ends[0] is None or ends[1] is None else Interval(ends[0].low, ends[1].high)

    curve = np.exp(NATS) * (1 - np.exp(GAIN * (RATES / CRITICAL - 1)))
    end = float(widths(RATES.tolist(), curve, np.exp(NATS) * (1 - np.exp(-GAIN))))  # about log10(9)
    whole = 1 - np.exp(-BACK * DAMAGE)  # of perplexities, not of nats
    return {
        "over both, rate where a gain ends": (over_seeds_and_documents(ends, (frozen, *noisy), *words), CRITICAL),
        "over both, width of the end": (fitted(width, (frozen, adapted, *noisy), 50.0), end),
        "over both, exponent over sites": (fitted(exponent, (adapted, *device), 99.0), 1.0),
        "over both, recovery": (over_seeds_and_documents(recovery, (harmed, back, frozen), *words),
                                whole / (1 - np.exp(-DAMAGE))),
    }  # fmt: skip


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
        **damages(rng, *size),  # type: ignore[arg-type]
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
