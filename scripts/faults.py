"""Faults at random moments, from a seed: kills, full and read-only disks, locked and broken stores, torn files, clocks.

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
from importlib import import_module
from pathlib import Path

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
            raise Lost(f"ended with {code}, {len(lines)} lines, last: {lines[-1:]}")


def start(folder: Path, command: list[str], change: Change = lambda: None) -> Running:
    """Fork, and run a command there."""
    log = folder / "log"
    log.write_text("")
    sys.stdout.flush()
    child = os.fork()
    if child:
        return Running(child, log, command)
    code = 97
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(folder / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_TRUNC), 2)
        sys.argv = ["qrun", *command]
        change()
        from qrun.cli.main import main

        code = 0
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:  # before or behind the command
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


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
    return json.loads(rows[[name for name in rows if not any(word in name for word in CLOCK)]].to_json())


def adapter(folder: Path) -> object:
    """The trained adapter, and what it came to."""
    from qrun.adapters.saving import read

    read(folder / "r" / "runs" / "x" / "adapter")
    with closing(sqlite3.connect(folder / "r" / "mlflow.db", timeout=60)) as db:
        query = "SELECT key, value FROM latest_metrics JOIN runs USING (run_uuid) WHERE status = 'FINISHED' " \
            "AND name = 'x' AND key IN ('gain', 'perplexity', 'best_step') ORDER BY start_time, key"  # fmt: skip
        return digests(folder / "r" / "runs" / "x" / "adapter", "*.safetensors"), dict(db.execute(query))


@dataclass(frozen=True)
class Scene:
    """A command, what comes of it, and whether it starts without a store."""

    words: list[str]
    outcome: Callable[[Path], object]
    typed: int | None = None  # how many of the bench's words it takes; None: all
    first: bool = False
    again: tuple[str, ...] = ()  # typed to go on
    after: str = ""  # the scene whose outcome it takes

    def command(self, made: Bench) -> list[str]:
        """For the folder that it runs in."""
        return [word.format(bench=made.folder) for word in self.words] + made.words[: self.typed]


TRAIN = ["train", "results=r", "name=x", "training.steps=6", "training.eval_every=2", "training.checkpoint_every=1",
         "training.batch=2", "training.warmup=1", "training.context=64", "training.eval_tokens=600", "training.lr=0.05",
         "adapter.layers=last"]  # fmt: skip
SWEEP = ["sweep", "dim", "results=r", "name=s", "study.dims=[2,4]", "study.seeds=[0]", "study.trials=1",
         "study.sites=[one]", "study.controls=[]", "training.steps=2", "training.context=64", "training.batch=2",
         "training.warmup=1", "training.eval_tokens=600"]  # fmt: skip
SCENES = {
    "train": Scene(TRAIN, adapter, again=("--resume",)),
    "first": Scene(TRAIN, adapter, first=True, again=("--resume",)),
    "sweep": Scene([*SWEEP, "launcher.workers=1"], table),
    "sweep of 2": Scene([*SWEEP, "launcher.workers=2"], table),
    "compress": Scene(["compress", "--out", "out", "compression.ratio=0.6"], lambda f: digests(f / "out"), 5),
    "export": Scene(["export", "{bench}/train/r/runs/x/adapter", "--to", "merged", "--out", "out"],
                    lambda f: digests(f / "out"), after="train"),
    "report": Scene(["report", "--results", "{bench}/sweep/r", "--out", "out"], lambda f: digests(f / "out"), 0,
                    after="sweep"),
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
    if scene.outcome(folder) != made.undisturbed(name)[0]:
        raise Lost("came to something else than undisturbed")


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
    name = name or rng.choices(list(SCENES), [6, 3, 6, 1, 3, 3, 4])[0]
    made.undisturbed(name)
    folder = scratch(made, SCENES[name])
    run = start(folder, SCENES[name].command(made))
    made.moment(rng, name)
    with suppress(ProcessLookupError):
        os.kill(run.pid, signum)
    code, kept = run.end(), statuses(folder)
    # Python drops what is raised inside a weak reference's callback, and says so: then the command goes on to its end
    told = "" if "Exception ignored in" in run.told() and not code else run.told()
    if code not in (0, -signum, 128 + signum) or "Traceback" in told:
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
    if SCENES[name].outcome(folder) != made.undisturbed(name)[0]:
        raise Lost("came to something else than undisturbed")
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


KINDS: dict[str, tuple[Callable[[random.Random, Bench], str], int]] = {  # and how often
    "kill -9": (lambda rng, made: kill(rng, made, signal.SIGKILL), 30),
    "SIGTERM": (lambda rng, made: kill(rng, made, signal.SIGTERM), 15),
    "SIGINT": (lambda rng, made: kill(rng, made, signal.SIGINT), 15),
    "full": (full, 10), "read-only": (read_only, 5), "locked": (locked, 5), "broken": (broken, 12), "torn": (torn, 8),
    "clock": (clock, 3), "twins": (twins, 4),
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
        for number in range(asked.faults):
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
