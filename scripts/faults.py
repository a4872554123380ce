"""Faults at random moments, from a seed: kills, full and read-only disks, locked and broken stores, torn files, clocks,
a hub and a processor's service that fail.

    python scripts/faults.py                            200 faults of all kinds
    python scripts/faults.py --faults 20 --only kill full --seed 7 --keep /tmp/found

Each fault strikes one command on a tiny model, in a process forked after the heavy imports. It is survived if the
command ended as it should (no traceback, one line where it refuses), nothing that was finished before is gone, no run
stays RUNNING after the next start, that start goes on (or says what to do, which is then done), and the adapters,
tables, models and pages at the end are those of an undisturbed run, to the byte.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from forked import forked

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

WAIT_S = 600.0
CLOCK = ("seconds", "memory", "run_id", "git_")  # columns that differ from one computation to the next
Change = Callable[[], None]  # of the forked process, before its command


@dataclass
class Bench:
    """What all faults share: model, text, an empty store, what undisturbed commands came to and how long they took."""

    folder: Path
    store: Path
    words: list[str]
    wholes: dict[str, tuple[object, float]] = field(default_factory=dict)

    def undisturbed(self, name: str) -> tuple[object, float]:
        """What comes of a scene, and the seconds it takes; it runs once."""
        if name not in self.wholes:
            scene = SCENES[name]
            if scene.after:
                self.undisturbed(scene.after)
            place = scratch(self, scene).rename(self.folder / name)
            begun = time.monotonic()
            run = start(place, scene.command(self))
            if code := run.end():
                raise SystemExit(f"{name}, undisturbed, ended with {code}: {run.told()}")
            self.wholes[name] = scene.outcome(place), time.monotonic() - begun
        return self.wholes[name]

    def moment(self, rng: random.Random, name: str) -> None:
        """Wait for a random moment of a scene that runs."""
        time.sleep(rng.uniform(0, self.undisturbed(name)[1]))


class Lost(Exception):
    """A fault that was not survived, and how."""


@dataclass
class Running:
    """A forked command."""

    pid: int
    log: Path
    command: list[str]

    def end(self) -> int:
        """Its exit code; negative for a signal."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise Lost(f"hangs: {self.command}")

    def told(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text(errors="replace")

    def refused(self, code: int) -> None:
        """It has to have ended in one line."""
        lines = [line for line in self.told().splitlines() if line.strip()]
        if code not in (1, 2) or len(lines) != 1 or not lines[0].startswith("qrun: "):
            raise Lost(f"ended with {code}, {len(lines)} lines: " + " | ".join(lines[-60:]))


def start(folder: Path, command: list[str], change: Change = lambda: None) -> Running:
    """Fork, and run a command there."""
    log = folder / "log"
    log.write_text("")
    return Running(forked(command, folder, log, change), log, command)


def digests(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """Of the files below a folder."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in found}


def statuses(folder: Path) -> dict[str, str]:
    """Run id -> status."""
    if not (folder / "r" / "mlflow.db").is_file():
        return {}
    with closing(sqlite3.connect(folder / "r" / "mlflow.db", timeout=60)) as db:
        return dict(db.execute("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"))


def table(folder: Path) -> object:
    """A study's table without what the clock, the machine's memory, the store and a commit put into it."""
    from qrun.evaluation.results import read

    rows = read(folder / "r" / "studies" / "s").table
    if (rows["wall_seconds"] < 0).any():
        raise Lost("a cell took less than no time")
    if "ratio" in rows:  # the config of a cell on a compressed model has that model's folder, so its hash differs
        rows.loc[rows["ratio"].notna(), "config_hash"] = ""
    return json.loads(rows[[name for name in rows if not any(word in name for word in CLOCK)]].to_json())


def adapter(folder: Path) -> object:
    """The trained adapter, and what it came to."""
    from qrun.adapters.saving import read

    read(folder / "r" / "runs" / "x" / "adapter")
    with closing(sqlite3.connect(folder / "r" / "mlflow.db", timeout=60)) as db:
        query = "SELECT key, value FROM latest_metrics JOIN runs USING (run_uuid) WHERE status = 'FINISHED' " \
            "AND name = 'x' AND key IN ('gain', 'perplexity', 'best_step') ORDER BY start_time, key"  # fmt: skip
        return digests(folder / "r" / "runs" / "x" / "adapter", "*.safetensors"), dict(db.execute(query))


def counts(folder: Path) -> object:
    """The pieces that a processor counted, each in one job, whose counts are there; `qpu fetch` reads the job book."""
    from qrun.quantum.jobs import JobBook

    run = start(folder, ["qpu", "fetch", "--results", "r"])
    if code := run.end():
        raise Lost(f"qpu fetch ended with {code}: {run.told()[-300:]}")
    book = JobBook(folder / "r" / "qpu")
    done = [job.tag for job in book.jobs() if job.state == "done"]
    pieces = [key for tag in done for key in book.counts(tag) or [f"no counts of {tag}"]]
    if len(set(pieces)) != len(pieces):
        raise Lost("a piece was counted twice")
    return sorted(pieces)


@dataclass(frozen=True)
class Scene:
    """A command, what comes of it, and whether it starts without a store."""

    words: list[str]
    outcome: Callable[[Path], object]
    typed: int | None = None  # how many of the bench's words it takes; None: all
    first: bool = False
    again: tuple[str, ...] = ()  # typed to go on
    after: str = ""  # the scene whose outcome it takes
    often: int = 1  # is it killed

    def command(self, made: Bench) -> list[str]:
        """For the folder that it runs in."""
        return [word.format(bench=made.folder) for word in self.words] + made.words[: self.typed]


TRAIN = ["train", "results=r", "name=x", "training.steps=6", "training.eval_every=2", "training.checkpoint_every=1",
         "training.batch=2", "training.warmup=1", "training.context=64", "training.eval_tokens=600", "training.lr=0.05",
         "adapter.layers=last", "adapter.projections=[v_proj]"]  # fmt: skip
SMALL = ["results=r", "name=s", "study.seeds=[0]", "study.sites=[one]", "study.trials=1", "training.steps=2",
         "training.context=64", "training.batch=2", "training.warmup=1", "training.eval_tokens=600"]  # fmt: skip
ALONE = ["data@home=null", "protocol@second=null"]
QUESTIONS = ["eval", "questions", "results=r", "name=s", "questions=continuation", "questions.limit=2",
             "questions.characters=40", "questions.context=60", "trials=1", "temperatures=[1.0]",
             "adapter.path={bench}/train/r/runs/x/adapter"]  # fmt: skip
SWEEP = ["sweep", "dim", *SMALL, *ALONE, "study.dims=[2,4]", "study.controls=[]"]
STUDIES = {  # the studies at their smallest
    "controls": ["sweep", "controls", *SMALL, *ALONE, "study.dims=[4]", "study.controls=[lora]"],
    "noise": ["sweep", "noise", *SMALL, "study.dims=[4]", "study.axes=[gates]", "study.rates=[1e-3]",
              "study.readout_rates=[1e-3]", "study.shots=[64]"],
    "wall": ["sweep", "wall", *SMALL, "study.dims=[4]", "study.ways=[qiskit/sqrt/input]", "study.noises=[heron_r2]",
             "study.rates=[]", "study.beside=[]", "study.nulls=[zero]", "study.controls=[]", "device.shots=64"],
    "circuits": ["sweep", "circuits", *SMALL, *ALONE, "study.dims=[4]", "study.czs=[2]", "study.cuts=[2]",
                 "study.others=[]", "study.wide=[]", "study.wide_czs=[]", "study.noises=[]"],
    "recover": ["recover", *SMALL, "study.ratios=[0.6]", "study.dims=[4]", "study.controls=[lora]",
                "compression.calibration=512"],
}  # fmt: skip
QPU = ["eval", "perplexity", "results=r", "name=q", "adapter.path={bench}/train/r/runs/x/adapter", "device=fake",
       "device.shots=64", "protocol.ctx=4", "evaluation.max_tokens=4", "evaluation.resamples=99"]  # fmt: skip
SCENES = {
    "train": Scene(TRAIN, adapter, again=("--resume",), often=6),
    "first": Scene(TRAIN, adapter, first=True, again=("--resume",), often=3),
    "sweep": Scene([*SWEEP, "launcher.workers=1"], table, often=5),
    "sweep of 2": Scene([*SWEEP, "launcher.workers=2"], table),
    "compress": Scene(["compress", "--out", "out", "compression.ratio=0.6"], lambda f: digests(f / "out"), 5, often=3),
    "export": Scene(["export", "{bench}/train/r/runs/x/adapter", "--to", "merged", "--out", "out"],
                    lambda f: digests(f / "out"), after="train", often=3),
    "report": Scene(["report", "--results", "{bench}/sweep/r", "--out", "out"], lambda f: digests(f / "out"), 0,
                    after="sweep", often=4),
    "qpu": Scene(QPU, counts, 5, after="train", often=4),
    "questions": Scene([*QUESTIONS, "launcher.workers=1"], table, 3, after="train", often=2),
    "questions of 2": Scene([*QUESTIONS, "launcher.workers=2"], table, 3, after="train"),
    **{name: Scene([*words, "launcher.workers=1"], table, often=2) for name, words in STUDIES.items()},
    **{f"{name} of 2": Scene([*words, "launcher.workers=2"], table) for name, words in STUDIES.items()},
}  # fmt: skip
HEAVY = ("qrun.cells.study", "qrun.recipes.cell_runs", "qrun.recipes.export", "qrun.recipes.perplexity",
         "qrun.recipes.train", "qrun.recipes.compress", "qrun.report.report", "qrun.cells.pool", "mlflow",
         "mlflow.store.tracking.sqlalchemy_store", "transformers.models.llama.modeling_llama",
         "torch._dynamo")  # fmt: skip
RECORDED = ("train", "sweep")  # one process, leaves a store


def scratch(made: Bench, scene: Scene) -> Path:
    """A fresh folder for a scene, with an empty store where it is not to make its own."""
    folder = Path(tempfile.mkdtemp(prefix="fault-", dir=made.folder))
    if not scene.first:
        (folder / "r").mkdir()
        shutil.copy(made.store, folder / "r" / "mlflow.db")
    return folder


def go_on(made: Bench, name: str, folder: Path, kept: dict[str, str]) -> None:
    """The next start: it ends well, keeps what was finished, leaves nothing RUNNING, and comes to the same."""
    scene = SCENES[name]
    if name in ("compress", "export") and (folder / "out").exists():
        pass  # whole, or not there: compared below
    else:
        run = start(folder, [*scene.command(made), *scene.again])
        if code := run.end():
            raise Lost(f"the next start ended with {code}: {run.told()[-300:]}")
    found = statuses(folder)
    for run_id, status in kept.items():
        if status == "FINISHED" and found.get(run_id) != "FINISHED":
            raise Lost(f"finished run {run_id} is {found.get(run_id)}")
    if "RUNNING" in found.values():
        raise Lost("a run stays RUNNING")
    compare(name, scene.outcome(folder), made.undisturbed(name)[0])


def compare(name: str, here: object, undisturbed: object) -> None:
    """The outcome of a scene has to be the undisturbed one."""
    if here != undisturbed:
        parts = [x.items() if isinstance(x, dict) else [("", x)] for x in (here, undisturbed)]
        ours, theirs = (dict(part) for part in parts)
        other = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        seen = [f"{key}: {str(ours.get(key))[:300]} for {str(theirs.get(key))[:300]}" for key in sorted(other)[:3]]
        raise Lost(f"{name}: came to something else than undisturbed in {len(other)} parts; {'; '.join(seen)}")


def half(folder: Path) -> None:
    """No half adapter lies where a whole one is expected."""
    from qrun.adapters.saving import read
    from qrun.errors import InputError

    for found in (folder / "r" / "runs").glob("*/adapter"):
        try:
            read(found)
        except InputError as error:
            raise Lost(f"half an adapter: {error}") from error


def kill(rng: random.Random, made: Bench, signum: int, name: str | None = None) -> str:
    """A signal at a random moment."""
    name = name or rng.choices(list(SCENES), [scene.often for scene in SCENES.values()])[0]
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    run = start(folder, SCENES[name].command(made))
    made.moment(rng, name)
    with suppress(ProcessLookupError):
        os.kill(run.pid, signum)
    code, kept = run.end(), statuses(folder)
    if code not in (0, -signum, 128 + signum) or "Traceback" in run.told():
        raise Lost(f"{name}: ended with {code}: {run.told()[-300:]}")
    if code >= 0 and "RUNNING" in kept.values():
        raise Lost(f"{name}: a run stays RUNNING after signal {signum}")
    half(folder)
    go_on(made, name, folder, kept)
    return name


def full(rng: random.Random, made: Bench) -> str:
    """A disk with little room: a small file system for root, else files that may not grow further."""
    name = rng.choice(RECORDED)
    made.undisturbed(name)
    folder, room = scratch(made, SCENES[name]), int(rng.uniform(0, 1.5e6))
    with small_disk(folder / "r", made.store) as ballast:
        if ballast is None:
            limit = made.store.stat().st_size + room // 4

            def change() -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        else:
            free = shutil.disk_usage(folder / "r").free
            ballast.write_bytes(bytes(max(0, free - room)))

            def change() -> None: ...

        run = start(folder, SCENES[name].command(made), change)
        if code := run.end():
            run.refused(code)
        if ballast is not None:
            ballast.unlink(missing_ok=True)
        half(folder)
        go_on(made, name, folder, statuses(folder))
    return name


@contextmanager
def small_disk(place: Path, store: Path) -> Iterator[Path | None]:
    """16 MiB mounted at `place`, with a store; the name of a file that takes room. None where nothing can be
    mounted."""
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode
    try:
        if mounted:
            shutil.copy(store, place / "mlflow.db")
        yield place / "ballast" if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def read_only(rng: random.Random, made: Bench) -> str:
    """A results folder that cannot be written, from the start or from some moment on."""
    name = rng.choice(RECORDED)
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    with small_disk(folder / "r", made.store) as ballast:
        if ballast is None:
            return "skipped: nothing can be mounted here"
        remount = ["mount", "-o", "remount,{}", str(folder / "r")]

        def turn(way: str) -> bool:
            return not subprocess.run([w.format(way) for w in remount], capture_output=True, check=False).returncode

        begun = rng.random() < 0.5  # a mount with an open file cannot be turned: then the command goes through
        if not begun:
            turn("ro")
        run = start(folder, SCENES[name].command(made))
        if begun:
            made.moment(rng, name)
            turn("ro")
        code = run.end()
        turn("rw")
        if code or not begun:
            run.refused(code)
        half(folder)
        go_on(made, name, folder, statuses(folder))
    return name


def locked(rng: random.Random, made: Bench) -> str:
    """Another process holds the store, for a moment or for longer than anyone waits."""
    from qrun.tracking import database

    name, wait = rng.choice(RECORDED), 2
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    run = start(folder, SCENES[name].command(made), lambda: setattr(database, "WAIT", wait))
    made.moment(rng, name)
    with closing(sqlite3.connect(folder / "r" / "mlflow.db", timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(rng.choice([0.5 * wait, 3 * wait]))
        other.execute("ROLLBACK")
    if code := run.end():
        run.refused(code)
    go_on(made, name, folder, statuses(folder))
    return name


def broken(rng: random.Random, made: Bench) -> str:
    """The store of a finished study is damaged: the next start runs or refuses, and a repair brings the cells back."""
    made.undisturbed("sweep")
    folder = scratch(made, SCENES["sweep"])
    shutil.rmtree(folder / "r")
    shutil.copytree(made.folder / "sweep" / "r", folder / "r")
    file, kept = folder / "r" / "mlflow.db", statuses(folder)
    how, size = rng.choice(["cut", "zeros", "noise", "text", "folder", "link", "gone"]), file.stat().st_size
    if how == "cut":
        os.truncate(file, rng.randrange(1, size))
    elif how in ("zeros", "noise"):
        data, at, count = bytearray(file.read_bytes()), rng.randrange(size), rng.randrange(1, size // 2)
        data[at : at + count] = rng.randbytes(count) if how == "noise" else bytes(count)
        file.write_bytes(data[:size])
    elif how == "text":
        file.write_text("not a database " * 99)
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "link":
            file.symlink_to(folder / "nowhere")
    if how != "gone":
        run = start(folder, SCENES["sweep"].command(made))
        if code := run.end():
            run.refused(code)
    if how in ("folder", "link"):
        file.rmdir() if how == "folder" else file.unlink()
    run = start(folder, ["doctor", "--results", "r", "--repair"])
    if code := run.end():
        raise Lost(f"{how}: --repair ended with {code}: {run.told()[-300:]}")
    cells = {run_id: status for run_id, status in kept.items() if status == "FINISHED"}
    go_on(made, "sweep", folder, cells)
    return how


def torn(rng: random.Random, made: Bench) -> str:
    """A checkpoint, an adapter or a file of kept hidden states that ends early."""
    what = rng.choice(["checkpoint", "adapter", "kept states"])
    made.undisturbed("train")
    folder = scratch(made, SCENES["train"])
    command = SCENES["train"].command(made)
    if what == "checkpoint":
        file = folder / "r" / "runs" / "x" / "checkpoint.safetensors"
        run = start(folder, command)
        while not file.exists() and os.waitpid(run.pid, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        os.kill(run.pid, signal.SIGKILL)
        run.end()
        os.truncate(file, rng.randrange(file.stat().st_size))
        run = start(folder, [*command, "--resume"])
        run.refused(run.end())
        if "checkpoint.safetensors" not in run.told():
            raise Lost(f"the file is not named: {run.told()}")
        file.unlink()
    elif what == "adapter":
        shutil.copytree(made.folder / "train" / "r", folder / "r", dirs_exist_ok=True)
        file = rng.choice([p for p in (folder / "r" / "runs" / "x" / "adapter").iterdir() if p.name != "README.md"])
        os.truncate(file, rng.randrange(file.stat().st_size))
        words = ["eval", "perplexity", "adapter.path=r/runs/x/adapter", "results=r", *made.words]
        run = start(folder, words)
        if file.name != "adapter_config.json":  # which PEFT reads, and this program does not
            run.refused(run.end())
        else:
            run.end()
        shutil.rmtree(folder / "r" / "runs" / "x")
    else:
        for file in (Path(os.environ["XDG_CACHE_HOME"]) / "qrun" / "trunks").iterdir():
            size = file.stat().st_size
            os.truncate(file, rng.randrange(size + 1))
            with file.open("r+b") as opened:
                opened.seek(rng.randrange(size + 1))
                opened.write(rng.randbytes(64))
    go_on(made, "train", folder, statuses(folder))
    return what


def clock(rng: random.Random, made: Bench) -> str:
    """The clock jumps by up to ten days, either way, while a command runs."""
    name = rng.choice(RECORDED)
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    calls, jump, real = rng.randrange(400), rng.uniform(-10, 10) * 86400, time.time

    def change() -> None:
        count = iter(range(10**9))
        time.time = lambda: real() + (jump if next(count) > calls else 0)

    run = start(folder, SCENES[name].command(made), change)
    if code := run.end():
        raise Lost(f"ended with {code}: {run.told()[-300:]}")
    compare(name, SCENES[name].outcome(folder), made.undisturbed(name)[0])
    go_on(made, name, folder, statuses(folder))
    return name


def twins(rng: random.Random, made: Bench) -> str:
    """The same command twice at once, in a new store."""
    name = rng.choice(["first", "sweep"])
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    (folder / "two").mkdir()
    (folder / "two" / "r").symlink_to(folder / "r")
    (folder / "r").mkdir(exist_ok=True)
    runs = [start(folder, SCENES[name].command(made))]
    time.sleep(rng.uniform(0, 0.3))
    runs.append(start(folder / "two", SCENES[name].command(made)))
    codes = [run.end() for run in runs]
    if 0 not in codes:
        raise Lost(f"both ended, {codes}: {[run.told()[-200:] for run in runs]}")
    for run, code in zip(runs, codes, strict=True):
        if code:
            run.refused(code)
    go_on(made, name, folder, statuses(folder))
    return name


def hub(rng: random.Random, made: Bench) -> str:
    """The hub is asked for a model, and refuses the line, is silent, or answers nonsense."""
    how, folder = rng.choice(["refuses", "is silent", "fails", "talks"]), scratch(made, SCENES["train"])
    said = {"fails": (500, b"down"), "talks": (200, b"<html>log in to this network</html>")}.get(how)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert said is not None
            self.send_response(said[0])
            self.send_header("Content-Length", str(len(said[1])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(said[1])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *words: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:  # bound and listening; silent until it serves
        if said is not None:
            Thread(target=server.serve_forever, daemon=True).start()
        if how == "refuses":
            server.socket.close()

        def change() -> None:
            from huggingface_hub import constants

            from qrun.language import hub as ours

            ours.SECONDS = 2.0
            constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, f"http://127.0.0.1:{server.server_port}"
            constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"

        run = start(folder, ["eval", "perplexity", "model=smollm2", "results=r", *made.words[3:]], change)
        code = run.end()
        if said is not None:
            server.shutdown()
    run.refused(code)
    go_on(made, "train", folder, statuses(folder))
    return how


def ibm(rng: random.Random, made: Bench) -> str:
    """IBM's service loses the line, refuses, fails jobs, forgets them or is late; then it works, and what was counted
    is not counted again."""
    made.undisturbed("qpu")
    folder = scratch(made, SCENES["qpu"])
    command = ["device=ibm" if word == "device=fake" else word for word in SCENES["qpu"].command(made)]
    share, seed = rng.choice([0.3, 0.6, 1.0]), rng.getrandbits(32)

    def broken() -> None:
        _stand_in(random.Random(seed), share)

    run = start(folder, command, broken)
    if code := run.end():
        run.refused(code)
    from qrun.quantum.jobs import JobBook

    book = JobBook(folder / "r" / "qpu")
    before = {job.tag for job in book.jobs() if job.state == "done"}
    run = start(folder, command, lambda: _stand_in(random.Random(seed), 0.0))
    if code := run.end():
        raise Lost(f"the next start ended with {code}: {run.told()[-300:]}")
    left = {job.tag: job.state for job in book.jobs() if job.state in ("intent", "sent", "done")}
    if not before <= left.keys() or set(left.values()) != {"done"}:
        raise Lost(f"finished before {before}, now {left}")
    if not counts(folder) or "RUNNING" in statuses(folder).values():
        raise Lost("nothing was counted, or a run stays RUNNING")
    return f"{share:.0%} of the calls fail"


def _stand_in(rng: random.Random, share: float) -> None:
    """In this process IBM's account is a recorded processor, of whose calls a share fails."""
    from qrun.quantum import hardware, services

    class Service(services.FakeService):
        def __init__(self, account: Any, backend: Any, *words: Any) -> None:
            super().__init__(backend)

        def send(self, order: services.Order) -> tuple[str, Any]:
            self.strikes(services.Refused("over quota"), ConnectionError("the line is down"))
            made = super().send(order)
            self.strikes(ConnectionError("the answer is lost"))
            return made

        def find(self, tag: str, age: float) -> str | None:
            self.strikes(ConnectionError("the line is down"))
            return None

        def wait(self, job_id: str, handle: Any | None) -> Any:
            self.strikes(services.JobFailed("failed"), services.UnknownJob("no such job"), TimeoutError("in the queue"))
            return super().wait(job_id, handle)

        def usage(self, job_id: str, handle: Any | None) -> float | None:
            self.strikes(ConnectionError("the line is down"))
            return 1.0

        def strikes(self, *errors: Exception) -> None:
            if rng.random() < share:
                raise rng.choice(errors)

    hardware.ibm_account = lambda: None
    hardware.ibm_backend = lambda account, name: services.fake_backend("FakeMarrakesh")
    hardware.IbmService = Service  # type: ignore[misc,assignment]


KINDS: dict[str, tuple[Callable[[random.Random, Bench], str], int]] = {  # and how often
    "kill -9": (lambda rng, made: kill(rng, made, signal.SIGKILL), 30),
    "SIGTERM": (lambda rng, made: kill(rng, made, signal.SIGTERM), 15),
    "SIGINT": (lambda rng, made: kill(rng, made, signal.SIGINT), 15),
    "full": (full, 10), "read-only": (read_only, 5), "locked": (locked, 5), "broken": (broken, 12), "torn": (torn, 8),
    "clock": (clock, 3), "twins": (twins, 4), "hub": (hub, 4), "ibm": (ibm, 6),
}  # fmt: skip


def bench(folder: Path) -> Bench:
    """Make the model, the text and an empty store."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from qrun.config.schema import ModelConfig
    from qrun.language.models import load
    from qrun.tracking import database

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    tokenizer = load(ModelConfig(name="nano", embedded=True)).tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**shape, **more, **ids)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ("the", "model", "reads", "a", "block", "of", "text", "and", "rotates", "each", "slice", "before", "it")
    stories = [" ".join(random.Random(i).choices(words, k=40)) + f" {i}." for i in range(300)]
    (folder / "text.json").write_text(json.dumps(stories))
    made = Bench(folder, folder / "empty.db", [
        "model=local", f"model.path={folder}/model", "model.name=tiny", "data=text", f"data.path={folder}/text.json",
        "protocol.ctx=64", "evaluation.max_tokens=600", "evaluation.resamples=99",
    ])  # fmt: skip
    child = os.fork()  # MLflow keeps connections, which no fork may share
    if not child:
        database.make(folder / "store" / "mlflow.db", (folder / "store" / "artifacts").as_uri())
        os._exit(0)
    os.waitpid(child, 0)
    shutil.copy(folder / "store" / "mlflow.db", made.store)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=list(KINDS))
    parser.add_argument("--number", type=int, help="that fault of the seed alone")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no fault after so many")
    parser.add_argument("--keep", type=Path, help="folder for what the faults leave")
    asked = parser.parse_args()
    import torch

    from qrun.tracking.store import Store

    Store(".")  # before MLflow is imported, which is then as quiet as in a command
    for name in HEAVY:
        import_module(name)
    torch.set_num_threads(1)
    tried: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        made = bench(folder)
        chosen = asked.only or list(KINDS)
        begun = time.monotonic()
        for number in range(asked.faults) if asked.number is None else [asked.number]:
            if time.monotonic() - begun > 60 * asked.minutes:
                break
            rng = random.Random(f"{asked.seed}/{number}")
            kind = rng.choices(chosen, [KINDS[name][1] for name in chosen])[0]
            try:
                where = KINDS[kind][0](rng, made)
                skipped[kind] += where.startswith("skipped")
            except Lost as error:
                lost[kind] += 1
                print(f"lost, {kind}, fault {number} of seed {asked.seed}: {error}", flush=True)
            tried[kind] += 1
            if not asked.keep:
                for left in folder.glob("fault-*"):
                    shutil.rmtree(left, ignore_errors=True)
    for kind, count in tried.items():
        survived = count - lost[kind] - skipped[kind]
        print(f"{kind:10} tried {count:4}  survived {survived:4}  lost {lost[kind]:4}  skipped {skipped[kind]}")
    print(f"{tried.total()} faults of seed {asked.seed}: {lost.total()} lost, {skipped.total()} skipped")
    return int(lost.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
