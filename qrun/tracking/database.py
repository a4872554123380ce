"""The SQLite file of a store: made whole or not at all, checked before MLflow opens it, moved with its folder.

MLflow's own schema is used as it is. 10,000 runs come through MLflow's client in 24 CPU-s, through `read` in one; those
of a server come through the client.
"""

import json
import math
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from qrun.errors import InputError
from qrun.files import replaced
from qrun.tracking.runs import MODEL

WAIT = 30  # seconds a process waits while another writes
RECORD = "record.json"  # beside the artifacts of an ended run: its rows, to make a lost database again
TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
UNREADABLE = (  # what a record that is none, or is there twice, makes of itself
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, sqlite3.IntegrityError,
    sqlite3.InterfaceError, sqlite3.ProgrammingError,
)  # fmt: skip
FULL = "move it away, choose another folder with results=..., or make it anew from its runs: `qrun doctor --repair`"


def uri(path: Path) -> str:
    """As MLflow takes it."""
    return f"sqlite:///{path}?timeout={WAIT}"


def missing(path: Path) -> bool:
    """Whether there is no database yet; SQLite makes an empty file before anything else."""
    return not os.path.lexists(path) or (path.is_file() and path.stat().st_size == 0)


def make(path: Path, artifacts: str) -> None:
    """Make the database aside and move it into place whole: MLflow opens none whose creation was interrupted. One
    process at a time; the others wait and find it there. What a killed creator left is removed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".mlflow.lock"):
        if not missing(path):
            return
        for left in folder.glob(".mlflow-new-*"):
            shutil.rmtree(left)
        for journal in ("-journal", "-wal", "-shm"):  # of a database that is gone; SQLite would play it into this
            Path(f"{path}{journal}").unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-new-", dir=folder) as aside:
            new = Path(aside, path.name)
            made = SqlAlchemyStore(uri(new), artifacts)  # no client: those are cached
            made.search_experiments()
            made.engine.dispose()
            os.replace(new, path)


@contextmanager
def opened(path: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction on an existing database."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=WAIT, isolation_level=None, uri=True)) as db:
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        yield db
        db.execute("COMMIT")


def check(path: Path, write: bool = False) -> None:
    """Raise InputError, in one line, for what is no store that can be read (and with `write`, written)."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: a link to {os.readlink(path)}, which is not there; mend or remove the link")
    if not path.is_file():
        raise InputError(f"{path}: not a store (no file); move it away, or choose another folder with results=...")
    try:
        with opened(path, write) as db:
            db.execute("SELECT version_num FROM alembic_version")  # MLflow would fill a foreign one
    except (sqlite3.Error, OSError) as error:
        raise refused(path, error) from error


def refused(path: Path, error: Exception) -> InputError:
    """Why the database cannot be read or written, and what to do."""
    if "locked" in str(error):
        why = f"locked by another process for more than {WAIT} s; wait for it, or end it"
    elif "readonly" in str(error):
        why = "not writable (read-only); choose another folder with results=..."
    elif "full" in str(error):
        why = "the disk is full; make room, the same command goes on"
    else:
        why = f"not a store this MLflow can open ({error}); {FULL}"
    return InputError(f"{path}: {why}")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """`opened`; pages behind the first may be damaged, too."""
    try:
        with opened(path) as db:
            yield db
    except sqlite3.Error as error:
        raise refused(path, error) from error


def settle(path: Path, root: str) -> None:
    """Let a database that was moved or copied say where its artifacts lie now: below the URI `root`, beside it."""
    query = "SELECT experiment_id, artifact_location, name FROM experiments WHERE name LIKE 'qrun/%'"
    with reading(path) as db:
        places = [(i, old, f"{root}/{name.removeprefix('qrun/')}") for i, old, name in db.execute(query)]
    moved = [(i, old, new) for i, old, new in places if old != new and not _same(old, new)]
    if not moved:
        return
    with opened(path, write=True) as db:
        for experiment, old, new in moved:
            db.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment))
            for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
                rest = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE experiment_id = ?"
                db.execute(f"{rest} AND substr({column}, 1, ?) = ?", (new, len(old) + 1, experiment, len(old), old))


