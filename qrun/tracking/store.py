"""The MLflow store, one experiment per verb: SQLite under the results folder at an absolute URI, or any other.

    store = Store("results")                                MLFLOW_TRACKING_URI, else results/mlflow.db
    with store.run("train", name, params, tags) as run:     FINISHED, FAILED or KILLED, whatever happens inside
        run.metrics({"loss": 3.2})

Runs are written through MlflowClient by run id, so nothing depends on a process-wide active run or on MLFLOW_RUN_ID.
The results folder has the lock of studies, checkpoints and what was downloaded, wherever the runs go.
"""

import errno
import getpass
import logging
import math
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qrun.errors import InputError, RunFailed, interruption, redacted
from qrun.tracking import database
from qrun.tracking.artifacts import artifact
from qrun.tracking.provenance import ended, packages, process
from qrun.tracking.runs import PARENT, Recorded, Run
from qrun.tracking.views import TAG, View, shown

PREFIX = "qrun/"
PAGE = 1000  # runs that a server sends at once
PORT = "ui.port"  # of the `qrun ui` that serves this results folder
WHERE = "results_folder"  # tag: who may call a run of a shared store his own
PROCESS = "process"  # tag: who computes a run, and no longer does once it is gone
# Of what runs and tags mean; 3: training and measuring are cells of their own, studies keep numbers alone.
VERSION = "3"
GIVEN_UP = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM)


def _user() -> str | None:
    """Who runs this, as MLflow's own fluent runs say; nobody where the system has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _seconds(start: int, end: int | None) -> float:
    """Between two moments [ms] of a clock that may have been set back in between; nan while a run goes on."""
    return max(0, end - start) / 1000 if end else math.nan


def _hush() -> None:
    """Keep MLflow's migrations, and errors that this program tells, off the screen; it reads the level when it is first
    imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the client's lines about each ended run
    level = os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(level)


