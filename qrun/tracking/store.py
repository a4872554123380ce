"""The MLflow store: SQLite under the results folder at an absolute URI, one experiment per verb.

    store = Store("results")
    with store.run("train", name, params, tags) as run:     FINISHED, FAILED or KILLED, whatever happens inside
        run.metrics({"loss": 3.2}, step=1)

Runs are written through MlflowClient by run id, so nothing depends on a process-wide active run or on MLFLOW_RUN_ID.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qrun.errors import InputError, Interrupted, RunFailed

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word
BATCH = 900  # metrics per request; MLflow takes 1,000
PREFIX = "qrun/"
VERSION = "2"  # of what runs and tags mean; 2: studies keep tables and verdicts in result.json


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

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.series([(step, values)])

    def series(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Many steps in few requests."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, step) for step, values in rows for key, value in values.items()]
        for start in range(0, len(items), BATCH):
            self.client.log_batch(self.run_id, metrics=items[start : start + BATCH])

    def tags(self, values: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(
            self.run_id, tags=[RunTag(key, str(value)) for key, value in values.items() if value is not None]
        )

    def note(self, markdown: str) -> None:
        """The run's description on its page."""
        self.tags({"mlflow.note.content": markdown})

    def dataset(self, name: str, digest: str, source: str, split: str) -> None:
        """A dataset input: shown in the run table beside the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(name=name, digest=digest, source_type="qrun", source=json.dumps({"source": source}))
        self.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", split)])])

    def text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def json(self, value: Any, name: str) -> None:
        self.text(json.dumps(value, indent=1) + "\n", name)

    def file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def folder(self, path: Path, name: str) -> None:
        self.client.log_artifacts(self.run_id, str(path), name)

    def figure(self, figure: Any, name: str) -> None:
        self.client.log_figure(self.run_id, figure, name)

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


class Store:
    """`<results>/mlflow.db` and `<results>/artifacts/`. Opening it writes nothing; the first run does."""

    def __init__(self, results: str | Path) -> None:
        self.folder = Path(results).expanduser().resolve()
        self.database = self.folder / "mlflow.db"
        self._client: Any = None

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}?timeout=60"  # seconds a process waits while another writes

    def check_writable(self) -> None:
        """Raise InputError, before any work, if runs could not be recorded here.

        Leaves nothing behind in an existing folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            if self.database.exists() and not os.access(self.database, os.W_OK):
                raise PermissionError(13, "the database is read-only")
        except OSError as error:
            raise InputError(
                f"results={self.folder}: not writable ({error.strerror or error}); choose another folder with "
                f"results=..."
            ) from error
        if self.database.exists():
            _ = self.client  # a broken or foreign database is told now, not after the work

    @property
    def client(self) -> Any:
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # first use prints a screen of migration messages
            logging.getLogger("alembic").setLevel(logging.ERROR)
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                self._client = MlflowClient(tracking_uri=self.uri)
                found = self._client.search_experiments(max_results=1000)
            except (MlflowException, SQLAlchemyError) as error:
                raise InputError(
                    f"{self.database}: not a store this MLflow can open ({' '.join(str(error).split())[:200]})"
                ) from error
            written = {e.tags.get("qrun.store_version", "1") for e in found if e.name.startswith(PREFIX)} - {VERSION}
            if written:
                self._client = None
                raise InputError(
                    f"results={self.folder}: a store of another version of qrun (format "
                    f"{', '.join(sorted(written))}, this one writes {VERSION}); "
                    "choose another folder with results=..., or open it with that version"
                )
        return self._client

    def experiment(self, verb: str) -> str:
        """Id of the verb's experiment, created on first use with its artifacts under the results folder."""
        name = PREFIX + verb
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        plain = {
            "mlflow.experimentKind": "custom_model_development",
            "qrun.store_version": VERSION,
        }  # opens on runs and charts, not on the GenAI overview
        return self.client.create_experiment(
            name, artifact_location=(self.folder / "artifacts" / verb).as_uri(), tags=plain
        )

    @contextmanager
    def run(
        self, verb: str, name: str, params: dict[str, Any], tags: dict[str, Any], resume_id: str | None = None
    ) -> Iterator[Run]:
        """A new run, or the interrupted one `resume_id` again. Its status is right on every exit that Python sees."""
        if resume_id is not None:
            self.client.update_run(resume_id, status="RUNNING")
            run = Run(self.client, resume_id, name)
        else:
            created = self.client.create_run(self.experiment(verb), run_name=name)
            run = Run(self.client, created.info.run_id, name)
        try:
            if resume_id is None:
                run.params(params)
            run.tags(tags)
            yield run
        except (Interrupted, KeyboardInterrupt):
            run.end("KILLED")
            raise
        except BaseException as error:
            run.tags({"error": f"{type(error).__name__}: {error}"[:4000]})
            run.end("FAILED")
            raise
        run.end("FINISHED")

    def find(self, word: str) -> Any:
        """The newest run of that name or id. Raises InputError if the store has none."""
        if not self.database.exists():
            raise InputError(f"{word}: no store at {self.database}")
        experiments = [e.experiment_id for e in self.client.search_experiments() if e.name.startswith(PREFIX)]
        quoted = word.replace("'", "")
        for condition in (f"attributes.run_name = '{quoted}'", f"attributes.run_id = '{quoted}'"):
            found = (
                self.client.search_runs(experiments, condition, max_results=1, order_by=["attributes.start_time DESC"])
                if experiments
                else []
            )
            if found:
                return found[0]
        raise InputError(f"{word}: no run of that name or id in {self.database}")

    def tagged(self, verb: str, tag: str, status: str | None = None) -> dict[str, Any]:
        """The newest run of a verb for each value of a tag, of one status or any."""
        if not self.database.exists():
            return {}
        condition = f"tags.`{tag}` != ''" + (f" AND attributes.status = '{status}'" if status else "")
        found: dict[str, Any] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment(verb)],
                condition,
                max_results=1000,
                page_token=token,
                order_by=["attributes.start_time DESC"],
            )
            for run in page:
                found.setdefault(run.data.tags[tag], run)
            token = page.token
            if not token:
                return found

    def exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def artifact_text(self, run_id: str, name: str) -> str:
        """Content of a text artifact. Raises RunFailed if the run has none of that name."""
        path = self.artifact_folder(run_id) / name
        if not path.is_file():
            raise RunFailed(f"run {run_id} has no artifact {name} (looked in {path.parent})")
        return path.read_text()

    def artifact_folder(self, run_id: str) -> Path:
        """Folder of a run's artifacts."""
        from urllib.parse import unquote, urlparse

        return Path(unquote(urlparse(self.client.get_run(run_id).info.artifact_uri).path))

    def url(self, verb: str, port: int = 5000, run_id: str | None = None) -> str:
        """Address of the plain run table, or of one run, in `qrun ui`."""
        base = f"http://127.0.0.1:{port}/#/experiments/{self.experiment(verb)}"
        return f"{base}/runs/{run_id}" if run_id else f"{base}/runs"
