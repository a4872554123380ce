"""The MLflow store: SQLite under the results folder at an absolute URI, one experiment per verb.

    store = Store("results")
    with store.run("train", name, params, tags) as run:     FINISHED, FAILED or KILLED, whatever happens inside
        run.metrics({"loss": 3.2})

Runs are written through MlflowClient by run id, so nothing depends on a process-wide active run or on MLFLOW_RUN_ID.
"""

import getpass
import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock

from qrun.errors import InputError, RunFailed, interruption
from qrun.tracking.provenance import packages

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word
BATCH = 900  # metrics per request; MLflow takes 1,000
PREFIX = "qrun/"
VERSION = (
    "3"  # of what runs and tags mean; 3: training and measuring are cells of their own, studies keep numbers alone
)


def _uri(database: Path) -> str:
    return f"sqlite:///{database}?timeout=60"  # seconds a process waits while another writes


def _user() -> str | None:
    """Who runs this, as MLflow's own fluent runs say; nobody where the system has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _hush() -> None:
    """Keep MLflow's migration messages off the screen; it reads the level when it is first imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    level = os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(level)


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

    def metrics(self, values: dict[str, float]) -> None:
        self.series([(0, values)])

    def series(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Many steps in few requests."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, step) for step, values in rows for key, value in values.items()]
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

    def dataset(self, name: str, digest: str, source: str, split: str) -> None:
        """A dataset input: shown in the run table beside the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(name=name, digest=digest, source_type="qrun", source=json.dumps({"source": source}))
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

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


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
    artifacts: Path

    @classmethod
    def of(cls, run: Any) -> "Recorded":
        """Of MLflow's entity."""
        info, data = run.info, run.data
        seconds = (info.end_time - info.start_time) / 1000 if info.end_time else math.nan
        folder = Path(url2pathname(urlparse(info.artifact_uri).path))
        found = (dict(data.metrics), dict(data.params), dict(data.tags))
        return cls(info.run_id, info.run_name, info.status, info.start_time / 1000, seconds, *found, folder)

    def text(self, name: str) -> str:
        """Content of a text artifact. Raises RunFailed if the run has none of that name."""
        path = self.artifacts / name
        if not path.is_file():
            raise RunFailed(f"run {self.run_id} has no artifact {name} (looked in {path.parent})")
        return path.read_text()


class Store:
    """`<results>/mlflow.db` and `<results>/artifacts/`. Opening it writes nothing; the first run does."""

    def __init__(self, results: str | Path) -> None:
        _hush()
        self.folder = Path(results).expanduser().resolve()
        self.database = self.folder / "mlflow.db"
        self._client: Any = None

    @property
    def uri(self) -> str:
        return _uri(self.database)

    def check_writable(self) -> None:
        """Raise InputError, before any work, if runs could not be recorded here. Leaves nothing behind in an existing
        folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            if self.database.exists() and not os.access(self.database, os.W_OK):
                raise PermissionError(13, "the database is read-only")
        except OSError as error:
            why = f"not writable ({error.strerror or error})"
            raise InputError(f"results={self.folder}: {why}; choose another folder with results=...") from error
        if self.database.exists():
            _ = self.client  # a broken or foreign database is told now, not after the work

    @property
    def client(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                self._create()
                with closing(sqlite3.connect(self.database, timeout=60)) as database:
                    database.execute("SELECT version_num FROM alembic_version")  # MLflow would fill a foreign database
                client = MlflowClient(tracking_uri=self.uri)
                found = client.search_experiments(max_results=1000)
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
                if stop := interruption(error):
                    raise stop from None
                why = f"not a store this MLflow can open ({' '.join(str(error).split())[:200]})"
                how = "move it away, or choose another folder with results=..."
                raise InputError(f"{self.database}: {why}; {how}") from error
            written = {e.tags.get("qrun.store_version", "1") for e in found if e.name.startswith(PREFIX)} - {VERSION}
            if written:
                formats = f"format {', '.join(sorted(written))}, this one writes {VERSION}"
                how = "choose another folder with results=..., or open it with that version"
                raise InputError(f"results={self.folder}: a store of another version of qrun ({formats}); {how}")
            self._client = client
        return self._client

    def _missing(self) -> bool:
        return not self.database.exists() or self.database.stat().st_size == 0

    def _create(self) -> None:
        """Make the database aside and move it into place whole: MLflow opens none whose creation was interrupted. One
        process at a time; the others wait and find it there. What a killed creator left is removed."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if not self._missing():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".mlflow.lock"):
            if not self._missing():
                return
            for left in self.folder.glob(".mlflow-new-*"):
                shutil.rmtree(left)
            for journal in ("-journal", "-wal", "-shm"):  # of a database that is gone; SQLite would play it into this
                Path(f"{self.database}{journal}").unlink(missing_ok=True)
            with tempfile.TemporaryDirectory(prefix=".mlflow-new-", dir=self.folder) as aside:
                new = Path(aside, self.database.name)
                made = SqlAlchemyStore(_uri(new), (self.folder / "artifacts").as_uri())  # no client: those are cached
                made.search_experiments()
                made.engine.dispose()
                os.replace(new, self.database)

    def experiment(self, verb: str) -> str:
        """Id of the verb's experiment, created on first use with its artifacts under the results folder."""
        from mlflow.exceptions import MlflowException

        name = PREFIX + verb
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # opens on runs and charts, not on the GenAI overview
        plain = {"mlflow.experimentKind": "custom_model_development", "qrun.store_version": VERSION}
        try:
            return self.client.create_experiment(name, (self.folder / "artifacts" / verb).as_uri(), plain)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id  # another process made it in between

    @contextmanager
    def run(
        self, verb: str, name: str, params: dict[str, Any], tags: dict[str, Any], resume_id: str | None = None
    ) -> Iterator[Run]:
        """A new run, or the interrupted one `resume_id` again. Its status is right on every exit that Python sees."""
        run = self._begin(verb, name, resume_id)
        try:
            if resume_id is None:
                run.params(params)
            run.tags({**tags, "mlflow.user": _user(), "qrun.version": packages().get("qrun-adapters")})
            yield run
            run.end("FINISHED")
        except BaseException as error:
            if stop := interruption(error):  # GeneratorExit: a signal just before the caller's block
                run.end("KILLED")
                raise stop from None
            run.tags({"error": f"{type(error).__name__}: {error}"[:4000]})
            run.end("FAILED")
            raise

    def _begin(self, verb: str, name: str, resume_id: str | None) -> Run:
        """A RUNNING run. A signal while MLflow writes it must not leave one behind whose id nobody knows."""
        experiment, now = self.experiment(verb), int(time.time() * 1000)
        try:
            if resume_id is None:
                return Run(self.client, self.client.create_run(experiment, now, run_name=name).info.run_id, name)
            self.client.update_run(resume_id, status="RUNNING")
            return Run(self.client, resume_id, name)
        except BaseException as error:
            stop = interruption(error)
            if stop is None:
                raise
            mine = f"attributes.run_name = '{name}' AND attributes.start_time = {now}"
            left = [resume_id] if resume_id else [r.info.run_id for r in self.client.search_runs([experiment], mine)]
            for run_id in left:
                self.client.set_terminated(run_id, "KILLED")
            raise stop from None

    def find(self, word: str) -> Any:
        """The newest run of that name or id. Raises InputError if the store has none."""
        if not self.database.exists():
            raise InputError(f"{word}: no store at {self.database}")
        experiments = [e.experiment_id for e in self.client.search_experiments() if e.name.startswith(PREFIX)]
        order, quoted = ["attributes.start_time DESC"], word.replace("'", "")
        for key in ("run_name", "run_id") if experiments else ():
            condition = f"attributes.{key} = '{quoted}'"
            if found := self.client.search_runs(experiments, condition, max_results=1, order_by=order):
                return found[0]
        raise InputError(f"{word}: no run of that name or id in {self.database}")

    def tagged(self, verb: str, tag: str, status: str | None = None) -> dict[str, "Recorded"]:
        """The newest run of a verb for each value of a tag, of one status or any."""
        if not self.database.exists():
            return {}
        condition = f"tags.`{tag}` != ''" + (f" AND attributes.status = '{status}'" if status else "")
        found: dict[str, Recorded] = {}
        for run in self._search(self.experiment(verb), condition):
            found.setdefault(run.tags[tag], run)
        return found

    def runs(self) -> dict[str, list["Recorded"]]:
        """All runs by verb, the newest first. Raises InputError if there is no store."""
        if not self.database.exists():
            raise InputError(f"results={self.folder}: no store there; `qrun train` makes one")
        experiments = [e for e in self.client.search_experiments() if e.name.startswith(PREFIX)]
        return {e.name.removeprefix(PREFIX): list(self._search(e.experiment_id)) for e in experiments}

    def _search(self, experiment: str, condition: str = "") -> Iterator["Recorded"]:
        """Runs of an experiment, the newest first."""
        order, token = ["attributes.start_time DESC"], None
        while True:
            page = self.client.search_runs([experiment], condition, max_results=1000, page_token=token, order_by=order)
            yield from map(Recorded.of, page)
            token = page.token
            if not token:
                return

    def recorded(self, run_id: str) -> "Recorded":
        """One run by id."""
        return Recorded.of(self.client.get_run(run_id))

    def exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def artifact_text(self, run_id: str, name: str) -> str:
        """Content of a text artifact. Raises RunFailed if the run has none of that name."""
        return self.recorded(run_id).text(name)

    def remove(self, verb: str, tag: str, value: str) -> None:
        """Delete the runs of a verb that have a tag of this value."""
        for run in self.client.search_runs([self.experiment(verb)], f"tags.`{tag}` = '{value}'", max_results=1000):
            self.client.delete_run(run.info.run_id)

    def label(self, runs: Sequence["Recorded"], tag: str, value: str) -> None:
        """Give runs a tag that they do not have yet."""
        for run in runs:
            if run.tags.get(tag) != value:
                self.client.set_tag(run.run_id, tag, value)

    def url(self, verb: str, run_id: str) -> str:
        """Address of a run in `qrun ui`."""
        return address(5000, self.experiment(verb), f"/{run_id}")

    def charts(self, verb: str) -> str:
        """Address of the charts of a verb's runs in `qrun ui`."""
        return address(5000, self.experiment(verb), mode="&compareRunsMode=CHART")


def address(port: int, experiment: str, run: str = "", mode: str = "") -> str:
    """Of runs in `qrun ui`. Without the type of workflow MLflow opens its pages for agents, which show no metrics."""
    return f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs{run}?workflowType=machine_learning{mode}"
