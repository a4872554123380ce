"""Who computes the cells of a study: this process, a few processes beside it, or a Ray cluster. The results are the
same.

A cell's work is a small picklable description; the process that runs it opens models and text itself and keeps them for
its next cell. Every process computes with `launcher.threads` threads of torch, because sums in another order differ in
their last bits.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qrun.config.schema import LauncherConfig, LauncherKind
from qrun.errors import InputError, Interrupted, RunFailed
from qrun.report.screen import console, silenced


class Work(Protocol):
    """What a cell computes; leaves a FINISHED run with the given tags."""

    def run(self, shelf: Any, tags: dict[str, str]) -> None:
        """`shelf` (record.Shelf) opens models and texts."""
        ...


@dataclass(frozen=True)
class Cell:
    """One point of a study."""

    label: str
    key: str
    work: Work
    leaves: Path | None = None  # a file without which a finished cell counts as missing


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: error is None, or one line."""

    cell: Cell
    error: str | None
    seconds: float


def launch(
    cells: list[Cell], tags: dict[str, str], config: LauncherConfig, device: str, shelf: Any
) -> Iterator[Outcome]:
    """Outcomes as they come. Interrupted stops the other processes at their next checkpoint first."""
    count = min(workers(config, device), max(len(cells), 1))
    if config.kind is LauncherKind.ray:
        yield from _ray(cells, tags, config, count)
    elif count == 1:
        _threads(config.threads)
        for cell in cells:
            with silenced():
                error, seconds = attempt(cell, tags, shelf)
            yield Outcome(cell, error, seconds)
    else:
        yield from _processes(cells, tags, config, count)


def workers(config: LauncherConfig, device: str) -> int:
    """Processes: as asked, one where the model is on an accelerator, else the cores shared out."""
    if config.workers is not None:
        return config.workers
    return (
        1
        if device not in ("cpu", "auto") or (device == "auto" and _accelerator())
        else max(1, len(os.sched_getaffinity(0)) // config.threads)
    )


def attempt(cell: Cell, tags: dict[str, str], shelf: Any) -> tuple[str | None, float]:
    """Run one cell. A failure of any kind is a line for the table; only an interruption goes on upwards."""
    started = time.monotonic()
    try:
        cell.work.run(shelf, {**tags, "cell_key": cell.key, "cell": cell.label})
        error = None
    except Interrupted:
        raise
    except (RunFailed, InputError) as failure:
        error = str(failure)
    except Exception as failure:  # a bug in one cell must not cost the others
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
    return error, time.monotonic() - started


_shelf: Any = None  # of a worker process: what its cells have opened so far


def _in_worker(cell: Cell, tags: dict[str, str], threads: int) -> tuple[str | None, float]:
    global _shelf
    from qrun.recipes.record import Shelf

    console.quiet = True
    _threads(threads)
    _shelf = _shelf or Shelf()
    try:
        return attempt(cell, tags, _shelf)
    except Interrupted:
        return "interrupted", 0.0


def _threads(count: int) -> None:
    import numba
    import torch

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, os.cpu_count() or 1))


def _accelerator() -> bool:
    import torch

    return torch.cuda.is_available()


def _start(parent: int) -> None:
    """A worker ends with its parent, also when that is killed, and leaves signals to the run inside it."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _processes(cells: list[Cell], tags: dict[str, str], config: LauncherConfig, count: int) -> Iterator[Outcome]:
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (os.getpid(),))
    pending: dict[Future[tuple[str | None, float]], Cell] = {
        pool.submit(_in_worker, cell, tags, config.threads): cell for cell in cells
    }
    try:
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                cell = pending.pop(future)
                failure = future.exception()
                error, seconds = (f"its process ended ({failure})", 0.0) if failure else future.result()
                yield Outcome(cell, error, seconds)
    except (Interrupted, KeyboardInterrupt) as stop:
        for process in list((pool._processes or {}).values()):
            os.kill(process.pid or 0, getattr(stop, "signum", signal.SIGINT))
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ray(cells: list[Cell], tags: dict[str, str], config: LauncherConfig, count: int) -> Iterator[Outcome]:
    """One task per cell, at most `count` at once.

    The store's folder must be visible to every machine of the cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "launcher=ray: Ray is not installed; pip install 'qrun-adapters[ray]', or use launcher=local"
        ) from error
    try:
        host, colon, port = (config.address or "").removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself would try for many minutes
        ray.init(
            address=config.address, num_cpus=None if config.address else count * config.threads,
            include_dashboard=None if config.address else False,
            log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"launcher.address={config.address}: no Ray cluster answers there ({' '.join(str(error).split())[:160]})"
        ) from error
    task = ray.remote(num_cpus=config.threads, num_gpus=config.gpus, max_retries=0)(_in_worker)
    waiting = list(cells)
    running: dict[Any, Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                cell = waiting.pop(0)
                running[task.remote(cell, tags, config.threads)] = cell
            done, _ = ray.wait(list(running))
            for reference in done:
                cell = running.pop(reference)
                try:
                    yield Outcome(cell, *ray.get(reference))
                except ray.exceptions.RayError as error:
                    yield Outcome(cell, f"its Ray task was lost ({type(error).__name__})", 0.0)
    finally:
        ray.shutdown()
