"""Saved views of MLflow's pages: which columns and charts a table of runs opens with.

MLflow 3.17 keeps a view as a tag of the experiment, `mlflow.sharedViewState.<key>`: an envelope with a name and, as
text, the state of the page (columns, charts, order). A link with `viewStateShareKey=<key>` opens it.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAG = "mlflow.sharedViewState."
SECTION = "qrun"


@dataclass(frozen=True)
class View:
    """Columns of the table (`metrics.gain`, `params.adapter.dim`, `tags.device`, `attributes.Source`), metrics drawn
    over their steps (`lines`) or one against another (`scatters`: x, y), the column that orders the runs, and whether
    links open the charts or the table."""

    name: str
    columns: Sequence[str] = ()
    lines: Sequence[str] = ()
    scatters: Sequence[tuple[str, str]] = ()
    order: str = "attributes.start_time"
    charts: bool = False

    def tag(self) -> str:
        """The tag's value; the same for the same view, so that it is written once."""
        state = {
            "searchFilter": "", "orderByKey": _column(self.order), "orderByAsc": False, "startTime": "ALL",
            "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
            "selectedColumns": [_column(name) for name in self.columns], "runsHiddenMode": "SHOW_ALL",
            "hideEmptyCharts": True, "isAccordionReordered": True,
        }  # fmt: skip
        if cards := [*map(_line, self.lines), *(_scatter(x, y) for x, y in self.scatters)]:
            state["compareRunCharts"] = cards
            state["compareRunSections"] = [{
                "uuid": SECTION, "name": self.name, "display": True, "isReordered": True, "deleted": False,
                "isGenerated": False,
            }]  # fmt: skip
        packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
        told = {"name": self.name, "createdAt": 0, "updatedAt": 0, "charts": self.charts}
        return json.dumps({**told, "state": f"deflate;{packed}"})


def named(tags: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and envelope of the views of this program among an experiment's tags."""
    for tag, value in sorted(tags.items()):
        if tag.startswith(TAG) and "charts" in (view := json.loads(value)):
            yield tag.removeprefix(TAG), view


def shown(key: str, charts: bool = False) -> str:
    """What opens a view in the address of a run table."""
    return ("&compareRunsMode=CHART" if charts else "") + f"&viewStateShareKey={key}"


def _column(name: str) -> str:
    group, _, key = name.partition(".")
    return f"{group}.`{key}`"


def _card(kind: str, key: str) -> dict[str, Any]:
    return {"uuid": f"{SECTION}-{key}", "type": kind, "metricSectionId": SECTION, "deleted": False,
            "isGenerated": False, "runsCountToCompare": 100}  # fmt: skip


def _line(metric: str) -> dict[str, Any]:
    own = {"metricKey": metric, "selectedMetricKeys": [metric], "displayName": metric, "xAxisKey": "step",
           "xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0, "displayPoints": True,
           "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": True,
           "useGlobalLineSmoothing": True, "selectedXAxisMetricKey": "", "range": {}}  # fmt: skip
    return _card("LINE", metric) | own


def _scatter(x: str, y: str) -> dict[str, Any]:
    (x_group, _, x_key), (y_group, _, y_key) = x.partition("."), y.partition(".")
    axes = {
        "xaxis": {"key": x_key, "type": x_group.upper()[:-1]},
        "yaxis": {"key": y_key, "type": y_group.upper()[:-1]},
    }
    return _card("SCATTER", f"{x}-{y}") | axes | {"displayName": f"{y_key} over {x_key}"}
