"""From finished runs to a study's table: a row per cell of the grid, in its order."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from qrun.cells.cell import Cell, Scalar
from qrun.cells.keys import Keys
from qrun.evaluation.results import IDENTITY, UNITS, Results
from qrun.tracking.runs import Recorded

MEASURED = ("measure", "ask", "scan")  # kinds of tasks that leave units
# curves, and names for MLflow's search; the table has what a cell came to
SKIPPED = ("train/", "validation/", "system/", "relative_perplexity", "cz_error_rate")


def collect(grid: Sequence[Cell], keys: Keys, recorded: Mapping[str, Recorded]) -> Results:
    """Rows of the grid, in its order, from finished runs by key."""
    rows: list[dict[str, Scalar]] = []
    units: dict[str, Mapping[str, Sequence[float]]] = {}
    for cell in grid:
        key = keys.of(cell)
        run = recorded[key]
        own = (name for name in run.metrics if not name.startswith(SKIPPED) and name not in cell.axes)
        metrics = {name: run.metrics[name] for name in own}  # axis `sites` is a set's name, metric `sites` a count
        rows.append({
            "kind": cell.task.kind, **cell.axes, **metrics, "wall_seconds": round(run.seconds, 3), "key": key,
            "run_id": run.run_id, "run": run.name, **{name: run.tags.get(name, "") for name in IDENTITY},
        })  # fmt: skip
        if key not in units and cell.task.kind in MEASURED and (path := run.find(UNITS)):
            units[key] = json.loads(path.read_text())
    return Results(pd.DataFrame(rows), units)
