"""From pieces of work to their counts, through the job book: find what is there, send the rest, wait, keep.

All jobs of a call are sent before any is waited for. A job that failed is sent once more; then the reason is told. What
the budget cannot pay is told after everything else has been sent and kept. Whenever this stops, by an error, a signal
or a kill, the same command goes on from the book.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrun.errors import InputError, RunFailed
from qrun.quantum.encoding import Floats
from qrun.quantum.jobs import Job, JobBook, new_tag, owner
from qrun.quantum.plan import EXECUTIONS_PER_JOB, GATES_PER_JOB, JOB_OVERHEAD_S
from qrun.quantum.services import JobFailed, Order, Pub, Refused, Service, UnknownJob, one_line

ALLOWANCE = 1.5  # of its estimate, what a job may take before the service stops it; as much again at each attempt


@dataclass(frozen=True)
class Piece:
    """Rows of one circuit: angles [rows, parameters], the circuit's two-qubit gates, and the estimated QPU seconds of
    one execution."""

    key: str
    circuit: Any
    values: Floats
    gates: int
    seconds: float


class Dispatcher:
    """Gets counts of pieces from one service; `budget` is in QPU seconds of all jobs of this kind in the book."""

    def __init__(
        self, book: JobBook, service: Service, kind: str, processor: str, calibration: str | None, shots: int,
        budget: float | None,
    ) -> None:  # fmt: skip
        self.book, self.service, self.kind, self.processor = book, service, kind, processor
        self.calibration, self.shots, self.budget = calibration, shots, budget
        self.used: dict[str, None] = {}  # tags whose counts were asked for, in order
        self.sent = 0
        self._handles: dict[str, Any] = {}

    def collect(self, pieces: Sequence[Piece]) -> dict[str, Floats]:
        """Frequencies [rows, blocks, 2^n] by key. Raises InputError if the budget is too small, RunFailed in one line
        for what the service did not do."""
        wanted = {piece.key: piece for piece in pieces}
        found: dict[str, Floats] = {}
        failures: Counter[str] = Counter()
        while missing := wanted.keys() - found.keys():
            for job in {job.tag: job for job in self.book.active(missing).values()}.values():
                if job.state == "intent":
                    self._find(job)
            there = self.book.active(missing)
            obstacle = self._send([piece for key, piece in wanted.items() if key in missing and key not in there])
            there = self.book.active(missing)
            if obstacle is not None and not there:
                raise obstacle
            broken = None
            for job in {job.tag: job for job in there.values()}.values():
                keys = [key for key, its in there.items() if its.tag == job.tag]
                self.used[job.tag] = None
                try:
                    counts = self.take(job)
                    found |= {key: counts[key] for key in keys}
                except JobFailed as error:
                    failures.update(keys)
                    if not error.again or max(failures[key] for key in keys) > 1:
                        more = f"after the {job.allowed_s:.0f} s it was allowed; the same command allows more"
                        again = "sent twice; the same command tries it once more" if error.again else more
                        broken = RunFailed(f"job {job.job_id} on {job.processor} {error}; {again}")
            if broken:
                raise broken
        return found

    def take(self, job: Job) -> dict[str, Floats]:
        """Counts of a sent job by key, waited for where they are not here. Raises JobFailed, with the book telling so,
        and RunFailed where nothing is known."""
        counts = self.book.counts(job.tag)
        if counts is None:
            if job.state == "done":
                self.book.reopen(job.tag)
            try:
                if job.job_id is None:
                    raise ConnectionError("another process is sending it")
                result = self.service.wait(job.job_id, self._handles.get(job.tag))
            except JobFailed as error:
                self.book.end(job.tag, "failed", str(error), self._usage(job))
                raise
            except UnknownJob as error:
                self._check_account(job)
                self.book.end(job.tag, "lost", one_line(error), self._usage(job))
                raise JobFailed(f"is lost, {one_line(error)}") from error
            except Exception as error:
                what = f"job {job.job_id or job.tag} on {job.processor}"
                raise RunFailed(f"{what}: {one_line(error)}; the same command goes on") from error
            counts = self.book.keep(job.tag, [frequencies(result[i]) for i in range(len(result))])
            job = next(iter(self.book.jobs([job.tag])))
        if job.state == "sent":
            self.book.end(job.tag, "done", None, self._usage(job) or None)  # 0 s of a finished job: not yet added up
        return counts

    def learn_usage(self, tags: Collection[str] | None = None) -> bool:
        """Ask for the seconds of ended jobs (None: all) that were not known yet; whether any became known."""
        learned = False
        for job in self.book.jobs(tags):
            ended = job.state in ("done", "failed") and job.kind == self.kind and job.real_s is None
            seconds = self._usage(job) if ended else None
            if seconds or (seconds == 0 and job.state == "failed"):
                self.book.end(job.tag, job.state, None, seconds)
                learned = True
        return learned

    def _usage(self, job: Job) -> float | None:
        try:
            return self.service.usage(job.job_id or "", self._handles.get(job.tag))
        except Exception:  # a bill that cannot be read now is asked for again, and its allowance counts until then
            return None

    def _find(self, job: Job) -> bool:
        """Ask the service for a job that may have been sent. True if it was; if not, its keys are free."""
        if not job.abandoned:
            raise RunFailed(f"{job.owner} is sending the same work to {job.processor}; the same command goes on")
        self._check_account(job)
        try:
            job_id = self.service.find(job.tag, job.age)
        except Exception as error:
            why = f"a job may have been sent to {job.processor}, and the service does not answer ({one_line(error)})"
            raise RunFailed(f"{why}; the same command finds out") from error
        if job_id is None:
            self.book.end(job.tag, "refused", "it never arrived", 0.0)
        else:
            self.book.sent(job.tag, job_id)
        return job_id is not None

    def _check_account(self, job: Job) -> None:
        """A job that another instance paid is not lost because this one does not know it."""
        if job.account != self.service.account:
            what = f"job {job.job_id or job.tag} on {job.processor} was sent from another account or instance"
            raise RunFailed(f"{what}; use that one, or measure anew with another device.repetition")

    def _send(self, pieces: list[Piece]) -> Exception | None:
        """Send jobs until nothing is left, or something is in the way, which is returned."""
        obstacle: Exception | None = None
        try:
            while pieces and obstacle is None:
                left = None if self.budget is None else math.floor(self.budget - self.book.spent(self.kind))
                count, seconds = self._cut(pieces, left)
                if count:
                    outcome = self._send_job(pieces[:count], seconds, left)
                    if isinstance(outcome, Exception):
                        obstacle = outcome
                    elif not outcome:
                        break  # another process was faster: look again
                    pieces = pieces[count:]
                elif not self.learn_usage():
                    obstacle = self._too_poor(pieces, left or 0)
        finally:
            try:
                self.service.close()
            except Exception as error:
                obstacle = RunFailed(f"{self.processor}: {one_line(error)}; the same command goes on")
        return obstacle

    def _cut(self, pieces: Sequence[Piece], left: int | None) -> tuple[int, float]:
        """How many of the first pieces make the next job, and its estimated seconds."""
        executions, gates, seconds, circuit = 0, 0, JOB_OVERHEAD_S, None
        for count, piece in enumerate(pieces):
            runs = len(piece.values) * self.shots
            executions, total = executions + runs, seconds + runs * piece.seconds
            gates, circuit = gates + (0 if piece.circuit is circuit else piece.gates), piece.circuit
            full = count and (executions > EXECUTIONS_PER_JOB or gates > GATES_PER_JOB)
            if full or (left is not None and total > left):
                return count, seconds
            seconds = total
        return len(pieces), seconds

    def _send_job(self, pieces: Sequence[Piece], seconds: float, left: int | None) -> Exception | bool:
        """Write down, send, write down. True if it was sent, False if another process was faster, else the reason."""
        keys = [piece.key for piece in pieces]
        attempt = self.book.attempts(keys) + 1
        allowed = min(math.ceil(ALLOWANCE * attempt * seconds), math.inf if left is None else left)
        parts: list[list[Piece]] = []
        rows = []
        for piece in pieces:
            if not parts or parts[-1][0].circuit is not piece.circuit:
                parts.append([])
            rows.append((piece.key, len(parts) - 1, sum(len(p.values) for p in parts[-1]), len(piece.values)))
            parts[-1].append(piece)
        pubs: list[Pub] = [(p[0].circuit, np.concatenate([piece.values for piece in p]), self.shots) for p in parts]
        circuits, account = sum(count for *_, count in rows), self.service.account
        job = Job(
            new_tag(), "intent", None, self.kind, account, self.processor, self.calibration, circuits, self.shots,
            attempt, seconds, float(allowed), None, None, owner(), time.time(),
        )  # fmt: skip
        if not self.book.intend(job, rows, self.budget):
            return False
        seed = int(hashlib.sha256("".join(keys).encode()).hexdigest()[:7], 16) + 1
        try:
            job_id, handle = self.service.send(Order(job.tag, pubs, int(allowed), seed, left))
        except Refused as error:
            self.book.end(job.tag, "refused", str(error), 0.0)
            return RunFailed(f"{self.processor} refused a job: {error}")
        except Exception as error:
            arrived = self._find(job)
            return arrived or RunFailed(f"a job did not reach {self.processor}: {one_line(error)}")
        self.book.sent(job.tag, job_id)
        self._handles[job.tag], self.sent = handle, self.sent + 1
        return True

    def _too_poor(self, pieces: Sequence[Piece], left: int) -> InputError:
        rows = sum(len(piece.values) for piece in pieces)
        needed = JOB_OVERHEAD_S + sum(len(piece.values) * self.shots * piece.seconds for piece in pieces)
        missing = f"{rows:,} circuits are missing, about {needed:,.0f} s by estimate"
        rest = f"{left} s are left after {self.book.spent(self.kind):,.0f} s of jobs in {self.book.folder}"
        return InputError(f"device.budget_s={self.budget:g}: {missing}; {rest}; it was not sent")


def frequencies(pub: Any) -> Floats:
    """Frequencies [rows, blocks, 2^n] of one PUB's registers c000, c001 ..., each a byte a shot [rows, shots, 1]."""
    blocks = []
    for name in sorted(name for name in pub.data if name.startswith("c")):
        bits = pub.data[name]
        blocks.append((bits.array == np.arange(2**bits.num_bits)).mean(axis=-2))
    return np.stack(blocks, axis=-2)
