"""`qrun report`: from finished studies to pages, figures, the claims table and the log of negative results.

results/<study>/<model>/   page.md, figures, cells.csv, units.json, study.json: all that is needed to make it again;
                           rates.csv, every trial of a learning rate; an experiment's name stands for the model's
results/README.md          the claims table, graded from studies that meet the standard
results/LOG.md             negative results, an entry a study key, the newest last: a report writes those of its own
                           studies again and leaves all others
results/gain-<model>.png   gain of all methods over their parameters, from the dim and the controls study

A study meets the standard if its axes, texts, training, evaluation and adapter are the default's or an experiment's,
with three seeds or more. Others get a folder with their key in its name and never touch the two pages. What an earlier
report left there is graded and written again beside the new studies, so that they can be run one at a time; one that
met a standard of its day, and today's no more, keeps its place and is called of older settings. A folder is written
beside its place and swapped in; only folders that carry this program's mark are ever replaced.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from matplotlib import rc_context
from matplotlib.figure import Figure

from qrun.config.compose import plain
from qrun.config.ranges import require_name
from qrun.config.tree import TREE, from_yaml
from qrun.errors import InputError
from qrun.evaluation.results import Results, read
from qrun.files import replaced
from qrun.report.claims import CLAIMS
from qrun.report.curves import with_trainings
from qrun.report.figures import ACROSS, across, draw
from qrun.report.page import About, Graded, Page, make_page, markdown
from qrun.report.screen import say
from qrun.tracking.store import Store

TITLE = "# Claims of arXiv:2605.05914, and what became of them here"
ABOUT, MARK = "study.json", ".qrun-report"
LEAST_SEEDS = 3
SUPERSEDED = "Superseded by study"  # of an entry of the log
DPI = 100
DECIDING = ("study", "data", "home", "training", "evaluation", "protocol", "second", "adapter", "compression", "device",
            "noise", "temperatures", "trials", "questions", "estimate", "signs")  # fmt: skip


class Catalogue(Protocol):
    """The room of studies: their names, modules and configs."""

    @property
    def STUDIES(self) -> Mapping[str, object]: ...  # noqa: N802

    def module(self, name: str) -> Graded: ...
    def configure(self, name: str, words: list[str]) -> object: ...


@dataclass(frozen=True)
class Entry:
    """One study to report."""

    about: About
    results: Results
    standard: str | None  # the experiment whose words it has, the model for the default's; None: below the standard
    older: bool = False  # the standard is that of the day when it was written

    @property
    def folder(self) -> Path:
        """<study>/<model or experiment>, with the study's key where it is not of the standard."""
        return Path(self.about.study) / (self.standard or f"{self.about.model}-{self.about.study_key[:8]}")


def report(
    results: str, out: str | None, source: str | None, studies: Catalogue, tracking_uri: str | None = None
) -> list[Path]:
    """Write everything below `out`; returns the study folders. `source` is a folder that a report wrote before."""
    target, store = _target(out), Store(results, tracking_uri)
    readme = target / "README.md"
    earlier = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else TITLE
    if not earlier.startswith(TITLE):
        raise InputError(f"{readme}: not written by `qrun report`; move it away or choose another --out")
    entries = {}  # the newest study of a kind for each folder
    for entry in _entries(store, source, studies):
        entries[entry.folder] = entry
    own = set(entries)
    if not entries:
        where = source or store.where
        how = "run `qrun sweep dim`, `qrun sweep noise` or `qrun recover`"
        raise InputError(f"{where}: no finished study there; {how}")
    for entry in _written(target, studies):
        entries.setdefault(entry.folder, entry)
    pages, written = [], []
    for folder, entry in sorted(entries.items()):
        if source is None and folder in own:
            entry = replace(entry, results=with_trainings(entry.results, store))
        page = make_page(entry.about, entry.results, studies.module(entry.about.study))
        swap(target / folder, entry, page)
        if entry.standard:
            pages.append((folder, entry, page))
        words = f"{len(page.verdicts)} verdicts" if entry.standard else "below the standard: not on the claims page"
        if folder in own:
            written.append(target / folder)
            say(f"{target / folder}: {words}")
    if pages:
        log = target / "LOG.md"
        before = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        new = [page for page in pages if page[0] in own]
        shown = {readme.name: claims_page(pages) + "".join(overviews(target, pages, earlier))}
        shown |= {log.name: log_page(new, before)} if new else {}
        for name, text in shown.items():
            with replaced(target / name) as file:
                file.write_text(text)
        say(f"{readme}: {len(CLAIMS)} claims; {target / 'LOG.md'}")
    return written


def _target(out: str | None) -> Path:
    """`--out`, or results/ of the checkout one stands in."""
    if out is not None:
        return Path(out)
    if Path.cwd() != TREE.parent:
        raise InputError("--out: name a folder; only in the project's own checkout it is results/")
    return Path("results")


