"""The job book: every job that was sent to a processor, or may have been, and the counts that arrived.

    results/qpu/jobs.sqlite          processors, jobs, pieces
    results/qpu/<tag>.safetensors    frequencies of a finished job, by the key of each piece

A piece is a few rows of angles of one circuit; its key is the digest of what makes its counts. A job is some pieces. It
is written down as intended, with the seconds it may take, before it is sent:

    intent -> sent -> done        counts are here
    intent -> refused             the service made no job
              sent -> failed      it ended without a result
              sent -> lost        the service does not know it

A key can be in one intended, sent or done job only (a unique index), so nothing is sent twice, whoever tries. The sum
of what jobs took, or may take while that is not known, never exceeds the budget: one transaction adds up and writes.
"""

import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qrun.errors import RunFailed
from qrun.files import replaced
from qrun.quantum.encoding import Floats

GRACE_S = 600  # an intent of another machine this old is nobody's any more

_TABLES = """
CREATE TABLE IF NOT EXISTS processors (
    asked TEXT PRIMARY KEY, name TEXT NOT NULL, chip TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    tag TEXT PRIMARY KEY, state TEXT NOT NULL, job_id TEXT, kind TEXT NOT NULL, account TEXT NOT NULL,
    processor TEXT NOT NULL, calibration TEXT, circuits INTEGER NOT NULL, shots INTEGER NOT NULL,
    attempt INTEGER NOT NULL, estimated_s REAL NOT NULL, allowed_s REAL NOT NULL, real_s REAL, why TEXT,
    owner TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS pieces (
    key TEXT NOT NULL, tag TEXT NOT NULL REFERENCES jobs(tag), pub INTEGER NOT NULL, first INTEGER NOT NULL,
    rows INTEGER NOT NULL, active INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (tag, key));
CREATE UNIQUE INDEX IF NOT EXISTS once ON pieces(key) WHERE active;
"""


@dataclass(frozen=True)
class Job:
    """A row of the book; seconds are QPU seconds. `allowed_s` is what the service may take at most, `real_s` what it
    billed (None: not known)."""

    tag: str
    state: str
    job_id: str | None
    kind: str
    account: str  # digest of the instance that pays
    processor: str
    calibration: str | None
    circuits: int
    shots: int
    attempt: int
    estimated_s: float
    allowed_s: float
    real_s: float | None
    why: str | None
    owner: str
    time: float  # when it was intended, seconds since 1970

    @property
    def age(self) -> float:
        """Seconds since it was intended."""
        return time.time() - self.time

    @property
    def abandoned(self) -> bool:
        """Whether who intended it is gone, so that it has to be looked for."""
        machine, _, pid = self.owner.rpartition(":")
        if machine == socket.gethostname():
            return int(pid) == os.getpid() or not _alive(int(pid)) or self.age > GRACE_S
        return self.age > GRACE_S


_COLUMNS = ", ".join(f"jobs.{field.name}" for field in fields(Job))


