"""`qrun eval questions`: does the adapter answer what both baselines fail, and more often than chance?

qrun eval questions model=local model.path=<compressed> model@original=nano adapter.path=<adapter trained in it>

Beside the adapter stand a shuffled K, a rotation of the same size that knows nothing, and K = 0 on the device.

Margin: among the failed questions whose answer the adapter changes, more turn right than changes that fell evenly on
the other choices would give (one in three of four choices). The 95 % interval is exact where every question stands
alone; of questions cut from documents it is the bootstrap over those, as are the intervals of sampled answers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qrun.cells.cell import Cell
from qrun.config.schema import LauncherConfig, SavedAdapterConfig
from qrun.config.verbs import QuestionsRunConfig
from qrun.evaluation.intervals import Interval
from qrun.evaluation.questions import binomial_interval, both_fail, clustered_p, clustered_share, mcnemar, share_right
from qrun.evaluation.results import Results
from qrun.language.questions import LETTERS, load
from qrun.recipes.checks import check_device
from qrun.recipes.tasks import Ask
from qrun.report.grade import Verdict, within
from qrun.studies.grid import Say
from qrun.studies.statistics import limits

FEW = 10  # questions that a page shows one by one
FOUR = 4.0  # choices of questions that were recorded without their number


@dataclass
class Config(QuestionsRunConfig):
    """The arms are cells of a study, so that they have a launcher."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Original, model, model with adapter, and that on a device; the nulls of both."""
    check_device(config.model, config.device, config.adapter.path)
    if config.questions.path is not None or (config.questions.source == "mmlu" and config.questions.hub_id is None):
        asked = load(config.questions, config.seed)
        picked = asked.questions if config.questions.pick else asked.questions[:1]
        say(f"questions: {len(asked.questions):,} from {asked.source}, of which")
        for q in picked:
            choices = " | ".join(f"*{choice}" if k == q.answer else choice for k, choice in enumerate(q.shown))
            say(f"  {q.name}: {_line(q.text, 100)}  {_line(choices, 300)}")
            if q.reported:
                say(f"    the paper: {q.reported}")
    alone = replace(config, adapter=SavedAdapterConfig())
    if config.original is not None:
        yield Cell({"arm": "original"}, Ask(replace(alone, model=config.original), False))
    yield Cell({"arm": "compressed" if config.original is not None else "model"}, Ask(alone, False))
    if config.adapter.path is not None:
        device = config.device.kind
        yield Cell({"arm": "adapter"}, Ask(config, False))
        if device != "exact":
            yield Cell({"arm": f"adapter on {device}"}, Ask(config, True))
        yield Cell({"arm": "shuffled K"}, Ask(config, False, "shuffled"))
        if device != "exact":
            yield Cell({"arm": f"K = 0 on {device}"}, Ask(config, True, "zero"))


def _line(text: str, most: int) -> str:
    """The beginning of a text in one line, without what steers a terminal."""
    return "".join(c for c in " ".join(text.split())[:most] if c.isprintable())


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Shares of right answers, pairs of arms, the questions that both baselines fail, and a few questions each."""
    keys = dict(zip(results.table["arm"], results.table["key"], strict=True))
    cells = results.table.set_index("arm").reindex(columns=["acc", "truncated"])  # older tables have no acc
    trials = int(results.table["trials"].iloc[0])
    chosen = {arm: results.unit(key, "chosen") for arm, key in keys.items()}
    right = {arm: results.unit(key, "right") for arm, key in keys.items()}
    correct = {arm: chosen[arm] == right[arm] for arm in keys}
    first_key = next(iter(keys.values()))
    count = len(next(iter(right.values())))
    told = "choices" in results.units[first_key]
    choices = results.unit(first_key, "choices") if told else np.full(count, FOUR)
    cluster = results.unit(first_key, "cluster") if told else np.arange(count)
    documents, ones = len(np.unique(cluster)), np.ones(count)

    def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Interval | None:
        """Exact where questions stand alone, else over the documents they were cut from."""
        if documents < count:
            return share_right((part & whole).astype(float), whole.astype(float), cluster)
        return Interval(*binomial_interval(int((part & whole).sum()), int(whole.sum()))) if whole.any() else None

    shares, pairs, failed, each = [], [], [], []
    for arm, key in keys.items():
        whole = share(correct[arm], np.ones(count, bool)) or Interval(np.nan, np.nan)
        row = {
            "arm": arm, "right": int(correct[arm].sum()), "questions": count, "documents": documents,
            "chance": float((1 / choices).mean()), "low": whole.low, "high": whole.high,
            "acc": cells.loc[arm, "acc"], "lost": cells.loc[arm, "truncated"], "trials": trials,
        }  # fmt: skip
        sampled = {n: results.unit(key, n) / trials for n in results.units[key] if n.startswith("sampled")}
        for name, found in sampled.items():
            row |= {name: found.mean(), **limits(f"of {name}", share_right(found, ones, cluster))}
        shares.append(row)
        for at in range(count if count <= FEW else 0):
            own = {name: found[at] for name, found in sampled.items()}
            answers = {"chosen": LETTERS[int(chosen[arm][at])], "right": LETTERS[int(right[arm][at])]}
            each.append({"question": at + 1, "arm": arm, **answers, **own})
    for first, second in combinations(keys, 2):
        found_pair = mcnemar(correct[first], correct[second])
        turned = {name: len(found_pair[name]) for name in ("wrong_to_right", "right_to_wrong")}
        net = correct[second].astype(float) - correct[first]
        p = clustered_p(net, cluster) if documents < count else found_pair["p"]
        interval = limits("change", clustered_share(net, ones, cluster))
        pairs.append({"first": first, "second": second, **turned, "change": net.mean(), **interval, "p": p})
    arms = list(keys)
    if arms[0] == "original":
        for arm in arms[2:]:
            before, after = chosen["compressed"], chosen[arm]
            fails = both_fail(correct["original"], correct["compressed"], correct[arm], before, after, choices)
            changed = ~correct["original"] & ~correct["compressed"] & (after != before)
            chance = float((1 / (choices[changed] - 1)).mean()) if changed.any() else np.nan
            counts = {**fails, "answered": len(fails["answered"]), "chance": chance, "documents": documents}
            failed.append({"arm": arm, **counts, **limits("share", share(correct[arm], changed)), "questions": count})
    each.sort(key=lambda row: int(row["question"]))
    tables = {"shares": shares, "pairs": pairs, "both_fail": failed, "each": each}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Of the adapter, exact and on the device, against chance."""
    verdicts = []
    for row in found["both_fail"].to_dict("records"):
        if row["arm"].startswith("adapter"):
            chance = float(np.nextafter(row["chance"], 1))
            outcome = within(Interval(row["share_low"], row["share_high"]), low=chance)
            verdicts.append(Verdict("both_fail", outcome, {**row, "seeds": 1}))
    return verdicts
