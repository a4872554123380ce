"""Wrong words, broken files and odd names, made from a seed: each has to run, or to be refused in one line.

    python scripts/fuzz.py                          5,000 inputs of all kinds
    python scripts/fuzz.py --inputs 200 --only adapter model --seed 7 --keep /tmp/found

Each input is a whole command in a process of its own, forked after the heavy imports. Refused means: exit code 2 (1 for
a run that failed), one line on stderr of at most 300 characters that names the key or file. Everything else is counted
as crashed, hung (10 s of CPU, or 300 s waiting), unnamed, too long or of several lines, printed with its command, and
the exit code is 1.
"""

import argparse
import copy
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait do not outlive a fork

import torch
from forked import forked
from safetensors.torch import load_file, save_file

CPU_S, WAIT_S, LONGEST = 10, 300.0, 300
FOUND = ("ran", "refused", "crashed", "hung", "unnamed", "long", "lines")  # what an input may come to
HUNG = -999
TINY = ["training.steps=1", "training.context=32", "training.eval_tokens=64", "adapter.projections=[v_proj]",
        "adapter.layers=last", "evaluation.max_tokens=64", "evaluation.resamples=99"]  # fmt: skip
VALUES = [
    "null", "nan", "inf", "-inf", "-1", "0", "1e400", "1.5", "9223372036854775807", "99999999999999999999", "true",
    "''", "[]", "[1]", "[null]", "[[]]", "{}", "x", "../..", "/", "~", "${seed}", "${nope}", "${oc.env:HOME}", "1,2",
    "'", "[", "range(3)", "\\", "é☃", "=", "#", "@", "%20", "?x=1", "{a: 1}", "a b", "' '", "a" * 5000, "\n",
]  # fmt: skip
LEGAL = [  # somewhere, but not beside every other word
    "exact", "shots", "noisy", "fake", "lora", "hra", "oft", "circuit", "text", "hub", "mmlu", "own", "hf_strided",
    "lm_eval_wikitext", "reference", "two_settings", "soft", "posterior", "merged", "qiskit", "bfloat16", "mpo",
    "0.01", "0.5", "0.9", "2", "3", "16", "128", "[3]", "[128]", "[0.9]", "[nope]", "[lora]", "[exact]", "[v_proj]",
    "first", "none", "paper", "heron_r2", "FakeFez", "smollm2", "llama",
]  # fmt: skip
ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 1.5, 1e308, float("nan"), 2**70, "", "x", "a" * 5000, "\ud800", [], [1], [None], ["x"], {},
    {"a": 1}, [[[]]], "../../x", "/etc/passwd",
]  # fmt: skip
TEXTS = [
    b"", b"\n\n\n", b"\xff\xfe\x00", b"\xef\xbb\xbftext", b"{", b"[" * 10000, b"null", b"5", b'{"text": 5}\n',
    b'{"text": null}\n', b'{"a": "b"}\n', b'"\\ud800"\n', b'{"text": "\\ud800 x"}\n', b"[1, 2, 3]",
    b'{"1": "a", "2": "b"}', b"a,b\n1,2\n", b"\x00" * 64, "x\u2028y\n".encode(), b"PAR1", b"word " * 3,
]  # fmt: skip
VERBS = ["train", "eval perplexity", "eval questions", "sweep dim", "sweep noise", "sweep wall", "recover", "generate",
         "plan", "circuit", "compress"]  # fmt: skip
PARTS = [
    "a b", "é", "a=b", "a#b", "a(1)", "a'b", 'a"b', "a%20b", "a?b", "~a", "a,b", "[a]", "{a}", "a\\b", "$a", "a;b",
    "..", "../x", "a" * 300, "", " ", "/proc/x", "/dev/null",
]  # fmt: skip
ROWS = [
    b"",
    b"a,b",
    b",,,,,",
    b"q,a,b,c,d,E",
    b"q,a,b,c,d,",
    b'"open',
    b"q" * 200_000 + b",a,b,c,d,A",
    b"\xff,a,b,c,d,A",
]
SUFFIXES = ["", ".txt", ".jsonl", ".json", ".csv", ".parquet"]


@dataclass(frozen=True)
class Input:
    """A command and the words of which its line has to name one."""

    kind: str
    words: list[str]
    names: tuple[str, ...]


