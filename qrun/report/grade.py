"""Grades: pure rules from numbers to an outcome. Words are made later, by templates.

A claim has a margin stated beforehand. Its grade is `reproduced` if the whole 95 % interval lies inside, `not
reproduced` if it lies wholly outside, else `undecided`: too wide to say. A wider interval never earns a better grade.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qrun.evaluation.intervals import Interval

ABOVE_ZERO = math.ulp(0.0)  # least number above 0: a gain of exactly nothing is no gain
Fact = float | int | str | list[str] | list[float]


class Outcome(StrEnum):
    """Every grade there is."""

    reproduced = "reproduced"
    in_part = "in part"  # in some of several settings, wholly outside in others
    not_reproduced = "not reproduced"
    undecided = "undecided"  # the interval holds both sides of the margin
    untestable = "not testable here"
    no_value = "no value to compare"


@dataclass(frozen=True)
class Verdict:
    """One claim against one study; `facts` are the numbers that its template tells."""

    claim: str  # key of report.claims.CLAIMS
    outcome: Outcome
    facts: Mapping[str, Fact] = field(default_factory=dict)


def within(interval: Interval | None, low: float = -math.inf, high: float = math.inf) -> Outcome:
    """Grade of an interval against the margin [low, high]; None or nan limits cannot be tested."""
    if interval is None or math.isnan(interval.low) or math.isnan(interval.high):
        return Outcome.untestable
    if interval.low >= low and interval.high <= high:
        return Outcome.reproduced
    return Outcome.not_reproduced if interval.high < low or interval.low > high else Outcome.undecided


def jointly(outcomes: Iterable[Outcome]) -> Outcome:
    """Grade of a claim that says several things of one setting at once: refuted where one is, tested where all are."""
    found = list(outcomes)
    for decides in (Outcome.not_reproduced, Outcome.untestable, Outcome.undecided):
        if decides in found or not found:
            return decides if found else Outcome.untestable
    return Outcome.reproduced


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Grade of a claim over several settings: all, none, some of them; undecided where one is and none decides."""
    found = [outcome for outcome in outcomes if outcome is not Outcome.untestable]
    if not found:
        return Outcome.untestable
    if all(outcome is Outcome.reproduced for outcome in found):
        return Outcome.reproduced
    if all(outcome is Outcome.not_reproduced for outcome in found):
        return Outcome.not_reproduced
    if Outcome.undecided in found:
        return Outcome.undecided
    return Outcome.in_part