def _same(old: str, new: str) -> bool:
    """Whether two addresses are one folder, by another mount."""
    first, second = map(_path, (old, new))
    return first.exists() and second.exists() and first.samefile(second)


def read(path: Path, experiment: str, tag: str | None, status: str | None) -> Iterator[Mapping[str, Any]]:
    """Active runs of an experiment, the newest first: run_id, name, status, start_time, end_time [ms], artifact_uri,
    metrics, params, tags. With `tag` the newest of each of its values, with `status` those of that status."""
    query = "SELECT run_uuid, name, status, start_time, end_time, artifact_uri, {} FROM runs {} WHERE experiment_id = ?"
    query += " AND lifecycle_stage = 'active'"
    words: list[object] = [int(experiment)]
    if tag is None:
        query = query.format("run_uuid", "")
    else:
        query = query.format("tags.value", "JOIN tags USING (run_uuid)") + " AND tags.key = ? AND tags.value != ''"
        words.append(tag)
    if status is not None:
        query, words = query + " AND status = ?", [*words, status]
    with reading(path) as db:
        newest: dict[str, tuple[Any, ...]] = {}
        for row in db.execute(query + " ORDER BY start_time DESC, run_uuid", words):
            newest.setdefault(row[-1], row)
        ids = json.dumps([row[0] for row in newest.values()])
        found: dict[str, dict[str, dict[str, Any]]] = {row[0]: {} for row in newest.values()}
        for table, value in (("tags", "value"), ("params", "value"), ("latest_metrics", "value, is_nan")):
            rows: dict[str, dict[str, Any]] = {run: {} for run in found}
            of = f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN (SELECT value FROM json_each(?))"
            for run, key, number, *nan in db.execute(of, (ids,)):
                rows[run][sys.intern(key)] = math.nan if nan and nan[0] else number
            for run, own in rows.items():
                found[run][table] = own
    for run, name, state, start, end, place, _ in newest.values():
        own = {"metrics": found[run]["latest_metrics"], "params": found[run]["params"], "tags": found[run]["tags"]}
        yield {"run_id": run, "name": name, "status": state, "start": start, "end": end, "place": place, **own}


def keep(path: Path, run_id: str, **ending: str | int) -> None:
    """Write the rows of a run beside its artifacts, with its `status` and `end_time` [ms] where it is about to end."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with opened(path) as db:
        db.row_factory = sqlite3.Row
        for table in TABLES:
            rows[table] = [dict(row) for row in db.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run_id,))]
    run = rows["runs"][0]
    run |= ending
    with replaced(_path(run["artifact_uri"]).parent / RECORD) as file:
        file.write_text(json.dumps(rows))


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))


def known(path: Path) -> set[str]:
    """Ids of all runs, deleted ones too."""
    with reading(path) as db:
        return {row[0] for row in db.execute("SELECT run_uuid FROM runs")}


def put_back(path: Path, records: Sequence[Path], experiment: str, location: str) -> list[Path]:
    """Insert the runs of these records as runs of an experiment, each whole or not at all; returns the records that are
    broken."""
    broken = []
    with opened(path, write=True) as db:
        columns = {table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")} for table in TABLES}
        for record in records:
            db.execute("SAVEPOINT record")
            try:
                rows = json.loads(record.read_text())
                run = rows["runs"][0]
                run |= {"experiment_id": int(experiment), "artifact_uri": f"{location}/{run['run_uuid']}/artifacts"}
                for table in TABLES:
                    for row in rows[table]:
                        if table == "tags" and row["key"] == MODEL:
                            continue  # its logged model is not put back
                        kept = {name: value for name, value in row.items() if name in columns[table]}
                        marks = ", ".join("?" * len(kept))
                        db.execute(f"INSERT INTO {table} ({', '.join(kept)}) VALUES ({marks})", list(kept.values()))
            except UNREADABLE:
                db.execute("ROLLBACK TO record")
                broken.append(record)
    return broken