@dataclass
class Bench:
    """Good files that broken ones are made of, in a folder of its own."""

    folder: Path
    model: Path
    adapter: Path
    text: Path
    questions: Path
    keys: dict[str, list[str]]  # verb -> its groups and keys

    def copied(self, source: Path, rng: random.Random) -> Path:
        target = self.folder / "made" / f"{rng.getrandbits(48):x}"
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return target


def bench(folder: Path) -> Bench:
    """nano, an adapter of one step in it, a text and questions."""
    from qrun import language
    from qrun.config.tree import words_of

    model, text, questions = folder / "model", folder / "text.txt", folder / "questions.csv"
    shutil.copytree(Path(language.__file__).parent / "nano", model)
    text.write_text("\n\n".join(f"Passage {i}. " + "The sum of a and b is returned. " * 12 for i in range(40)))
    rows = [f"What is {i} and 1?,{i},{i + 1},{i + 2},{i + 3},B" for i in range(30)]
    questions.write_text("\n".join(rows) + "\n")
    for good in (["train", *TINY, f"results={folder}/results", "name=good"], ["circuit"]):  # kernels are compiled once
        ended = run(good, folder, 300)
        if ended.code:
            raise SystemExit(f"the good run failed: {ended.text}")
    keys = {verb: words_of(verb.rsplit(" ", 1)[-1]) for verb in VERBS}
    return Bench(folder, model, folder / "results" / "runs" / "good" / "adapter", text, questions, keys)


def words(rng: random.Random, made: Bench) -> Input:
    """Any key or group of a verb with any value: composed, or listed as a study's grid, not run."""
    verb = rng.choice(list(made.keys))
    key, value = rng.choice(made.keys[verb]), rng.choice([*VALUES, *LEGAL])
    before = {"generate": ["text"], "compress": ["--out", str(made.folder / "small")]}.get(verb, [])
    grid = verb.split()[0] in ("sweep", "recover") and rng.random() < 0.5
    after = ["--dry-run", f"results={made.folder}/results"] if grid else ["--cfg", "hash"]
    names = key, key.partition("@")[2] or key
    return Input("words", [*verb.split(), *before, f"{key}={value}", *after], names)


def runs(rng: random.Random, made: Bench) -> Input:
    """Values that compose, in a run of one step; of a small text, since a value may ask for all of it."""
    key = rng.choice([k for k in made.keys["train"] if "." in k and not k.startswith(("training.steps", "model."))])
    text = [] if key.startswith("data.") else ["data=text", f"data.path={made.text}"]
    there = [*text, f"results={made.folder}/results"]
    return Input("runs", ["train", *TINY, *there, f"{key}={rng.choice(VALUES[:20])}"], (key,))


def odd_json(rng: random.Random, values: Any) -> Any:
    """One place of a JSON document changed, removed or added."""
    values = copy.deepcopy(values)
    here = values
    while True:
        inner = [v for v in (here.values() if isinstance(here, dict) else here) if isinstance(v, dict | list) and v]
        if not inner or rng.random() < 0.4:
            break
        here = rng.choice(inner)
    key: Any = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
    if rng.random() < 0.25:
        del here[key]
    else:
        here[key] = rng.choice(ODD)
    return values


def break_json(rng: random.Random, file: Path) -> None:
    """A changed value nine times of ten, else broken bytes."""
    if rng.random() < 0.1:
        return file.write_bytes(rng.choice([*TEXTS, file.read_bytes()[: rng.randrange(200)]])) and None
    return file.write_text(json.dumps(odd_json(rng, json.loads(file.read_text())))) and None


def break_tensors(rng: random.Random, file: Path) -> None:
    """A tensor missing, renamed, of another shape or type, not finite or huge; or broken bytes."""
    if rng.random() < 0.15:
        whole = bytearray(file.read_bytes())
        at = rng.randrange(min(len(whole), 400))
        file.write_bytes(
            rng.choice([b"", bytes(whole[:at]), bytes(whole[:at]) + b"\xff" + bytes(whole[at + 1 :]), b"\xff" * 16])
        )
        return
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name).float()
    types = torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64
    made = [
        value.flatten(), value[:1].contiguous(), torch.cat([value, value]), value[:0], value.unsqueeze(0),
        torch.full_like(value, torch.nan), torch.full_like(value, 1e30), *(value.to(kind) for kind in types), None,
    ]  # fmt: skip
    instead = rng.choice(made)
    if instead is not None:
        tensors[name if rng.random() < 0.9 else "x." + name] = instead
    save_file(tensors, file, metadata={"format": "pt"})


