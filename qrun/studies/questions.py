"""`qrun eval questions`: does the adapter answer what both baselines fail, and more often than chance?

qrun eval questions model=local model.path=<compressed> model@original=nano adapter.path=<adapter trained in it>

Margin: among the failed questions whose answer the adapter changes, more than one in three turns right (what changes
that fell evenly on the other choices would give); exact 95 % interval.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pandas as pd

from qrun.cells.cell import Cell
from qrun.config.schema import LauncherConfig, SavedAdapterConfig
from qrun.config.verbs import QuestionsRunConfig
from qrun.evaluation.intervals import Interval
from qrun.evaluation.questions import binomial_interval, both_fail, mcnemar
from qrun.evaluation.results import Results
from qrun.recipes.checks import check_device
from qrun.recipes.tasks import Ask
from qrun.report.grade import Verdict, within
from qrun.studies.grid import Say
from qrun.studies.statistics import limits

CHANCE = 1 / 3


@dataclass
class Config(QuestionsRunConfig):
    """The arms are cells of a study, so that they have a launcher."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Original, model, model with adapter, and that on a device."""
    check_device(config.model, config.device, config.adapter.path)
    alone = replace(config, adapter=SavedAdapterConfig())
    if config.original is not None:
        yield Cell({"arm": "original"}, Ask(replace(alone, model=config.original), False))
    yield Cell({"arm": "compressed" if config.original is not None else "model"}, Ask(alone, False))
    if config.adapter.path is not None:
        yield Cell({"arm": "adapter"}, Ask(config, False))
        if config.device.kind != "exact":
            yield Cell({"arm": f"adapter on {config.device.kind}"}, Ask(config, True))


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Shares of right answers, pairs of arms, and the questions that both baselines fail."""
    keys = dict(zip(results.table["arm"], results.table["key"], strict=True))
    trials = int(results.table["trials"].iloc[0])
    chosen = {arm: results.unit(key, "chosen") for arm, key in keys.items()}
    right = {arm: results.unit(key, "right") for arm, key in keys.items()}
    correct = {arm: chosen[arm] == right[arm] for arm in keys}
    shares, pairs, failed = [], [], []
    for arm, key in keys.items():
        count = len(correct[arm])
        low, high = binomial_interval(int(correct[arm].sum()), count)
        row = {"arm": arm, "right": int(correct[arm].sum()), "questions": count, "low": low, "high": high}
        sampled = {name: results.unit(key, name) for name in results.units[key] if name.startswith("sampled")}
        shares.append({**row, **{name: found.sum() / (trials * count) for name, found in sampled.items()}})
    for first, second in combinations(keys, 2):
        found = mcnemar(correct[first], correct[second])
        turned = {name: len(found[name]) for name in ("wrong_to_right", "right_to_wrong")}
        pairs.append({"first": first, "second": second, **turned, "p": found["p"]})
    arms = list(keys)
    if arms[0] == "original":
        for arm in arms[2:]:
            before, after = chosen["compressed"], chosen[arm]
            fails = both_fail(correct["original"], correct["compressed"], correct[arm], before, after)
            changed = int(fails["changed"])
            interval = Interval(*binomial_interval(len(fails["answered"]), changed)) if changed else None
            counts = {**fails, "answered": len(fails["answered"])}
            failed.append({"arm": arm, **counts, **limits("share", interval), "questions": len(correct[arm])})
    return {"shares": pd.DataFrame(shares), "pairs": pd.DataFrame(pairs), "both_fail": pd.DataFrame(failed)}


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Of the adapter, exact and on the device, against chance."""
    verdicts = []
    for row in found["both_fail"].to_dict("records"):
        outcome = within(Interval(row["share_low"], row["share_high"]), low=float(np.nextafter(CHANCE, 1)))
        verdicts.append(Verdict("both_fail", outcome, {**row, "seeds": 1}))
    return verdicts
