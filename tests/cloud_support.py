"""A processor's service that loses, fails, refuses, delays and bills, for any number of processes.

    python tests/cloud_support.py     100 runs with faults, as a table

Every job is a file in one folder, so that a process started later, or beside, sees the same service. A run is the same
command started again and again until all its circuits are measured.
"""

import json
import math
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from qrun.errors import InputError, RunFailed
from qrun.quantum.dispatch import Dispatcher, Piece
from qrun.quantum.jobs import JobBook
from qrun.quantum.services import JobFailed, Refused, UnknownJob

SHOTS = 100
AFTER = ("failed", "cancelled", "lost", "late", "late bill", "slow")
SENDING = ("over quota", "answer lost", "answer and list lost", "killed before sending", "killed before recording")
FAULTS = (*AFTER, *SENDING, "killed before keeping")


class Killed(BaseException):
    """The process ends here; nothing of it runs any more."""


class Cloud:
    """The service. `next_fault` says what happens to a job; `made` and `billed` tell afterwards what did."""

    account = "mine"

    def __init__(self, folder, next_fault=lambda: None, seconds=lambda order: 2.0):
        self.folder, self.next_fault, self.seconds = Path(folder), next_fault, seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self.faults, self.orders, self.closed = Counter(), [], 0

    def send(self, order):
        fault = self.next_fault()
        self.faults[fault] += 1
        self.orders.append(order)
        if fault == "over quota":
            raise Refused("this instance has met its usage limit")
        if fault == "killed before sending":
            raise Killed
        took, state = self.seconds(order) * (20 if fault == "slow" else 1), "done"
        if took > order.seconds:  # max_execution_time
            took, state = order.seconds, "stopped"
        state = fault if fault in ("failed", "cancelled", "lost") else state
        took = {"failed": 0.0, "lost": 0.0, "cancelled": took / 2}.get(state, took)
        job = f"job-{len(list(self.folder.iterdir()))}-{os.getpid()}"
        rows = [values.tolist() for _, values, _ in order.pubs]
        self._write(job, {"tag": order.tag, "fault": fault, "state": state, "took": took, "rows": rows, "asked": 0})
        if fault in ("answer lost", "answer and list lost"):
            raise ConnectionError("the line is down")
        if fault == "killed before recording":
            raise Killed
        if fault == "killed for good":
            os.kill(os.getpid(), signal.SIGKILL)
        return job, None

    def close(self):
        self.closed += 1

    def find(self, tag, age):
        job, its = next(((job, its) for job, its in self.made().items() if its["tag"] == tag), (None, None))
        if its and its["fault"] == "answer and list lost" and not its["asked"]:
            self._write(job, {**its, "asked": 1})
            raise ConnectionError("the line is still down")
        return job

    def wait(self, job, handle):
        its = self.made()[job]
        its["asked"] += 1
        self._write(job, its)
        if its["fault"] == "late" and its["asked"] < 3:
            raise TimeoutError("still in the queue")
        if its["fault"] == "killed before keeping" and its["asked"] == 1:
            raise Killed
        if its["state"] == "lost":
            raise UnknownJob("no such job")
        if its["state"] != "done":
            raise JobFailed(f"{its['state']} by the service", again=its["state"] != "stopped")
        return [answer(np.array(rows)) for rows in its["rows"]]

    def usage(self, job, handle):
        its = self.made()[job]
        if its["fault"] == "late bill" and its["asked"] < 2:
            return None
        return None if its["state"] == "lost" else its["took"]

    def made(self):
        """Every job ever made, by id."""
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))}

    def billed(self):
        """Seconds of all jobs."""
        return sum(its["took"] for its in self.made().values())

    def paid_twice(self):
        """Rows of angles that two finished jobs measured."""
        done = [json.dumps(row) for its in self.made().values() if its["state"] == "done" for rows in its["rows"]
                for row in rows]  # fmt: skip
        return sum(count - 1 for count in Counter(done).values())

    def _write(self, job, its):
        path = self.folder / f"{job}.new"
        path.write_text(json.dumps(its))
        path.replace(self.folder / f"{job}.json")


