"""Who computes cells: this process, a few processes beside it, a Ray cluster, or SLURM. The results are the same.

    with open_pool(config, device, workspace) as pool:
        pool.submit(key, task, place)       at most pool.capacity at once
        outcome = pool.next()               waits for one to end

A cell's task is a small picklable description; the process that runs it opens models and text itself and keeps them for
its next cell. Every process computes with `launcher.threads` threads of torch, because sums in another order differ in
their last bits. Nothing is queued behind a running cell, so that an interruption ends after the steps that run.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any, Protocol

import numba
import psutil
import torch

from qrun.cells.cell import Place, Task
from qrun.cells.keys import code_fingerprint
from qrun.cells.workspace import Workspace
from qrun.config.schema import Cluster, LauncherConfig, LauncherKind
from qrun.errors import InputError, Interrupted, RunFailed, interruption, redacted
from qrun.foreign import said
from qrun.report.screen import console, silenced
from qrun.training.interrupt import Interrupt

POLL = 1.0  # seconds between two looks at SLURM's jobs; submitit asks SLURM itself less often


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its run, or an error of one line."""

    key: str
    run_id: str
    error: str | None
    seconds: float


class Pool(Protocol):
    """Computes up to `capacity` cells at once."""

    capacity: int

    def submit(self, key: str, task: Task, place: Place) -> None:
        """Start one."""
        ...

    def next(self) -> Outcome:
        """Wait until one has ended."""
        ...


@contextmanager
def open_pool(config: LauncherConfig, device: str, workspace: Workspace, cells: int, folder: Path) -> Iterator[Pool]:
    """The pool that `launcher` asks for, for so many cells at the most; jobs of SLURM leave their logs in `folder`."""
    jobs = config.kind is LauncherKind.submitit and config.workers is None  # the queue is as long as it has to be
    count = max(1, min(cells if jobs else workers(config, device), cells))
    if config.kind is LauncherKind.submitit:
        with _submitit(config, count, folder) as pool:
            yield pool
    elif config.kind is LauncherKind.ray:
        with _ray(config, count) as pool:
            yield pool
    elif count == 1:
        _threads(config.threads)
        yield Here(workspace)
    else:
        processes = Processes(count, config.threads)
        try:
            yield processes
        except (Interrupted, KeyboardInterrupt) as stop:
            processes.interrupt(getattr(stop, "signum", signal.SIGINT))
            raise
        finally:
            processes.pool.shutdown(wait=True, cancel_futures=True)


def workers(config: LauncherConfig, device: str) -> int:
    """Processes: as asked, one where the model is on an accelerator, else the cores shared out."""
    if config.workers is not None:
        return config.workers
    accelerated = device not in ("cpu", "auto") or (device == "auto" and torch.cuda.is_available())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it
    return 1 if accelerated else max(1, cores // config.threads)


def attempt(key: str, task: Task, place: Place, workspace: Workspace) -> Outcome:
    """Run one cell. A failure of any kind is a line for the table; only an interruption goes on upwards."""
    started = time.monotonic()
    run_id, error = "", None
    try:
        if code_fingerprint(task.modules) != place.tags["code"]:
            raise RunFailed("the program was changed while the study ran; start the study again")
        run_id = task.run(workspace, place)
    except (RunFailed, InputError) as failure:
        error = str(failure)
    except Exception as failure:  # a bug in one cell must not cost the others
        if stop := interruption(failure):
            raise stop from None
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        error = redacted(f"{type(failure).__name__}: {failure}")
    return Outcome(key, run_id, error, time.monotonic() - started)


class Here:
    """This process."""

    capacity = 1

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.waiting: list[tuple[str, Task, Place]] = []

    def submit(self, key: str, task: Task, place: Place) -> None:
        """Remember it; `next` computes."""
        self.waiting.append((key, task, place))

    def next(self) -> Outcome:
        """Compute the cell that was submitted first."""
        with silenced():
            return attempt(*self.waiting.pop(0), self.workspace)


class Processes:
    """Processes beside this one."""

    def __init__(self, count: int, threads: int) -> None:
        self.capacity, self.threads = count, threads
        self.pool = self._open()
        self.pending: dict[Future[Outcome], str] = {}

    def _open(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.capacity, context, _start, (os.getpid(),))

    def submit(self, key: str, task: Task, place: Place) -> None:
        """Hand it to a free process; to a new one where a process was lost and took its neighbours with it."""
        words = (key, task, place, self.threads)
        with _held():
            try:
                future = self.pool.submit(_in_worker, *words)
            except BrokenProcessPool:
                self.pool.shutdown(wait=True)
                self.pool = self._open()
                future = self.pool.submit(_in_worker, *words)
        self.pending[future] = key

    def next(self) -> Outcome:
        """The next that ends."""
        done, _ = wait(self.pending, return_when=FIRST_COMPLETED)
        future = done.pop()
        key, failure = self.pending.pop(future), future.exception()
        return Outcome(key, "", f"its process ended ({failure})", 0.0) if failure else future.result()

    def interrupt(self, signum: int) -> None:
        """Stop the running cells at their next checkpoint."""
        for process in list((self.pool._processes or {}).values()):
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signum)


_workspace: Workspace | None = None  # of a worker process: what its cells have opened so far
_told: list[int] = []  # signals that came to a worker process between two cells


