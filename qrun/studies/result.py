"""What a study leaves behind.

Tables, figures, verdicts on claims, negative results. `qrun report` needs nothing else.
"""

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from qrun.report.claims import CLAIMS
from qrun.report.figures import draw
from qrun.report.screen import say, table


@dataclass
class Table:
    """Text cells, first column names."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass
class Verdict:
    """One claim of the paper against one study.

    `verdict` is reproduced, not reproduced, in part, or not testable here.
    """

    claim: str  # key of report.claims.CLAIMS
    ours: str
    seeds: int
    control: str
    verdict: str
    why: str


@dataclass
class StudyResult:
    """`values` has the numbers behind the tables."""

    study: str
    model: str
    tables: list[Table]
    values: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)


def conclude(parent: Any, store: Any, result: StudyResult) -> None:
    """Write result.json and figures to the study's run, and show tables and verdicts."""
    unknown = [v.claim for v in result.verdicts if v.claim not in CLAIMS]
    assert not unknown, unknown
    parent.json({**asdict(result), "command": " ".join(["qrun", *sys.argv[1:]])}, "result.json")
    for name, figure in draw(result.study, result.model, result.values).items():
        parent.figure(figure, f"figures/{name}.png")
    parent.note(
        "\n\n".join(f"**{CLAIMS[v.claim].text}** {v.verdict}: {v.ours}. {v.why}" for v in result.verdicts)
        or result.study
    )
    for shown in result.tables:
        table(shown.title, shown.columns, shown.rows, shown.caption)
    for v in result.verdicts:
        say(f"{v.verdict}: {CLAIMS[v.claim].text} Here: {v.ours}. {v.why}")
    for line in result.negatives:
        say(f"negative result: {line}")
    say(f"run  {store.url('study', run_id=parent.run_id)}  (after `qrun ui`)")


def interval(low: float, high: float, form: str = "+.3f") -> str:
    """`[low, high]`, or why there is none."""
    return f"[{low:{form}}, {high:{form}}]" if low == low else "one seed"