class Store:
    """`<results>/mlflow.db` and `<results>/artifacts/`, or the store at `uri`, by default MLFLOW_TRACKING_URI. Opening
    it writes nothing; the first run does."""

    def __init__(self, results: str | Path, uri: str | None = None) -> None:
        _hush()
        self.folder = Path(results).resolve()
        self.database = self.folder / "mlflow.db"
        self.uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or database.uri(self.database)).rstrip("/")
        self.own = self.uri == database.uri(self.database)
        self.server = self.uri.startswith(("http://", "https://"))
        self._client: Any = None

    @property
    def where(self) -> str:
        """Where runs go, for a reader; without a password."""
        return str(self.database) if self.own else redacted(self.uri)

    @property
    def here(self) -> str:
        """This results folder among those that share a store: value of the tag WHERE."""
        return f"{socket.gethostname()}:{self.folder}"

    @property
    def empty(self) -> bool:
        """Whether there is no database yet; a server always has one."""
        return self.own and database.missing(self.database)

    def check_writable(self) -> None:
        """Raise InputError, before any work, if runs could not be recorded here, and close the runs of processes that
        are gone. Leaves nothing else behind in an existing folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(1))
        except OSError as error:
            why = f"not writable ({error.strerror or error})"
            raise InputError(f"results={self.folder}: {why}; choose another folder with results=...") from error
        if not self.empty:
            if self.own:
                database.check(self.database, write=True)
            self.close_dead()  # a broken or foreign database, a server that is away: told now, not after the work

    @property
    def client(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                if self.own:
                    self._create()
                    database.check(self.database)
                elif self.server:
                    self._reach()
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.search_experiments(max_results=1000, filter_string=f"name LIKE '{PREFIX}%'")
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
                if stop := interruption(error):
                    raise stop from None
                why = f"not a store this MLflow can open ({redacted(' '.join(str(error).split()))[:200]})"
                how = database.FULL
                if not self.own:
                    how = "start the server, or set tracking.uri or MLFLOW_TRACKING_URI to another store"
                raise InputError(f"{'' if self.own else 'tracking.uri='}{self.where}: {why}; {how}") from error
            written = {e.tags.get("qrun.store_version", "1") for e in found} - {VERSION}
            if written:
                formats = f"format {', '.join(sorted(written))}, this one writes {VERSION}"
                how = "choose another folder with results=..., or open it with that version"
                raise InputError(f"results={self.folder}: a store of another version of qrun ({formats}); {how}")
            if self.own:
                try:
                    database.settle(self.database, self._artifacts)
                except sqlite3.OperationalError:  # of a folder that can only be read
                    pass
                except sqlite3.DatabaseError as error:
                    raise database.refused(self.database, error) from error
            self._client = client
        return self._client

    def _reach(self) -> None:
        """Ask the server once: MLflow itself would try for minutes. Whatever it answers, it is there."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        creds = get_default_host_creds(self.uri)
        http_request(creds, "/health", "GET", max_retries=0, timeout=20, raise_on_status=False)

    @property
    def _artifacts(self) -> str:
        return (self.folder / "artifacts").as_uri()

    def _create(self) -> None:
        if database.missing(self.database):
            database.make(self.database, self._artifacts)

    def experiment(self, verb: str) -> str:
        """Id of the verb's experiment, created on first use; its artifacts lie under the results folder, or where a
        server keeps them."""
        from mlflow.exceptions import MlflowException

        name = PREFIX + verb
        with self._taking(f"the experiment {name}"):
            found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # opens on runs and charts, not on the GenAI overview
        plain = {"mlflow.experimentKind": "custom_model_development", "qrun.store_version": VERSION}
        place = None if self.server else f"{self._artifacts}/{verb}"  # a server has its own
        with self._taking(f"the experiment {name}"):
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
        with self._taking(f"the view {key}"):
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
        a server that is gone, or a disk that is full, RunFailed says so."""
        with self._taking(f"run {name}"):
            run = self._begin(verb, name, resume_id)
        try:
            if resume_id is None:
                run.params(params)
            version = packages().get("qrun-adapters")
            where = None if self.own else self.here
            run.tags({**tags, "mlflow.user": _user(), "qrun.version": version, WHERE: where})
            with nullcontext() if PARENT in tags else self._watched(run.run_id):  # a cell is watched with its study
                yield run
            self._end(run, "FINISHED")
        except BaseException as error:
            if stop := interruption(error):  # GeneratorExit: a signal just before the caller's block
                with suppress(Exception):  # a full disk or a lock: the next start closes it
                    self._end(run, "KILLED")
                raise stop from None
            why = self._refusal(error)
            try:
                run.tags({"error": redacted(f"{type(error).__name__}: {error}")[:4000]})
                self._end(run, "FAILED")
            except Exception as second:  # a disk that was full for the run is full for this, too: the first is told
                if not (why or self._refusal(second)):
                    raise
            if why:
                raise RunFailed(f"{self.where} did not take what run {run.run_id} recorded ({why})") from error
            raise

    def _end(self, run: Run, status: str) -> None:
        """Close a run; one of this folder's own store can be put back from its record from now on."""
        now = int(time.time() * 1000)
        if self.own:
            database.keep(self.database, run.run_id, status=status, end_time=now)
        self.client.set_terminated(run.run_id, status, now)

    def keep(self, run: Run) -> None:
        """Bring the record of an ended run up to date: it has got more since."""
        if self.own:
            database.keep(self.database, run.run_id)

    @contextmanager
    def _taking(self, what: str) -> Iterator[None]:
        """RunFailed for what the store, its server or its disk refuses."""
        try:
            yield
        except Exception as error:
            if why := self._refusal(error):
                raise RunFailed(f"{self.where} did not take {what} ({why})") from error
            raise

    def _refusal(self, error: BaseException) -> str | None:
        """Why the store, its server or its disk refused, in a line; None for everything else."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import DBAPIError

        if isinstance(error, InputError | RunFailed):
            return None
        found: BaseException | None = error
        while found is not None:
            refused = isinstance(found, OSError) and found.errno in GIVEN_UP
            if refused or isinstance(found, sqlite3.DatabaseError | DBAPIError):
                return " ".join(str(getattr(found, "orig", found)).split())
            found = found.__cause__ or found.__context__
        if self.server and isinstance(error, MlflowException):
            return " ".join(str(error).split())
        return None

    def running(self) -> list[Recorded]:
        """Runs of all verbs that are RUNNING, or say so."""
        return [run for e in self.experiments() for run in self._search(e.experiment_id, status="RUNNING")]

    def close_dead(self) -> list[Recorded]:
        """Close what processes of this machine left RUNNING that are gone, killed as they were; returns what is still
        RUNNING."""
        left = []
        for run in self.running():
            if ended(run.tags.get(PROCESS, "")):
                self.close(run)
            else:
                left.append(run)
        return left

    def close(self, run: Recorded) -> None:
        """End a run whose process is gone."""
        self._end(Run(self.client, run.run_id, run.name), "KILLED")

    def _begin(self, verb: str, name: str, resume_id: str | None) -> Run:
        """A RUNNING run. A signal while MLflow writes it must not leave one behind whose id nobody knows."""
        experiment, now = self.experiment(verb), int(time.time() * 1000)
        try:
            if resume_id is None:
                tags = {PROCESS: process()}
                return Run(self.client, self.client.create_run(experiment, now, tags, name).info.run_id, name)
            self.client.set_tag(resume_id, PROCESS, process())  # first: what is RUNNING is alive
            self.client.update_run(resume_id, status="RUNNING")
            return Run(self.client, resume_id, name)
        except BaseException as error:
            stop = interruption(error)
            if stop is None:
                raise
            mine = f"attributes.run_name = '{name}' AND attributes.start_time = {now}"
            left = [resume_id] if resume_id else [r.info.run_id for r in self.client.search_runs([experiment], mine)]
            for run_id in left:
                self._end(Run(self.client, run_id, name), "KILLED")
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

    def tagged(
        self, verb: str, tag: str, status: str | None = None, values: Sequence[str] | None = None
    ) -> dict[str, Recorded]:
        """The newest run of a verb for each value of a tag, of one status or any. Where `values` says which are wanted,
        a server with many runs is asked for each: MLflow sends runs whole, 10,000 of them in a minute."""
        found: dict[str, Recorded] = {}
        experiment = "" if self.empty else self.experiment(verb)
        for number, run in enumerate(self._search(experiment, tag, status) if experiment else ()):
            found.setdefault(run.tags[tag], run)
            if not self.own and values is not None and number + 1 == PAGE > len(values):
                for value in set(values) - found.keys():
                    for one in self._search(experiment, tag, status, value):
                        found[value] = one
                break
        return found

    def runs(self) -> dict[str, list[Recorded]]:
        """All runs by verb, the newest first. Raises InputError if there is no store."""
        if self.empty:
            raise InputError(f"results={self.folder}: no store there; `qrun train` makes one")
        return {e.name.removeprefix(PREFIX): list(self._search(e.experiment_id)) for e in self.experiments()}

    def _search(
        self, experiment: str, tag: str | None = None, status: str | None = None, value: str | None = None
    ) -> Iterator[Recorded]:
        """Runs of an experiment, the newest first; those that have a tag, of one status. Only the newest whose tag has
        a `value`, which a server is asked for."""
        if self.own:
            _ = self.client  # creates or checks it
            for row in database.read(self.database, experiment, tag, status):
                end, started = row["end"], row["start"]
                seconds = _seconds(started, end)
                facts = (row["metrics"], row["params"], row["tags"], row["place"])
                yield Recorded(row["run_id"], row["name"], row["status"], started / 1000, seconds, *facts, self)
            return
        wanted = "!= ''" if value is None else f"= '{value}'"
        conditions = [f"tags.`{tag}` {wanted}"] * (tag is not None) + [f"attributes.status = '{status}'"] * bool(status)
        order, token = ["attributes.start_time DESC"], None
        while True:
            where = " AND ".join(conditions)
            most = PAGE if value is None else 1
            page = self.client.search_runs([experiment], where, max_results=most, page_token=token, order_by=order)
            yield from map(self._recorded, page)
            token = page.token
            if not token or value is not None:
                return

    def _recorded(self, run: Any) -> Recorded:
        """Of MLflow's entity."""
        info, data = run.info, run.data
        seconds = _seconds(info.start_time, info.end_time)
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
        """A file or folder of a run's artifacts on this machine, downloaded once; None if the run has none."""
        return artifact(self.client, self.folder, run, name)

    def exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def artifact_text(self, run_id: str, name: str) -> str:
        """Content of a text artifact. Raises RunFailed if the run has none of that name."""
        return self.recorded(run_id).text(name)

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """A run's metric by step, rising; empty if it has none."""
        points = self.client.get_metric_history(run_id, metric)
        return dict(sorted((point.step, point.value) for point in points))

    def remove(self, verb: str, tag: str, value: str) -> None:
        """Delete the runs of a verb that have a tag of this value."""
        for run in self.client.search_runs([self.experiment(verb)], f"tags.`{tag}` = '{value}'", max_results=1000):
            self.client.delete_run(run.info.run_id)

    def label(self, runs: Sequence[Recorded], tag: str, value: str) -> None:
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