def _in_worker(key: str, task: Task, place: Place, threads: int) -> Outcome:
    global _workspace
    console.quiet = True
    _threads(threads)
    _workspace = _workspace or Workspace()
    try:
        with Interrupt().installed():  # also while the cell opens its model
            if _told:
                raise Interrupted(_told[0])
            return attempt(key, task, place, _workspace)
    except Interrupted:
        return Outcome(key, "", "interrupted", 0.0)


def _threads(count: int) -> None:
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, os.cpu_count() or 1))


HEARD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _held() -> Iterator[None]:
    """Processes that start meanwhile get no signal, which would break their imports, before `_start` has a place for
    it; this one gets it at the end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(parent: int) -> None:
    """A worker ends with its parent, also when that is killed, and hears of a Ctrl-C once, from its parent; after a
    signal it computes nothing more."""
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    for name in HEARD:
        signal.signal(name, lambda signum, _frame: _told.append(signum))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of a closed terminal, too, the parent tells

    def watch() -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):  # Windows never gives another parent
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayPool:
    """A Ray cluster, one cell a task. The store's folder must be visible to every machine of it."""

    def __init__(
        self, ray: Any, config: LauncherConfig, count: int
    ) -> None:  # ray is an extra, imported when asked for
        self.ray, self.capacity, self.threads = ray, count, config.threads
        self.task = ray.remote(num_cpus=config.threads, num_gpus=config.gpus, max_retries=0)(_in_worker)
        self.pending: dict[Any, str] = {}

    def submit(self, key: str, task: Task, place: Place) -> None:
        """Send it to the cluster."""
        self.pending[self.task.remote(key, task, place, self.threads)] = key

    def next(self) -> Outcome:
        """The next that ends, or was lost with its machine."""
        reference = self.ray.wait(list(self.pending))[0][0]
        key = self.pending.pop(reference)
        try:
            outcome: Outcome = self.ray.get(reference)
            return outcome
        except self.ray.exceptions.RayError as error:
            return Outcome(key, "", f"its Ray task was lost ({type(error).__name__})", 0.0)


@contextmanager
def _ray(config: LauncherConfig, count: int) -> Iterator[RayPool]:
    try:
        import ray
    except ImportError as error:
        how = "pip install 'qrun-adapters[ray]', or use launcher=local"
        raise InputError(f"launcher=ray: Ray is not installed; {how}") from error
    try:
        host, colon, port = (config.address or "").removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself would try for many minutes
        ray.init(
            address=config.address, num_cpus=None if config.address else count * config.threads,
            include_dashboard=None if config.address else False, log_to_driver=False, logging_level=logging.ERROR,
            ignore_reinit_error=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"launcher.address={config.address}: no Ray cluster answers there ({why})") from error
    try:
        yield RayPool(ray, config, count)
    finally:
        ray.shutdown()


class SubmititPool:
    """Jobs of SLURM, one cell a job. The store's folder must be visible to every node."""

    def __init__(self, executor: Any, count: int, threads: int) -> None:  # submitit is an extra
        self.executor, self.capacity, self.threads = executor, count, threads
        self.pending: dict[str, Any] = {}

    def submit(self, key: str, task: Task, place: Place) -> None:
        """Send it to the queue. Raises InputError with what SLURM says where it takes none."""
        try:
            self.pending[key] = self.executor.submit(_in_worker, key, task, place, self.threads)
        except Exception as error:
            if type(error).__name__ != "FailedJobError":  # submitit's, an extra
                raise
            raise InputError(f"launcher=submitit: SLURM takes no such job ({said(error)})") from error

    def next(self) -> Outcome:
        """The next that ends, or was lost: a job over its time or its memory, a node that went down."""
        while (key := next((key for key, job in self.pending.items() if job.done()), None)) is None:
            time.sleep(POLL)
        job = self.pending.pop(key)
        if job.exception() is None:
            outcome: Outcome = job.result()
            return outcome
        return Outcome(key, "", f"its job {job.job_id} was lost ({job.state}; log {job.paths.stderr})", 0.0)

    def interrupt(self) -> None:
        """Take back what waits, and stop what runs at its next checkpoint: SLURM sends SIGTERM first."""
        for job in self.pending.values():
            job.cancel(check=False)


@contextmanager
def _submitit(config: LauncherConfig, count: int, folder: Path) -> Iterator[SubmititPool]:
    try:
        import submitit
    except ImportError as error:
        how = "pip install 'qrun-adapters[slurm]', or use launcher=local"
        raise InputError(f"launcher=submitit: submitit is not installed; {how}") from error
    if config.cluster is Cluster.slurm and not which("sbatch"):
        how = "start it where sbatch is, or use launcher=local"
        raise InputError(f"launcher=submitit: no SLURM on this machine (sbatch is not found); {how}")
    executor = submitit.AutoExecutor(folder=folder, cluster=config.cluster.value)
    executor.update_parameters(
        name="qrun", timeout_min=config.timeout_min, cpus_per_task=config.threads, gpus_per_node=int(config.gpus),
        mem_gb=config.mem_gb, slurm_partition=config.partition,
    )  # fmt: skip
    pool = SubmititPool(executor, count, config.threads)
    try:
        yield pool
    finally:
        pool.interrupt()