def broken(rng: random.Random, folder: Path) -> None:
    """One file of a folder broken, removed or in another's place."""
    file = rng.choice([f for f in sorted(folder.iterdir()) if f.suffix in (".json", ".safetensors")])
    how = rng.random()
    if how < 0.06:
        file.unlink()
    elif how < 0.09:
        file.unlink()
        rng.choice([file.mkdir, lambda: file.symlink_to("nowhere"), lambda: os.mkfifo(file)])()
    else:
        (break_json if file.suffix == ".json" else break_tensors)(rng, file)


def adapters(rng: random.Random, made: Bench) -> Input:
    """A broken adapter folder, measured or drawn."""
    folder = made.copied(made.adapter, rng)
    broken(rng, folder)
    verb = rng.choice([["eval", "perplexity", *TINY[-2:], f"results={made.folder}/results"], ["circuit"]])
    return Input("adapter", [*verb, f"adapter.path={folder}"], ("adapter", str(folder)))


def models(rng: random.Random, made: Bench) -> Input:
    """A broken model folder, measured."""
    folder = made.copied(made.model, rng)
    broken(rng, folder)
    there = ["model=local", f"model.path={folder}", f"results={made.folder}/results"]
    return Input("model", ["eval", "perplexity", *TINY[-2:], *there], ("model", str(folder)))


def texts(rng: random.Random, made: Bench) -> Input:
    """A file that is hardly a text."""
    file = made.copied(made.text, rng)
    file = file.rename(file.with_suffix(rng.choice(SUFFIXES)))
    special = rng.random()
    if special < 0.08:
        file.unlink()
        rng.choice(
            [
                file.mkdir,
                lambda: file.symlink_to("nowhere"),
                lambda: os.mkfifo(file),
                lambda: file.symlink_to("/dev/zero"),
            ]
        )()
    else:
        file.write_bytes(rng.choice(TEXTS) + (made.text.read_bytes() if special < 0.3 else b""))
    there = ["data=text", f"data.path={file}", f"results={made.folder}/results"]
    return Input("text", ["eval", "perplexity", *TINY[-2:], *there], ("data", str(file)))


def questions(rng: random.Random, made: Bench) -> Input:
    """A file that is hardly a table of questions."""
    file = made.copied(made.questions, rng)
    file = file.rename(file.with_suffix(rng.choice([".csv", ".parquet", ".csv"])))
    lines = made.questions.read_bytes().split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at] = rng.choice([*ROWS, *TEXTS])
    file.write_bytes(b"\n".join(lines) if rng.random() < 0.7 else rng.choice(TEXTS))
    there = ["questions=mmlu", f"questions.path={file}", f"results={made.folder}/results"]
    asked = ["questions.limit=2", "trials=1", "temperatures=[1]"]
    return Input("questions", ["eval", "questions", *there, *asked], ("questions", str(file)))


def names(rng: random.Random, made: Bench) -> Input:
    """Odd names of runs, stores and folders, most of them legal."""
    part = rng.choice(PARTS)
    key = rng.choice(["name", "results", "data.path", "model.path", "adapter.path"])
    value = part if key == "name" or part.startswith(("/", "..")) else f"{made.folder}/made/{part}"
    source = {"data.path": made.text, "model.path": made.model}.get(key)
    if source and "/" not in part.strip(".") and 0 < len(part.strip(" .")) < 99 and rng.random() < 0.5:
        target = Path(value)
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    more = {"data.path": ["data=text"], "model.path": ["model=local"]}.get(key, [])
    verb = ["train", *TINY] if key in ("name", "results") else ["eval", "perplexity", *TINY[-2:]]
    there = [] if key == "results" else [f"results={made.folder}/results"]
    return Input("names", [*verb, *more, *there, f"{key}={value}"], (key, value or key, key.partition(".")[0]))


def presets(rng: random.Random, made: Bench) -> Input:
    """Noise values that are no physics, in any preset."""
    keys = [key for key in made.keys["circuit"] if key.startswith("noise.")]
    chosen = rng.sample(keys, 2)
    given = [f"{key}={rng.choice([*VALUES[:14], '0.01', '1', '1e-300'])}" for key in chosen]
    preset = rng.choice(["none", "paper", "gates", "depolarizing", "heron_r2", "FakeFez", "FakeTorino"])
    return Input("noise", ["circuit", f"noise={preset}", *given], tuple(chosen))