def _entries(store: Store, source: str | None, studies: Catalogue) -> Iterator[Entry]:
    """The store's finished studies, oldest first, or those of a report."""
    if source is not None:
        folders = [path.parent for path in sorted(Path(source).glob(f"*/*/{ABOUT}"))]
    else:
        runs = store.tagged("study", "study_key", "FINISHED").values()
        folders = [run.file("results") for run in sorted(runs, key=lambda run: run.started)]
    for folder in folders:
        entry = open_entry(folder, studies)
        if entry is None:
            say(f"{folder}: left out, a grid of -m or no study of this version")
        else:
            yield entry if source is None else _of_its_day(entry, folder)


def _written(target: Path, studies: Catalogue) -> Iterator[Entry]:
    """What earlier reports left below `target`; what cannot be read is left as it is."""
    for path in sorted(target.glob(f"*/*/{MARK}")):
        try:
            entry = open_entry(path.parent, studies)
        except InputError as error:
            say(f"left as it is, {error}")
            continue
        if entry is not None and path.parent == target / (placed := _of_its_day(entry, path.parent)).folder:
            yield placed


def _of_its_day(entry: Entry, folder: Path) -> Entry:
    """An entry with the standard that it met when a report wrote it into `folder`, if it meets none today."""
    met = entry.standard or folder.name == entry.folder.name or not (folder / MARK).is_file()
    return entry if met else replace(entry, standard=folder.name, older=True)


def open_entry(folder: Path, studies: Catalogue) -> Entry | None:
    """A study's numbers; None for a study that this version does not have. Raises InputError for anything broken."""
    try:
        about = About.from_json((folder / ABOUT).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / ABOUT}: not a study's description ({error})") from error
    if not all(isinstance(value, str) for value in asdict(about).values()):
        raise InputError(f"{folder / ABOUT}: not a study's description (its values are no texts)")
    for key in ("model", "study_key"):  # both become a part of a folder's name
        require_name(f"{folder / ABOUT}: {key}", getattr(about, key))
    if about.study not in studies.STUDIES:
        return None
    results = read(folder)
    return Entry(about, results, standard(about, results, studies))


def standard(about: About, results: Results, studies: Catalogue) -> str | None:
    """The model's name for default axes, or the experiment whose axes they are, with the model's behind where it is
    another than the experiment's; None for others, or with fewer than three seeds."""
    try:
        config = from_yaml(about.config)
    except InputError as error:
        raise InputError(f"{ABOUT} of {about.study}, {about.model}: its config is no YAML") from error
    if not isinstance(config.get("training", {}), dict):
        return None
    table = results.table
    if "seed" in table and table["seed"].nunique() < LEAST_SEEDS:
        return None
    default = deciding(about.study, None, studies)
    own = {key: _filled(key, config.get(key), (default or {}).get(key)) for key in DECIDING}
    if own == default:
        return about.model
    names = sorted(path.stem for path in (TREE / "experiment").glob("*.yaml"))
    names.sort(key=lambda name: f"experiment={name}" not in about.command.split())  # several may have the same words
    name = next((name for name in names if own == deciding(about.study, name, studies)), None)
    if name is None or about.study == "questions":  # which are asked of a model that another study made
        return name
    model = plain(studies.configure(about.study, [f"experiment={name}"]))["model"]["name"]
    return name if about.model == model else f"{name}-{about.model}"


def _filled(key: str, found: object, today: object) -> object:
    """A study's words, with today's defaults for those it could not say yet, without those that are gone. Circuits were
    all-to-all and Qiskit's before there was a choice, rates the stated ones, and trainings of a fixed length."""
    if key in ("estimate", "signs") and found is None:  # what there was before there was a choice
        return today
    if not isinstance(found, dict) or not isinstance(today, dict):
        return found
    before: dict[str, object] = {}
    if key == "device" and "circuit" not in found:
        before = {"circuit": "qiskit", "coupling": "full"}
    elif key == "study" and "trials" in today and "trials" not in found:
        before = {"trials": 1}
    elif key == "training":
        before = {"patience": None, "sample": "whole"} if "patience" not in found else {}
        before |= {"average": 0.0} if "average" not in found else {}
    elif key in ("adapter", "data", "home") and "path" in today:  # where the asked adapter, the same text lies
        before = {"path": today["path"]}
    return {**today, **{word: value for word, value in found.items() if word in today}, **before}


def deciding(study: str, experiment: str | None, studies: Catalogue) -> dict[str, object] | None:
    """The words that make a study's standard, of its default or of an experiment; None for another verb's."""
    try:
        composed = plain(studies.configure(study, [f"experiment={experiment}"] if experiment else []))
    except InputError:
        return None
    return {key: composed.get(key) for key in DECIDING}