class JobBook:
    """The book below `folder`, for any number of processes. Nothing is created before something is written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "jobs.sqlite"

    @contextmanager
    def _open(self, write: bool) -> Iterator[sqlite3.Connection]:
        """One short transaction. Without `write` an absent book is an empty one in memory. Raises RunFailed where the
        file cannot be read or written."""
        there = write or (self.path.is_file() and self.path.stat().st_size > 0)
        db = None
        try:
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path if there else ":memory:", timeout=60, isolation_level=None)
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            if write or not there:
                for statement in _TABLES.strip().split(";\n"):
                    db.execute(statement)
            yield db
            db.execute("COMMIT")
        except (sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, sqlite3.IntegrityError):  # a key that is taken
                raise
            raise RunFailed(f"{self.path}: {error}; the same command goes on") from error
        finally:
            if db is not None:
                db.close()  # rolls back what was not committed

    def processor(self, asked: str) -> tuple[dict[str, Any], float] | None:
        """The chip kept for these words, as a dict, and when it was; None if there is none."""
        with self._open(write=False) as db:
            row = db.execute("SELECT chip, time FROM processors WHERE asked = ?", (asked,)).fetchone()
        return None if row is None else (json.loads(row[0]), float(row[1]))

    def keep_processor(self, asked: str, name: str, chip: Mapping[str, Any]) -> None:
        """Keep a chip for these words, unless one is kept."""
        with self._open(write=True) as db:
            row = (asked, name, json.dumps(chip), time.time())
            db.execute("INSERT OR IGNORE INTO processors VALUES (?, ?, ?, ?)", row)

    def active(self, keys: Collection[str]) -> dict[str, Job]:
        """Key -> the intended, sent or done job that has it."""
        query = f"SELECT pieces.key, {_COLUMNS} FROM pieces JOIN jobs USING (tag) WHERE active AND key IN " \
            "(SELECT value FROM json_each(?))"  # fmt: skip
        with self._open(write=False) as db:
            return {row[0]: Job(*row[1:]) for row in db.execute(query, (json.dumps(list(keys)),))}

    def jobs(self, tags: Collection[str] | None = None) -> list[Job]:
        """All jobs, or those of the tags, in the order in which they were intended."""
        with self._open(write=False) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY time, rowid").fetchall()
        return [Job(*row) for row in rows if tags is None or row[0] in tags]

    def spent(self, kind: str) -> float:
        """Seconds that jobs of this kind of device took, or may take where that is not known."""
        with self._open(write=False) as db:
            return _spent(db, kind)

    def intend(self, job: Job, pieces: Sequence[tuple[str, int, int, int]], budget: float | None) -> bool:
        """Write a job down with its pieces (key, number of the PUB, first row, rows). False, and nothing written, if it
        exceeds the budget or another job has one of the keys."""
        try:
            with self._open(write=True) as db:
                if budget is not None and _spent(db, job.kind) + job.allowed_s > budget:
                    return False
                db.execute(
                    f"INSERT INTO jobs VALUES ({', '.join('?' * len(fields(Job)))})", tuple(asdict(job).values())
                )
                rows = [(key, job.tag, pub, first, count) for key, pub, first, count in pieces]
                db.executemany("INSERT INTO pieces (key, tag, pub, first, rows) VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            return False
        return True

    def sent(self, tag: str, job_id: str) -> None:
        """The service made the job."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET state = 'sent', job_id = ? WHERE tag = ? AND state = 'intent'", (job_id, tag))

    def end(self, tag: str, state: str, why: str | None = None, real_s: float | None = None) -> None:
        """`done`, or `failed`, `lost` or `refused`, which free the keys. The first word counts, but for seconds that
        become known later."""
        with self._open(write=True) as db:
            words = (state, why, tag)
            query = "UPDATE jobs SET state = ?, why = ? WHERE tag = ? AND state IN ('intent', 'sent')"
            if db.execute(query, words).rowcount and state != "done":
                db.execute("UPDATE pieces SET active = 0 WHERE tag = ?", (tag,))
            if real_s is not None:
                db.execute("UPDATE jobs SET real_s = ? WHERE tag = ?", (real_s, tag))

    def reopen(self, tag: str) -> None:
        """A finished job whose file is gone: its counts are asked for again."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET state = 'sent' WHERE tag = ? AND state = 'done'", (tag,))

    def attempts(self, keys: Collection[str]) -> int:
        """The most jobs that any of these keys was in."""
        query = "SELECT COUNT(*) FROM pieces WHERE key IN (SELECT value FROM json_each(?)) GROUP BY key"
        with self._open(write=False) as db:
            return max((int(row[0]) for row in db.execute(query, (json.dumps(list(keys)),))), default=0)

    def counts(self, tag: str) -> dict[str, Floats] | None:
        """Frequencies of a finished job by key; None if they are not here, or not whole."""
        try:
            return load_file(self.folder / f"{tag}.safetensors")
        except (OSError, SafetensorError):
            return None

    def keep(self, tag: str, pubs: Sequence[Floats]) -> dict[str, Floats]:
        """Cut the frequencies [rows, blocks, 2^n] of a job's PUBs into those of its pieces, and write them at once."""
        with self._open(write=False) as db:
            rows = db.execute("SELECT key, pub, first, rows FROM pieces WHERE tag = ?", (tag,)).fetchall()
        found = {key: np.ascontiguousarray(pubs[pub][first : first + count]) for key, pub, first, count in rows}
        with replaced(self.folder / f"{tag}.safetensors") as file:
            save_file(found, file)
        return found


def new_tag() -> str:
    """A name for a job that nobody else has."""
    return f"qrun-{secrets.token_hex(12)}"


def owner() -> str:
    """This process, `machine:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _spent(db: sqlite3.Connection, kind: str) -> float:
    query = "SELECT COALESCE(SUM(COALESCE(real_s, allowed_s)), 0) FROM jobs WHERE kind = ?"
    return float(db.execute(query, (kind,)).fetchone()[0])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