KINDS: dict[str, tuple[Callable[[random.Random, Bench], Input], int]] = {  # and how often
    "words": (words, 60), "runs": (runs, 8), "adapter": (adapters, 8), "model": (models, 8), "text": (texts, 5),
    "questions": (questions, 4), "names": (names, 4), "noise": (presets, 3),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a command came to, in so many seconds of CPU; the code may be HUNG."""

    code: int
    text: str
    seconds: float = 0.0


def run(command: list[str], folder: Path, cpu_s: int = CPU_S) -> Ended:
    """A command in a forked process, killed after `cpu_s` of CPU or WAIT_S."""
    log = folder / "log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + cpu_s, resource.RLIM_INFINITY))

    child = forked(command, folder, log, limit)
    before, until = _children(), time.monotonic() + max(WAIT_S, 2 * cpu_s)
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            code = HUNG if code == -signal.SIGXCPU else code
            return Ended(code, log.read_text(errors="replace"), _children() - before)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Ended(HUNG, log.read_text(errors="replace"))


def _children() -> float:
    """Seconds of CPU of all forked commands that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def verdict(given: Input, ended: Ended) -> str:
    """One of FOUND: refused in one line, or what is poor about it."""
    lines = [line for line in ended.text.splitlines() if line.strip()]
    if ended.code == HUNG:
        return "hung"
    if ended.code == 0:
        return "ran"
    if "Traceback" in ended.text or ended.code not in (1, 2):
        return "crashed"
    if len(lines) != 1:
        return "lines"
    if len(lines[0]) > LONGEST:
        return "long"
    return "refused" if any(name in lines[0] for name in given.names) else "unnamed"


def tried(made: Bench, count: int, seed: int, only: list[str]) -> Iterator[tuple[Input, Ended, str]]:
    """`count` inputs of a seed, each with what it came to."""
    chosen = only or list(KINDS)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choices(chosen, [KINDS[name][1] for name in chosen])[0]
        given = KINDS[kind][0](rng, made)
        ended = run(given.words, made.folder)
        yield given, ended, verdict(given, ended)


def warm() -> None:
    """All that commands import, once, here; a forked command then neither imports nor collects it again."""
    torch.set_num_threads(1)
    import pyarrow.parquet  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import qrun.recipes.circuit
    import qrun.recipes.compress
    import qrun.recipes.export
    import qrun.recipes.generate
    import qrun.recipes.perplexity
    import qrun.recipes.plan
    import qrun.recipes.train  # noqa: F401
    from qrun import studies
    from qrun.config.compose import compose

    for name in studies.STUDIES:
        studies.module(name)
    compose("train", [])
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=list(KINDS))
    parser.add_argument("--show", action="store_true", help="print every input and what was said")
    parser.add_argument("--keep", type=Path, help="folder for the files made")
    asked = parser.parse_args()
    warm()
    counts: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, suppress(KeyboardInterrupt):  # Ctrl-C: the table so far
        folder = (asked.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for given, ended, found in tried(bench(folder), asked.inputs, asked.seed, asked.only):
            counts[given.kind, found] += 1
            seconds[given.kind] += ended.seconds
            if asked.show or found not in ("ran", "refused"):
                shown = " ".join(word[:120] for word in given.words if word not in TINY)
                last = "\n    ".join(line[:400] for line in ended.text.strip().splitlines()[-3:])
                print(f"{found}: qrun {shown!r}\n    {last}", flush=True)
    print(f"{'':10}" + "".join(f"{word:>9}" for word in ("tried", *FOUND)) + "   CPU s each")
    for kind in [*dict.fromkeys(kind for kind, _ in counts), "all"]:
        own = [sum(n for (k, f), n in counts.items() if f == found and kind in (k, "all")) for found in FOUND]
        spent = sum(value for k, value in seconds.items() if kind in (k, "all")) / sum(own)
        print(f"{kind:10}" + "".join(f"{n:9,}" for n in (sum(own), *own)) + f"{spent:13.2f}")
    bad = sum(own[2:])
    print(f"{sum(own)} inputs of seed {asked.seed}: {bad} neither ran nor were refused in one line")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