def swap(folder: Path, entry: Entry, page: Page) -> None:
    """Write a study's folder beside its place, then put it there; what is no report's own folder is left alone."""
    if folder.exists() and not (folder / MARK).is_file():
        how = "move it away or choose another --out"
        raise InputError(f"{folder}: not written by `qrun report` (no {MARK} in it); {how}")
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    for left in (fresh, old):
        if left.exists() and not (left / MARK).is_file():
            raise InputError(f"{left}: in the way; move it away")
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / MARK).write_text("")
    write(fresh, entry, page)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write(folder: Path, entry: Entry, page: Page) -> None:
    """page.md, figures, and what they are made of."""
    body, about = page.markdown, entry.about
    body += "".join(picture(folder, *named) for named in draw(about.study, about.model, page.numbers).items())
    table = entry.results.table
    facts = {key: value for key, value in json.loads(about.to_json()).items() if key != "config"}
    facts["cells"], facts["wall seconds of all cells"] = len(table), round(table["wall_seconds"].sum())
    body += "\n" + "\n".join(markdown(["record", ""], [[k, str(v)] for k, v in facts.items()], numbers=False)) + "\n"
    (folder / "page.md").write_text(body)
    (folder / ABOUT).write_text(about.to_json())
    if "rates" in page.numbers:
        page.numbers["rates"].to_csv(folder / "rates.csv", index=False, lineterminator="\n")
    entry.results.write(folder)


def overviews(target: Path, pages: list[tuple[Path, Entry, Page]], earlier: str) -> Iterator[str]:
    """Figures across the studies of a model that ran their default; the Markdown that shows each. What the `earlier`
    README shows and today's studies do not make is removed."""
    figures: dict[str, Figure] = {}
    for model in dict.fromkeys(entry.standard for _, entry, _ in pages if entry.standard == entry.about.model):
        studies = {entry.about.study: page.numbers for _, entry, page in pages if entry.standard == model}
        figures |= across(str(model), studies)
    for name in set(re.findall(rf"\]\(({ACROSS}[\w.-]+)\.png\)", earlier)) - set(figures):
        for suffix in (".png", ".svg"):
            (target / f"{name}{suffix}").unlink(missing_ok=True)
    for name, figure in figures.items():
        yield picture(target, name, figure)


def picture(folder: Path, name: str, figure: Figure) -> str:
    """Write a figure as PNG and SVG; returns the Markdown that shows it."""
    with replaced(folder / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=DPI)
    with rc_context({"svg.hashsalt": name}), replaced(folder / f"{name}.svg") as file:  # same file from same numbers
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"\n![{figure.get_label()}]({name}.png)\n"


def claims_page(pages: list[tuple[Path, Entry, Page]]) -> str:
    """A row per verdict; a claim nobody has tested at the paper's scale says what that needs."""
    rows = []
    for key, claim in CLAIMS.items():
        shown = [claim.text, f"{claim.paper}; margin: {claim.margin}"]
        for path, entry, page in pages:
            for verdict, sentence in page.verdicts:
                if verdict.claim == key:
                    where = f"[{page.about.model}, {page.about.study}]({path}/page.md)"
                    where += ", older settings" if entry.older else ""
                    rows.append([*shown, where, f"**{verdict.outcome.value}**", sentence, f"`{page.about.shown}`"])
                    shown = ["", ""]
        rows.append([*shown, "at the paper's scale", "not testable here", f"needs {claim.needs}", f"`{claim.command}`"])
    head = ["claim", "paper", "model", "verdict", "ours, with 95% intervals", "command"]
    return "\n".join([
        TITLE, "",
        "Written by `qrun report`. Verdicts are about the model named in the row, not about the paper's models; rows",
        "marked \"at the paper's scale\" stay open until somebody runs them. A verdict is `reproduced` if the whole",
        "95% interval lies inside the margin, `not reproduced` if it lies wholly outside, else `undecided`. Negative",
        "results: [LOG.md](LOG.md). Numbers: `cells.csv` in each folder, graded again by `qrun report --from results`.",
        "", *markdown(head, rows, numbers=False), "",
    ])  # fmt: skip


def log_page(pages: list[tuple[Path, Entry, Page]], before: str) -> str:
    """Everything that failed or was beaten, an entry a study: those of `before` in their order, the ones of these
    studies written again in their place, or behind them where they are new. An entry whose page is now another study's
    says so."""
    entries: dict[str, str] = {}  # by the last word of its heading, the study's key
    for part in f"\n{before}".split("\n## ")[1:]:
        entries[part.partition("\n")[0].rpartition(" ")[2]] = part.strip()
    for path, _, page in pages:
        key, link = page.about.study_key[:8], f"]({path}/page.md)"
        for other, text in entries.items():
            heading, *lines = text.split("\n")
            if link in heading and other != key and not any(line.startswith(SUPERSEDED) for line in lines):
                entries[other] = "\n".join([heading, "", f"{SUPERSEDED} {key}, whose page this is now.", *lines])
        told = "\n".join(f"- {line}" for line in page.negatives) or "Nothing failed or was beaten."
        entries[key] = f"{page.about.study}, [{path.name}{link}, {key}\n\n{told}"
    told = "Written by `qrun report`: claims that did not hold, and controls that beat the adapter; newest study last."
    return "\n\n".join(["# Negative results", told, *(f"## {text}" for text in entries.values())]) + "\n"
