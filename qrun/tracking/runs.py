"""Runs as they are written, by id (`Run`), and as they are read (`Recorded`)."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrun.errors import InputError, RunFailed

if TYPE_CHECKING:
    from qrun.tracking.store import Store

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word
BATCH = 900  # metrics per request; MLflow takes 1,000
PARENT = "mlflow.parentRunId"  # tag of a cell
MODEL = "logged_model"  # tag: id of the run's adapter among the logged models


def model_of(model_id: str, text: str, fingerprint: str) -> dict[str, str]:
    """What metrics of a logged model carry: MLflow keeps numbers of different texts or protocols apart."""
    return {"model_id": model_id, "dataset_name": text, "dataset_digest": fingerprint}


class Run:
    """One MLflow run, written by id."""

    def __init__(self, client: Any, run_id: str, name: str) -> None:
        self.client, self.run_id, self.name = client, run_id, name

    def params(self, values: dict[str, Any]) -> None:
        """Flat parameters; a value beyond MLflow's length is refused rather than cut."""
        from mlflow.entities import Param

        texts = {key: str(value) for key, value in values.items()}
        long = [key for key, text in texts.items() if len(text) > PARAM_LENGTH]
        if long:
            raise InputError(f"{long[0]}: longer than the {PARAM_LENGTH} characters that MLflow keeps of a parameter")
        items = [Param(key, text) for key, text in texts.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(self.run_id, params=items[start : start + 100])

    def metrics(self, values: dict[str, float], of: Mapping[str, str] | None = None) -> None:
        """Final values, of the run and, where `of` says which, of a logged model on a text (`model_of`)."""
        self.series([(0, values)], of)

    def series(self, rows: list[tuple[int, dict[str, float]]], of: Mapping[str, str] | None = None) -> None:
        """Many steps in few requests."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [
            Metric(key, float(value), now, step, run_id=self.run_id, **(of or {}))
            for step, values in rows for key, value in values.items()
        ]  # fmt: skip
        for start in range(0, len(items), BATCH):
            self.client.log_batch(self.run_id, metrics=items[start : start + BATCH])

    def last_step(self, metric: str) -> int:
        """The last step at which a metric was logged; 0 if it never was."""
        return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=0)

    def tags(self, values: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, str(value)) for key, value in values.items() if value is not None]
        self.client.log_batch(self.run_id, tags=tags)

    def note(self, markdown: str) -> None:
        """The run's description on its page."""
        self.tags({"mlflow.note.content": markdown})

    def dataset(
        self, name: str, digest: str, source: str, split: str, hub: Mapping[str, str | None] | None = None
    ) -> None:
        """A dataset input: shown in the run table beside the run. `hub` has path, config_name and revision of a text on
        the hub; else `source` is a path, or words for what is installed."""
        from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if hub:
            whole = HuggingFaceDatasetSource(
                str(hub["path"]), hub["config_name"], split=split, revision=hub["revision"]
            )
            kind, found = "hugging_face", whole.to_dict()
        elif Path(source).exists():
            kind, found = "local", {"uri": source}
        else:
            kind, found = "code", {"tags": {"source": source}}
        entity = Dataset(name=name, digest=digest, source_type=kind, source=json.dumps(found))
        self.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", split)])])

    def text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def json(self, value: Any, name: str) -> None:
        self.text(json.dumps(value, indent=1) + "\n", name)

    def texts(self, texts: Mapping[str, str]) -> None:
        """Several text artifacts in one go."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text)
            self.client.log_artifacts(self.run_id, folder)

    def folder(self, path: Path, name: str) -> None:
        self.client.log_artifacts(self.run_id, str(path), name)

    def figure(self, figure: Any, name: str) -> None:
        self.client.log_figure(self.run_id, figure, name)

    def table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """A table that the UI shows on the run's page."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.text(json.dumps({"columns": list(columns), "data": rows}), name)  # MLflow's own log_table appends
        self.tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def model(self, folder: Path, params: Mapping[str, object]) -> str:
        """The adapter in `folder` as a logged model of this run, so that the tab of models compares adapters. Returns
        its id: metrics take it."""
        from mlflow.entities import LoggedModelOutput

        experiment = self.client.get_run(self.run_id).info.experiment_id
        name, texts = self.name.replace(".", "_"), {key: str(value) for key, value in params.items()}
        made = self.client.create_logged_model(experiment, name, self.run_id, params=texts, model_type="adapter")
        self.client.log_model_artifacts(made.model_id, str(folder))
        self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(made.model_id, 0)])
        self.tags({MODEL: made.model_id})
        return made.model_id


@dataclass(frozen=True)
class Recorded:
    """A run as the store has it."""

    run_id: str
    name: str
    status: str
    started: float  # seconds since 1970
    seconds: float  # from start to end; nan while it runs
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    location: str  # URI of its artifacts
    store: "Store" = field(repr=False, compare=False)

    def find(self, name: str) -> Path | None:
        """A file or folder of its artifacts on this machine, downloaded once; None if the run has none of that name."""
        return self.store.artifact(self, name)

    def file(self, name: str) -> Path:
        """`find` of an artifact that must be there. Raises RunFailed if it is not."""
        path = self.find(name)
        if path is None:
            raise RunFailed(f"run {self.run_id} has no artifact {name} (looked in {self.location})")
        return path

    def text(self, name: str) -> str:
        """Content of a text artifact. Raises RunFailed if the run has none of that name."""
        return self.file(name).read_text()
