"""How a study's trainings ended, and how their learning rates were found, from its table: what its page tells of each.

trainings(results) -> {"budget": a row per kind of training, "rates": a row per trial of a rate,
                       "curves": a row per validation}
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype

from qrun.evaluation.results import IDENTITY, Results

# columns of a training or a scan that are no axes of its cell
COLUMNS = {"kind", "seed", "lr", "trials", "steps", "best_step", "best_validation_nats", "at_cap", "parameters",
           "peak_memory_mb", "wall_seconds", "key", "run_id", "run", *IDENTITY}  # fmt: skip


def trainings(results: Results) -> dict[str, pd.DataFrame]:
    """All frames; none of what the study does not have, or recorded before there was a budget."""
    table = results.table
    trained, scanned = (described(table[table["kind"] == kind]) for kind in ("train", "scan"))
    found = {}
    if len(trained) and "at_cap" in trained:
        rows = [
            {
                "point": point, "trainings": len(own), "lr": own["lr"].mean(), "least": own["steps"].min(),
                "most": own["steps"].max(), "at_cap": int(own["at_cap"].sum()),
                "unimproved": int((own["best_step"] == 0).sum()),
            }
            for point, own in trained.groupby("point", sort=False)
        ]  # fmt: skip
        found["budget"] = pd.DataFrame(rows)
    if parts := [followed(results.units[row["key"]], row) for row in trained.to_dict("records")
                 if row["key"] in results.units]:  # fmt: skip
        found["curves"] = pd.concat(parts, ignore_index=True)
    if len(scanned):
        found["rates"] = pd.concat([trials(results.units[row["key"]], row) for row in scanned.to_dict("records")])
    return found


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """With a column `point`, the cell's axes but for its seed: `sites=all b=4 method=lora`."""
    rows = rows.dropna(axis=1, how="all")
    if "sites" in rows and is_numeric_dtype(rows["sites"]):  # how many, of a study without site sets
        rows = rows.drop(columns="sites")
    axes = [name for name in rows if name not in COLUMNS and "/" not in name]
    return rows.assign(point=[_words(row) for row in rows[axes].to_dict("records")])


def _words(axes: Mapping[str, object]) -> str:
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in axes.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items() if value != "nan")


def followed(units: Mapping[str, Sequence[float]], row: Mapping[str, object]) -> pd.DataFrame:
    """A training's validations in their order, with its axes and seed; `plateau` is true where its rate began to fall
    because they were flat."""
    axes = {name: value for name, value in row.items() if name == "seed" or (name not in COLUMNS and "/" not in name)}
    flat = [step in units["plateau"] for step in units["step"]]
    return pd.DataFrame({"step": units["step"], "nats": units["nats"], "plateau": flat}).assign(**axes)


def trials(units: Mapping[str, object], row: Mapping[str, object]) -> pd.DataFrame:
    """A scan's trials from the lowest rate up: nats per validation token, how far behind the best with its standard
    error over documents, and whether one is `best`, or `tied`: behind by no more than that error."""
    found = pd.DataFrame(units).astype(float)
    best, shown = found["lr"] == row["lr"], ("lr", "nats", "behind", "error", "steps", "best_step")
    return pd.DataFrame({
        "point": row["point"], **{name: found[name] for name in shown},
        "best": best, "tied": ~best & (found["behind"] <= found["error"]), "pruned": found["pruned"] > 0,
        "diverged": found["nats"].isna(), "at_cap": found["at_cap"] > 0,
    })  # fmt: skip