def answer(rows):
    """A PUB's result in which row r of the angles always gives the outcome rows[r, 0] modulo 4."""
    outcomes = np.repeat(rows[:, :1, None].astype(int) % 4, SHOTS, axis=1)
    return SimpleNamespace(data={"c000": SimpleNamespace(array=outcomes, num_bits=2)})


def make_pieces(count, first=0, rows=2, gates=3, seconds=0.01):
    """Pieces of two circuits in turn; every row is another number."""
    values = first + np.arange(count * rows, dtype=float).reshape(count, rows, 1)
    return [Piece(f"key-{v[0, 0]:.0f}", "AB"[i // 2 % 2], v, gates, seconds) for i, v in enumerate(values)]


def check(pieces, found):
    """Whether every piece has its own counts."""
    want = {p.key: np.eye(4)[p.values[:, 0].astype(int) % 4][:, None, :] for p in pieces}
    return all(np.array_equal(found[key], value) for key, value in want.items())


def dispatcher(folder, cloud, budget=None):
    return Dispatcher(JobBook(Path(folder)), cloud, "ibm", "line", "c1", SHOTS, budget)


def one_run(folder, seed):
    """One command, started until it ends well or its budget is spent. Returns what happened."""
    draw = random.Random(seed)
    budget = draw.choice([None, 200, 200, 30, 12])
    share = draw.choice([0.2, 0.4, 0.6])

    def fault():
        return draw.choice(FAULTS) if draw.random() < share else None

    def seconds(order):
        rows = sum(len(values) for _, values, _ in order.pubs)
        return (2 + rows * SHOTS * 0.01) * draw.uniform(0.4, 1.4)

    cloud = Cloud(Path(folder) / "cloud", fault, seconds)
    calls = [make_pieces(4, 0), make_pieces(3, 100), make_pieces(5, 200)]
    starts, end, worst = 0, "unfinished", 0.0
    while end == "unfinished" and starts < 60:
        starts += 1
        d = dispatcher(Path(folder) / "qpu", cloud, budget)
        try:
            for pieces in calls:
                assert check(pieces, d.collect(pieces))
            end = "measured"
        except (RunFailed, Killed):
            pass
        except InputError:
            end = "budget spent"
        worst = max(worst, cloud.billed() - (budget or math.inf))
    book = JobBook(Path(folder) / "qpu")
    keys = {p.values[0, 0]: p.key for pieces in calls for p in pieces}
    made = [keys[row[0]] for its in cloud.made().values() if its["state"] == "done" for rows in its["rows"]
            for row in rows if row[0] in keys]  # fmt: skip
    lost = len(set(made) - {key for key, job in book.active(made).items() if book.counts(job.tag) or job.job_id})
    return {
        "end": end, "starts": starts, "jobs": len(cloud.made()), "faults": cloud.faults, "over": max(worst, 0.0),
        "twice": cloud.paid_twice(), "lost": lost, "budget": budget,
    }  # fmt: skip


def fault_table(runs=100):
    """Sums over runs with seeds 0 ... runs - 1."""
    total = Counter()
    memory = Path("/dev/shm")  # where there is one: these runs commit to disk some thousand times
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for seed in range(runs):
            found = one_run(Path(folder) / str(seed), seed)
            total.update({f"fault: {fault}": n for fault, n in found.pop("faults").items() if fault})
            total.update({
                "runs": 1, f"ended: {found['end']}": 1, "starts": found["starts"], "jobs made": found["jobs"],
                "circuits paid twice": found["twice"], "results lost": found["lost"],
                "runs over budget": int(found["over"] > 0), "runs with a budget": found["budget"] is not None,
            })  # fmt: skip
    return total


if __name__ == "__main__":
    for word, number in sorted(fault_table(int(sys.argv[1]) if len(sys.argv) > 1 else 100).items()):
        print(f"{word:32} {number:6}")
