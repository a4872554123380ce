"""The MLflow store, one experiment per verb: SQLite under the results folder at an absolute URI, or any other.

    store = Store("results")                                MLFLOW_TRACKING_URI, else results/mlflow.db
    with store.run("train", name, params, tags) as run:     FINISHED, FAILED or KILLED, whatever happens inside
        run.metrics({"loss": 3.2})

Runs are written through MlflowClient by run id, so nothing depends on a process-wide active run or on MLFLOW_RUN_ID.
The results folder has the lock of studies, checkpoints and what was downloaded, wherever the runs go.
"""

import getpass
import json
import logging
import math
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from qrun.errors import InputError, RunFailed, interruption
from qrun.tracking.provenance import packages
from qrun.tracking.views import TAG, View, shown

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word
BATCH = 900  # metrics per request; MLflow takes 1,000
PREFIX = "qrun/"
PARENT = "mlflow.parentRunId"  # tag of a cell
PORT = "ui.port"  # of the `qrun ui` that serves this results folder
MODEL = "logged_model"  # tag: id of the run's adapter among the logged models
WHERE = "results_folder"  # tag: who may call a run of a shared store his own
# Of what runs and tags mean; 3: training and measuring are cells of their own, studies keep numbers alone.
VERSION = "3"


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


class Store:
    """`<results>/mlflow.db` and `<results>/artifacts/`, or the store at `uri`, by default MLFLOW_TRACKING_URI. Opening
    it writes nothing; the first run does."""

    def __init__(self, results: str | Path, uri: str | None = None) -> None:
        _hush()
        self.folder = Path(results).expanduser().resolve()
        self.database = self.folder / "mlflow.db"
        self.uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or _uri(self.database)).rstrip("/")
        self.own = self.uri == _uri(self.database)
        self.server = self.uri.startswith(("http://", "https://"))
        self._client: Any = None

    @property
    def where(self) -> str:
        """Where runs go, for a reader; without a password."""
        parts = urlsplit(self.uri)
        return str(self.database) if self.own else self.uri.replace(f":{parts.password}@", ":***@")

    @property
    def here(self) -> str:
        """This results folder among those that share a store: value of the tag WHERE."""
        return f"{socket.gethostname()}:{self.folder}"

    @property
    def empty(self) -> bool:
        """Whether there is no database yet; a server always has one."""
        return self.own and not self.database.exists()

    def check_writable(self) -> None:
        """Raise InputError, before any work, if runs could not be recorded here. Leaves nothing behind in an existing
        folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            if self.own and self.database.exists() and not os.access(self.database, os.W_OK):
                raise PermissionError(13, "the database is read-only")
        except OSError as error:
            why = f"not writable ({error.strerror or error})"
            raise InputError(f"results={self.folder}: {why}; choose another folder with results=...") from error
        if not self.empty:
            _ = self.client  # a broken or foreign database, a server that is away: told now, not after the work

    @property
    def client(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                if self.own:
                    self._create()
                    with closing(sqlite3.connect(self.database, timeout=60)) as database:
                        database.execute("SELECT version_num FROM alembic_version")  # MLflow would fill a foreign one
                elif self.server:
                    self._reach()
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.search_experiments(max_results=1000, filter_string=f"name LIKE '{PREFIX}%'")
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
                if stop := interruption(error):
                    raise stop from None
                why = f"not a store this MLflow can open ({' '.join(str(error).split())[:200]})"
                how = "move it away, or choose another folder with results=..."
                if not self.own:
                    how = "start the server, or set tracking.uri or MLFLOW_TRACKING_URI to another store"
                    why = why.replace(self.uri, self.where)
                raise InputError(f"{'' if self.own else 'tracking.uri='}{self.where}: {why}; {how}") from error
            written = {e.tags.get("qrun.store_version", "1") for e in found} - {VERSION}
            if written:
                formats = f"format {', '.join(sorted(written))}, this one writes {VERSION}"
                how = "choose another folder with results=..., or open it with that version"
                raise InputError(f"results={self.folder}: a store of another version of qrun ({formats}); {how}")
            self._client = client
        return self._client

    def _reach(self) -> None:
        """Ask the server once: MLflow itself would try for minutes. Whatever it answers, it is there."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        creds = get_default_host_creds(self.uri)
        http_request(creds, "/health", "GET", max_retries=0, timeout=20, raise_on_status=False)

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
        """Id of the verb's experiment, created on first use; its artifacts lie under the results folder, or where a
        server keeps them."""
        from mlflow.exceptions import MlflowException

        name = PREFIX + verb
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # opens on runs and charts, not on the GenAI overview
        plain = {"mlflow.experimentKind": "custom_model_development", "qrun.store_version": VERSION}
        place = None if self.server else (self.folder / "artifacts" / verb).as_uri()  # a server has its own
        try:
            return self.client.create_experiment(name, place, plain)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id  # another process made it in between

    def view(self, verb: str, key: str, view: View) -> None:
        """Keep a saved view of a verb's runs, if it is not there as it should be."""
        experiment, tag, value = self.experiment(verb), TAG + key, view.tag()
        if self.client.get_experiment(experiment).tags.get(tag) != value:
            self.client.set_experiment_tag(experiment, tag, value)

    @contextmanager
    def _watched(self, run_id: str) -> Iterator[None]:
        """CPU and memory (and GPU, disk, network) every ten seconds, by MLflow's own thread, which ends with the block.
        MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false switches it off."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() == "false":
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    @contextmanager
    def run(
        self, verb: str, name: str, params: dict[str, Any], tags: dict[str, Any], resume_id: str | None = None
    ) -> Iterator[Run]:
        """A new run, or the interrupted one `resume_id` again. Its status is right on every exit that Python sees; on
        a server that is gone RunFailed says so."""
        from mlflow.exceptions import MlflowException

        run = self._begin(verb, name, resume_id)
        try:
            if resume_id is None:
                run.params(params)
            version = packages().get("qrun-adapters")
            where = None if self.own else self.here
            run.tags({**tags, "mlflow.user": _user(), "qrun.version": version, WHERE: where})
            with nullcontext() if PARENT in tags else self._watched(run.run_id):  # a cell is watched with its study
                yield run
            run.end("FINISHED")
        except BaseException as error:
            if stop := interruption(error):  # GeneratorExit: a signal just before the caller's block
                run.end("KILLED")
                raise stop from None
            if self.server and isinstance(error, MlflowException):
                why = " ".join(str(error).split())[:300].replace(self.uri, self.where)
                raise RunFailed(f"{self.where} did not take what run {run.run_id} recorded ({why})") from error
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
        if self.empty:
            raise InputError(f"{word}: no store at {self.database}")
        experiments = [e.experiment_id for e in self.experiments()]
        order, quoted = ["attributes.start_time DESC"], word.replace("'", "")
        for key in ("run_name", "run_id") if experiments else ():
            condition = f"attributes.{key} = '{quoted}'"
            if found := self.client.search_runs(experiments, condition, max_results=1, order_by=order):
                return found[0]
        raise InputError(f"{word}: no run of that name or id in {self.where}")

    def experiments(self) -> Sequence[Any]:
        """MLflow's experiments of this program."""
        return self.client.search_experiments(max_results=1000, filter_string=f"name LIKE '{PREFIX}%'")

    def tagged(self, verb: str, tag: str, status: str | None = None) -> dict[str, Recorded]:
        """The newest run of a verb for each value of a tag, of one status or any."""
        if self.empty:
            return {}
        condition = f"tags.`{tag}` != ''" + (f" AND attributes.status = '{status}'" if status else "")
        found: dict[str, Recorded] = {}
        for run in self._search(self.experiment(verb), condition):
            found.setdefault(run.tags[tag], run)
        return found

    def runs(self) -> dict[str, list["Recorded"]]:
        """All runs by verb, the newest first. Raises InputError if there is no store."""
        if self.empty:
            raise InputError(f"results={self.folder}: no store there; `qrun train` makes one")
        return {e.name.removeprefix(PREFIX): list(self._search(e.experiment_id)) for e in self.experiments()}

    def _search(self, experiment: str, condition: str = "") -> Iterator["Recorded"]:
        """Runs of an experiment, the newest first."""
        order, token = ["attributes.start_time DESC"], None
        while True:
            page = self.client.search_runs([experiment], condition, max_results=1000, page_token=token, order_by=order)
            yield from map(self._recorded, page)
            token = page.token
            if not token:
                return

    def _recorded(self, run: Any) -> Recorded:
        """Of MLflow's entity."""
        info, data = run.info, run.data
        seconds = (info.end_time - info.start_time) / 1000 if info.end_time else math.nan
        found = (dict(data.metrics), dict(data.params), dict(data.tags))
        started = info.start_time / 1000
        return Recorded(info.run_id, info.run_name, info.status, started, seconds, *found, info.artifact_uri, self)

    def recorded(self, run_id: str) -> Recorded:
        """One run by id."""
        return self._recorded(self.client.get_run(run_id))

    def mine(self, run: Recorded) -> bool:
        """Whether a run was started from this results folder; in its own store every run was."""
        return self.own or run.tags.get(WHERE) == self.here

    def artifact(self, run: Recorded, name: str) -> Path | None:
        """A file or folder of a run's artifacts where it lies, or below `downloaded` in the results folder, kept there
        under the run's id and end."""
        parts = urlsplit(run.location)
        if parts.scheme in ("", "file"):
            path = Path(url2pathname(parts.path)) / name
            return path if path.exists() else None
        ended = math.isfinite(run.seconds)
        moment = round(1000 * (run.started + run.seconds)) if ended else 0
        kept = self.folder / "downloaded" / f"{run.run_id}-{moment}" / name
        if ended and kept.exists():
            return kept
        above = str(PurePosixPath(name).parent)
        listed = self.client.list_artifacts(run.run_id, None if above == "." else above)
        if name not in {entry.path for entry in listed}:
            return None
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=kept.parent) as aside:
            self.client.download_artifacts(run.run_id, name, aside)
            if not ended:  # it may have another by now
                shutil.rmtree(kept, ignore_errors=True)
                kept.unlink(missing_ok=True)
            with suppress(OSError):  # another process put its folder there first
                os.replace(Path(aside) / name, kept)
        return kept

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

    def link(self, verb: str, run_id: str = "", view: str = "", charts: bool = False) -> str:
        """Where a run, or a saved view of a verb's runs, is looked at: an address where a server is known, else how to
        start one and what to open there."""
        path = page(self.experiment(verb), f"/{run_id}" if run_id else "", shown(view, charts) if view else "")
        if address := self.address():
            return address + path
        folder = "" if self.folder == Path("results").resolve() else f" --results {self.folder}"
        return f"`qrun ui{folder}`, there {path}"

    def address(self) -> str | None:
        """Of the server, or of the `qrun ui` that runs on this results folder; None where there is none."""
        if self.server:
            parts = urlsplit(self.uri)
            return self.uri.replace(f"{parts.username}:{parts.password}@", "")
        try:
            port = int((self.folder / PORT).read_text())
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                return f"http://127.0.0.1:{port}"
        except (OSError, ValueError):
            return None


def page(experiment: str, run: str = "", more: str = "", tab: str = "runs") -> str:
    """Of runs on an MLflow server. Without the type of workflow MLflow opens its pages for agents, which show no
    metrics."""
    return f"/#/experiments/{experiment}/{tab}{run}?workflowType=machine_learning{more}"
