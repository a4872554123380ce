"""`qrun report`: from the store alone to `results/`: tables, figures, the claims table, the log of negative results.
Nothing is typed by hand.

results/<study>/<model>/   table.md, table.json, figures (png, svg), command.txt
results/README.md          the claims table              results/LOG.md     negative results
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from qrun.errors import InputError
from qrun.report.claims import CLAIMS
from qrun.report.figures import draw


def report(results: str, out: str) -> list[Path]:
    """Write everything; returns the study folders. Raises InputError if the store has no finished study."""
    from qrun.report.screen import say
    from qrun.tracking.store import Store

    store, target = Store(results), Path(out).expanduser()
    runs = list(store.tagged("study", "study_key", "FINISHED").values())
    if not runs:
        raise InputError(
            f"results={store.folder}: no finished study in this store; run `qrun sweep dim`, `qrun sweep "
            f"noise`, `qrun recover` or `qrun eval questions`"
        )
    latest: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}  # the newest run of a study on a model
    for run in sorted(runs, key=lambda r: r.info.start_time):
        found = json.loads(store.artifact_text(run.info.run_id, "result.json"))
        latest[found["study"], found["model"]] = (run, found)
    folders, entries = [], []
    for (study, model), (run, found) in sorted(latest.items(), key=lambda item: item[0]):
        folder = target / study / model
        write_study(folder, run, found)
        folders.append(folder)
        entries.append((folder.relative_to(target), run, found))
        say(f"{folder}: {len(found['tables'])} tables, {len(found['verdicts'])} verdicts")
    (target / "README.md").write_text(claims_page(entries))
    (target / "LOG.md").write_text(log_page(entries))
    say(
        f"{target / 'README.md'}: {len(CLAIMS)} claims; {target / 'LOG.md'}: "
        f"{sum(len(f['negatives']) for _, _, f in entries)} negative results"
    )
    return folders


def write_study(folder: Path, run: Any, found: dict[str, Any]) -> None:
    """One study's folder, replaced as a whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    provenance = facts(run)
    body = [f"# {found['study']}, {found['model']}", "", f"`{found['command']}`", ""]
    for shown in found["tables"]:
        body += [f"## {shown['title']}", "", *markdown(shown["columns"], shown["rows"]), "", shown["caption"], ""]
    for verdict in found["verdicts"]:
        claim = CLAIMS[verdict["claim"]]
        body += [
            f"**{verdict['verdict']}** {claim.text} (paper: {claim.paper}) Here: {verdict['ours']}. {verdict['why']}",
            "",
        ]
    body += [f"- {line}" for line in found["negatives"]]
    for name, figure in draw(found["study"], found["model"], found["values"]).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        with rc_context({"svg.hashsalt": name}):  # the same file from the same numbers
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        body += ["", f"![{name}]({name}.png)"]
    body += [""]
    body += ["| record | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in provenance.items()), ""]
    (folder / "table.md").write_text("\n".join(body))
    (folder / "table.json").write_text(json.dumps(finite({**found, "record": provenance}), indent=1) + "\n")
    (folder / "command.txt").write_text(found["command"] + "\n")


def facts(run: Any) -> dict[str, Any]:
    """What identifies the numbers."""
    keys = (
        "git_sha", "git_dirty", "code_digest", "config_hash", "protocol", "protocol_fingerprint", "model_revision",
        "model_weights", "data_source",
        "data_digest", "questions_source", "questions_digest", "compute", "device", "noise", "noise_date",
    )  # fmt: skip
    found = {key: run.data.tags[key] for key in keys if run.data.tags.get(key) not in (None, "None")}
    seconds = (run.info.end_time - run.info.start_time) / 1000
    return {**found, "run": run.info.run_id, "wall seconds from first start to last end": round(seconds)}


def markdown(columns: list[str], rows: list[list[str]], numbers: bool = True) -> list[str]:
    """A table in Markdown, all columns but the first to the right where they are numbers."""
    lines = [columns, ["---", *["---:" if numbers else "---"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def finite(value: Any) -> Any:
    """JSON has no nan: null stands for it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def claims_page(entries: list[tuple[Path, Any, dict[str, Any]]]) -> str:
    """claim | paper | where | ours | seeds | control | verdict | command.

    A claim nobody has tested at the paper's scale says what that needs.
    """
    rows = []
    for key, claim in CLAIMS.items():
        first = True
        for path, _, found in entries:
            for verdict in (v for v in found["verdicts"] if v["claim"] == key):
                where = f"[{found['model']}]({path}/table.md)"
                text, paper = (claim.text, claim.paper) if first else ("", "")
                cells = [text, paper, where, verdict["ours"], str(verdict["seeds"]), verdict["control"]]
                rows.append([*cells, f"**{verdict['verdict']}** {verdict['why']}", f"`{found['command']}`"])
                first = False
        text, paper = (claim.text, claim.paper) if first else ("", "")
        rows.append(
            [
                text,
                paper,
                "at the paper's scale",
                "-",
                "-",
                "-",
                f"not testable here: needs {claim.needs}",
                f"`{claim.command}`",
            ]
        )
    return "\n".join(
        [
            "# Claims of arXiv:2605.05914, and what became of them here", "",
            "Written by `qrun report` from the MLflow store. Verdicts are about the model named in the row, not "
"about the paper's models; the rows marked "
            "\"at the paper's scale\" stay open until somebody runs them. Negative results: [LOG.md](LOG.md).", "",
            *markdown(["claim", "paper", "model", "ours, with 95% intervals", "seeds", "control",
            "verdict", "command"], rows, numbers=False), "",
        ]
    )  # fmt: skip


def log_page(entries: list[tuple[Path, Any, dict[str, Any]]]) -> str:
    """Everything that failed or was beaten."""
    lines = [
        "# Negative results",
        "",
        "Written by `qrun report`: claims that did not hold, and controls that beat the adapter.",
        "",
    ]
    for path, _, found in entries:
        if found["negatives"]:
            lines += [
                f"## {found['study']}, [{found['model']}]({path}/table.md)",
                "",
                *(f"- {line}" for line in found["negatives"]),
                "",
            ]
    return "\n".join(lines)
