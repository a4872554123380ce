"""A study's page: numbers from its table, grades by its rules, sentences from its template; made when looked at.

A template (templates/<study>.md.j2) is a set of macros: `tables()`, `negatives()`, and one per claim, which tells the
facts of a verdict. In tables a column is a format such as `{gain:+.3f}` or `[{seed_low:.2f}, {seed_high:.2f}]`, filled
from a row; a missing number makes a dash.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from string import Formatter
from typing import Protocol

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.environment import TemplateModule
from rich.markdown import Markdown

from qrun.evaluation.results import Results
from qrun.evaluation.trainings import trainings
from qrun.report.claims import CLAIMS
from qrun.report.grade import Verdict
from qrun.report.screen import console, say


@dataclass(frozen=True)
class About:
    """What identifies a study's numbers; study.json."""

    study: str
    model: str
    command: str
    config: str  # YAML
    config_hash: str
    study_key: str
    git_sha: str
    git_dirty: str

    @property
    def shown(self) -> str:
        """The command without words that change no number: who computes the cells."""
        return " ".join(word for word in self.command.split(" ") if not word.startswith("launcher"))

    def to_json(self) -> str:
        """For study.json."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "About":
        """Of study.json. Raises ValueError, TypeError or KeyError for another text."""
        return cls(**json.loads(text))


class Graded(Protocol):
    """A study module, as far as a page needs it."""

    def numbers(self, results: Results) -> Mapping[str, pd.DataFrame]: ...
    def grades(self, numbers: Mapping[str, pd.DataFrame]) -> list[Verdict]: ...


@dataclass(frozen=True)
class Page:
    """A study told: Markdown, verdicts with their sentences, negative results, and the numbers behind."""

    about: About
    numbers: Mapping[str, pd.DataFrame]
    verdicts: Sequence[tuple[Verdict, str]]
    tables: str
    negatives: Sequence[str]

    @property
    def markdown(self) -> str:
        """Title, command, tables, verdicts."""
        lines = [f"# {self.about.study}, {self.about.model}", "", f"`{self.about.shown}`", "", self.tables, ""]
        for verdict, sentence in self.verdicts:
            claim = CLAIMS[verdict.claim]
            stated = f"(paper: {claim.paper}; margin: {claim.margin})"
            lines += [f"**{verdict.outcome.value}** {claim.text} {stated} Here: {sentence}", ""]
        return "\n".join([*lines, *(f"- {line}" for line in self.negatives)]).rstrip() + "\n"


def make_page(about: About, results: Results, study: Graded) -> Page:
    """Numbers, grades and words of one study."""
    numbers = {**study.numbers(results), **trainings(results)}
    module, training = (_template(name, about, numbers) for name in (about.study, "training"))
    ends = str(training.ends())  # type: ignore[attr-defined]  # of every verdict: they rest on these trainings
    verdicts = [(v, _squeeze(f"{getattr(module, v.claim)(v.facts)} {ends}")) for v in study.grades(numbers)]
    negatives = [line.strip(" -") for line in str(module.negatives()).splitlines() if line.strip()]  # type: ignore[attr-defined]
    tables = "\n\n".join(str(part.tables()).strip() for part in (module, training))  # type: ignore[attr-defined]
    return Page(about, numbers, verdicts, tables.strip(), negatives)


def show(page: Page) -> None:
    """The page on the screen: formatted in a terminal, Markdown elsewhere."""
    if console.is_terminal:
        console.print(Markdown(page.markdown))
    else:
        say(page.markdown)


@cache
def _environment() -> Environment:
    found = Environment(loader=PackageLoader("qrun.report"), undefined=StrictUndefined, trim_blocks=True,
                        lstrip_blocks=True, autoescape=False)  # fmt: skip
    found.globals |= {"table": table, "wide": wide, "fill": fill, "interval": interval, "where": where, "scans": scans}
    return found


def _template(name: str, about: About, numbers: Mapping[str, pd.DataFrame]) -> TemplateModule:
    return _environment().get_template(f"{name}.md.j2").make_module({"model": about.model, "n": numbers})


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def where(rows: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Rows whose columns have these values."""
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows


def fill(form: str, row: Mapping[str, object]) -> str:
    """A format filled from a row; `-` where a number is missing."""
    for _, name, _, _ in Formatter().parse(form):
        value = row.get(name) if name else 0
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
    return form.format_map(row)


def interval(row: Mapping[str, object], name: str, form: str = "+.3f") -> str:
    """`[low, high]` of columns <name>_low and <name>_high, or that there is none."""
    ends = {end: row.get(f"{name}_{end}") for end in ("low", "high")}  # a dot in a format's name is an attribute
    shown = fill(f"[{{low:{form}}}, {{high:{form}}}]", ends)
    return "no interval" if shown == "-" else shown


BESIDE = {
    "beside_home": (
        "at home",
        "At home: the gain on text of the model's own pretraining distribution, for which the adapter was not trained, "
        "in percent of perplexity there.",
    ),
    "beside_second": (
        "by the second protocol",
        "By the second protocol: the gain on the same text, each document alone, in percent of perplexity.",
    ),
}


def scans(trials: pd.DataFrame) -> pd.DataFrame:
    """A line per scan of rates: the best trial, the next behind it, which ones tie, and whether the best lies at an
    edge of what was tried, so that a better one may lie beyond."""
    lines = []
    for point, own in trials.groupby("point", sort=False):
        best, others = own[own["best"]].iloc[0], own[~own["best"] & own["behind"].notna()].sort_values("behind")
        following = others.iloc[0] if len(others) else {"behind": math.nan, "error": math.nan}
        tied = ", ".join(f"{lr:.2g}" for lr in own.loc[own["tied"], "lr"]) or "none"
        lines.append({
            "point": point, "tried": f"{len(own)}, {own['lr'].min():.2g} to {own['lr'].max():.2g}", "lr": best["lr"],
            "nats": best["nats"], "behind": following["behind"], "error": following["error"], "tied": tied,
            "edge": "yes" if len(own) > 1 and best["lr"] in (own["lr"].min(), own["lr"].max()) else "no",
        })  # fmt: skip
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Markdown: a line per row, a column per format, numbers to the right; what gains are worth elsewhere behind them,
    where that was measured."""
    shown, notes = dict(columns), []
    for name, (title, note) in BESIDE.items():
        if name in rows and rows[name].notna().any():
            shown |= {title: f"{{{name}:+.2f}} %", f"95% {title}": f"[{{{name}_low:+.2f}}, {{{name}_high:+.2f}}]"}
            notes += ["", note]
    body = [[fill(form, row) for form in shown.values()] for row in rows.to_dict("records")]
    return "\n".join([*markdown(list(shown), body), *notes])


def wide(rows: pd.DataFrame, index: str, columns: str, values: str, form: str, title: str = "{}") -> str:
    """Markdown: one column of the table over another, as a grid."""
    grid = rows.pivot_table(index=index, columns=columns, values=values, sort=False, dropna=False)
    shown = []
    for name, line in grid.iterrows():
        first = f"{name:g}" if isinstance(name, float) else str(name)
        shown.append([first, *("-" if math.isnan(value) else f"{value:{form}}" for value in line)])
    return "\n".join(markdown([index, *(title.format(name) for name in grid.columns)], shown))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> list[str]:
    """A table's lines, all columns but the first to the right where they are numbers."""
    lines = [columns, ["---", *["---:" if numbers else "---"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
