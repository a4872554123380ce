"""The command line. Typer owns the verbs, Hydra composes the `key=value` words; nothing heavy is imported before a verb
runs.

Exit codes: 0 done, 1 the run failed, 2 a wrong word, value, file or combination, 130 and 143 interrupted (checkpointed,
resumable).
"""

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qrun import studies
from qrun.errors import InputError, Interrupted, RunFailed, one_line, redacted
from qrun.files import at_home
from qrun.studies import STUDIES, configure
from qrun.training.interrupt import insisting

if TYPE_CHECKING:
    from qrun.cells.study import StudyConfig

app = typer.Typer(
    name="qrun",
    help="Reproduce language models with quantum circuits inside (arXiv:2605.05914): train, measure, record.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
measure = typer.Typer(help="Measure a model, alone and with an adapter.", no_args_is_help=True)
app.add_typer(measure, name="eval")
sweep = typer.Typer(help="Studies: many cells, one parent run, resumable at any point.", no_args_is_help=True)
app.add_typer(sweep, name="sweep")
qpu = typer.Typer(help="Jobs on IBM processors, and their calibrations.", no_args_is_help=True)
app.add_typer(qpu, name="qpu")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"qrun {version('qrun-adapters')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and stop.")
    ] = False,
) -> None: ...


def _at_home(given: str | None) -> str | None:
    """An option's path; a shell leaves the ~ of `--out=~/x` as it is."""
    return given and at_home(given)


class Shown(StrEnum):
    """What --cfg prints instead of running."""

    job = "job"  # the resolved config
    hash = "hash"  # its 8-digit hash


class ExportKind(StrEnum):
    """Formats of `qrun export`."""

    peft = "peft"
    merged = "merged"
    circuit = "circuit"


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """The command's groups and keys before `=`, options of a group after it."""
    from qrun.config.tree import options, use, words_of

    use(ctx.params.get("config_dir"))
    typed = _bash_word() or incomplete
    key, equals, _ = typed.partition("=")
    options_of = [f"{key}={option}" for option in options().get(key.partition("@")[0], {})]
    commands = [str(ctx.info_name), *(["multirun"] if ctx.params.get("multirun") else [])]
    words = options_of if equals else [f"{k}=" for command in commands for k in words_of(command)]
    cut = len(key) + 1 if equals and typed != incomplete else 0  # bash replaces only what follows the `=`
    return sorted({w[cut:] for w in words if w.startswith(typed)})


def complete_group(ctx: typer.Context, incomplete: str) -> list[str]:
    """Config groups."""
    from qrun.config.tree import files

    return [group for group in files() if group.startswith(incomplete)]


def _bash_word() -> str | None:
    """The whole `key=value` under the cursor: bash hands it over in pieces, because `=` is one of its word breaks."""
    if os.environ.get("_QRUN_COMPLETE") != "complete_bash":
        return None
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
    words = words if len(words) > 1 else words[0].split(" ")
    if at < len(words) and words[at] == "=":
        return f"{words[at - 1]}="
    return f"{words[at - 2]}={words[at] if at < len(words) else ''}" if at > 1 and words[at - 1] == "=" else None


OWN = "Folder of own config files, DIR/noise/lab.yaml for noise=lab; also QRUN_CONFIG_DIR, and ./configs."
GRID = "Run a grid, adapter.dim=2,4 seed=range(0,3), as cells of a study; what is finished is not computed again."
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        autocompletion=complete,
        help="Config words: group=option or key=value; see `qrun config`.",
    ),
]
Cfg = Annotated[Shown | None, typer.Option("--cfg", help="Print the resolved config (job) or its hash, and stop.")]
ConfigDir = Annotated[str | None, typer.Option("--config-dir", metavar="DIR", help=OWN)]
DRY = "List the cells with their parameters, and stop; needs no weights."
Draw = Annotated[str | None, typer.Option(callback=_at_home, help="Draw to this file: .png, .svg, .pdf.")]
REPAIR = "Close the runs of killed processes, and make a lost or broken store anew from the records of its runs."
RESUME = "Continue the unfinished run of this very config, if there is one."
Results = Annotated[str, typer.Option(callback=_at_home, help="Folder of the store.")]
Out = Annotated[str, typer.Option(callback=_at_home, help="New folder to write.")]
URI = "MLflow server or database that runs went to; by default MLFLOW_TRACKING_URI, else SQLite below --results."
Tracking = Annotated[str | None, typer.Option("--tracking-uri", help=URI)]


def _no_grid(asked: bool) -> None:
    if asked:
        advice = "studies have lists as axes (study.dims=[2,4]); run other commands once for each"
        raise InputError(f"-m: only `qrun train` and `qrun eval perplexity` run a grid; {advice}")


FILES = (  # faults of the machine or of a file's name and rights, not of this program
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM,
    errno.ELOOP, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip
Grid = Annotated[bool, typer.Option("-m", "--multirun", help=GRID)]
NoGrid = Annotated[bool, typer.Option("-m", "--multirun", hidden=True, callback=_no_grid)]


def _composed(verb: str, words: list[str] | None, cfg: Shown | None, own: str | None, grid: bool = False, make=None):  # type: ignore[no-untyped-def]  # the verb's class
    """The checked config of a verb, a study, a grid or what `make` makes, or None after printing it."""
    from qrun.config.compose import compose, config_hash, to_yaml
    from qrun.config.tree import use

    use(own)
    typed = list(words or [])
    if make is None:
        make = partial(
            studies.module("multirun").configure if grid else configure if verb in STUDIES else compose, verb
        )
    config = make(typed)
    if cfg is None:
        return config
    typer.echo(config_hash(config) if cfg is Shown.hash else to_yaml(config), nl=cfg is Shown.hash)
    return None


def _first_word(verb: str, config: object) -> None:
    """Said before seconds of imports."""
    from qrun.config.compose import config_hash

    typer.echo(f"qrun {verb}: config {config_hash(config)}, loading")
    sys.stdout.flush()


@contextmanager
def _importing() -> Iterator[None]:
    """Imports leave no garbage: looking for it, then and over their million objects later, takes a fifth of them."""
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def _recipe(name: str, *arguments: object) -> None:
    """Call `module.function` of qrun.recipes, which is imported only now."""
    module, function = name.split(".")
    with _importing():
        found = getattr(import_module(f"qrun.recipes.{module}"), function)
    found(*arguments)


def _study(name: str, config: "StudyConfig", dry_run: bool = False) -> None:
    """Compute the cells of a study that are missing, and show its page."""
    with _importing():
        from qrun.cells.study import run_study

    run_study(name, studies.module(name), config, dry_run)


@app.command(epilog="Example: qrun train model=smollm2 adapter.dim=8")
def train(
    words: Words = None, cfg: Cfg = None, resume: Annotated[bool, typer.Option("--resume", help=RESUME)] = False,
    config_dir: ConfigDir = None, multirun: Grid = False,
) -> None:  # fmt: skip
    """Train a Cayley adapter in a frozen model; perplexity before and after, with an interval."""
    if multirun:
        if (config := _composed("train", words, cfg, config_dir, grid=True)) is not None:
            _study("multirun", config)
    elif (config := _composed("train", words, cfg, config_dir)) is not None:
        _recipe("checks.check_sites", config.model, config.adapter)
        _recipe("checks.check_run", config)
        _first_word("train", config)
        _recipe("train.train", config, resume)


@measure.command(
    epilog="Example: qrun eval perplexity adapter.path=results/runs/nano-b4-s0-1a2b3c4d/adapter protocol=hf_strided"
)
def perplexity(words: Words = None, cfg: Cfg = None, config_dir: ConfigDir = None, multirun: Grid = False) -> None:
    """Perplexity and bits per byte under a stated protocol, alone and with a saved adapter."""
    if multirun:
        if (config := _composed("perplexity", words, cfg, config_dir, grid=True)) is not None:
            _study("multirun", config)
    elif (config := _composed("perplexity", words, cfg, config_dir)) is not None:
        _recipe("checks.check_device", config.model, config.device, config.adapter.path)
        _recipe("checks.check_run", config)
        _first_word("eval perplexity", config)
        _recipe("perplexity.measure", config)


@measure.command(name="tasks", epilog=r"Example: qrun eval tasks tasks=\[arc_easy,hellaswag] adapter.path=<folder>")
def tasks_command(words: Words = None, cfg: Cfg = None, config_dir: ConfigDir = None) -> None:
    """Benchmarks of lm-evaluation-harness: the model, with its adapter, on a device; paired differences."""
    if (config := _composed("tasks", words, cfg, config_dir)) is not None:
        _recipe("checks.check_device", config.model, config.device, config.adapter.path)
        _recipe("harness.run_tasks", config)


@measure.command()
def compare(
    first: Annotated[str, typer.Argument(help="Run name or id in the store, or a perplexity.json file.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
    results: Results = "results",
    tracking_uri: Tracking = None,
) -> None:
    """Paired difference of two recorded perplexities; refused if their protocols differ."""
    _recipe("perplexity.compare", first, second, results, tracking_uri)


def _study_command(name: str) -> None:
    """`qrun sweep NAME`, or the study's own verb."""
    before, says, example = STUDIES[name]
    group = {"sweep": sweep, "eval": measure}.get(before, app)

    @group.command(name=name, help=says, epilog=f"Example: {example}")
    def command(
        words: Words = None, cfg: Cfg = None, dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY)] = False,
        config_dir: ConfigDir = None, multirun: NoGrid = False,
    ) -> None:  # fmt: skip
        if (config := _composed(name, words, cfg, config_dir)) is not None:
            _study(name, config, dry_run)


for _name in STUDIES:
    _study_command(_name)


@app.command(epilog="Example: qrun compress compression=mpo compression.ratio=0.6 --out small")
def compress(
    out: Out, words: Words = None, cfg: Cfg = None,
    config_dir: ConfigDir = None, multirun: NoGrid = False,
) -> None:  # fmt: skip
    """Write a model whose projections are truncated SVDs or matrix-product operators."""
    if (config := _composed("compress", words, cfg, config_dir)) is not None:
        _recipe("checks.check_model", config.model)
        _recipe("checks.check_out", out)
        _recipe("compress.compress", config, out)


@app.command(epilog="Example: qrun rerun nano-b4-s0-1a2b3c4d")
def rerun(
    run: Annotated[str, typer.Argument(help="Name or id of a finished run, cell or study in the store.")],
    results: Results = "results",
    tracking_uri: Tracking = None,
) -> None:
    """Repeat a run from its record, in a temporary store, and compare bit for bit; else what differs, and why."""
    _recipe("rerun.rerun", run, results, tracking_uri, studies)


@app.command(epilog="Example: qrun reproduce reproduce=smollm2 model.path=/models/SmolLM2-135M --dry-run")
def reproduce(
    words: Words = None, cfg: Cfg = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time, memory, disk and QPU, and stop.")] = False,
    config_dir: ConfigDir = None, multirun: NoGrid = False,
) -> None:  # fmt: skip
    """The whole paper at a chosen size: its studies in order, published numbers beside ours, one report."""
    from qrun.cli.reproduce import configure as make
    from qrun.cli.reproduce import reproduce as run

    if (config := _composed("reproduce", words, cfg, config_dir, make=make)) is not None:
        run(config, dry_run)


@app.command()
def report(
    results: Results = "results",
    out: Annotated[
        str | None, typer.Option(callback=_at_home, help="Folder to write; in the project's own checkout results/.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", callback=_at_home, help="Grade again what a report wrote, not the store.")
    ] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Tables, figures, the claims table and the log of negative results, from finished studies."""
    from qrun.report.report import report as run

    run(results, out, source, studies, tracking_uri)


@app.command(epilog="Example: qrun plan model=llama --draw chip.png")
def plan(
    words: Words = None, cfg: Cfg = None, draw: Draw = None, config_dir: ConfigDir = None, multirun: NoGrid = False
) -> None:
    """What a run would cost on a QPU: packing, circuits, shots, jobs, seconds, errors. Sends nothing."""
    if (config := _composed("plan", words, cfg, config_dir)) is not None:
        _recipe("plan.plan", config, draw)


@app.command(epilog='Example: qrun generate "Return the sum of" adapter.path=<folder> device=noisy noise=heron_r2')
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")], words: Words = None, cfg: Cfg = None,
    config_dir: ConfigDir = None, multirun: NoGrid = False,
) -> None:  # fmt: skip
    """Continue a text with the adapter on any device; prints tokens as they come."""
    if (config := _composed("generate", words, cfg, config_dir)) is not None:
        _recipe("checks.check_device", config.model, config.device, config.adapter.path)
        _recipe("checks.check_lengths", config)
        _recipe("generate.generate", config, prompt)


@app.command(epilog="Example: qrun circuit dim=8 noise=heron_r2 --draw circuit.png")
def circuit(
    words: Words = None,
    cfg: Cfg = None,
    qasm: Annotated[str | None, typer.Option(callback=_at_home, help="Write OpenQASM 3 to this file.")] = None,
    draw: Draw = None,
    config_dir: ConfigDir = None,
    multirun: NoGrid = False,
) -> None:
    """Draw one block circuit with its gate counts, depth and estimated fidelity."""
    if (config := _composed("circuit", words, cfg, config_dir)) is not None:
        _recipe("checks.check_adapter", config.adapter.path)
        _recipe("circuit.circuit", config, qasm, draw)


@qpu.command()
def fetch(results: Results = "results") -> None:
    """Status of the jobs that runs have sent. The counts of finished ones are stored, so that the run's command goes on
    from there."""
    from qrun.cli.qpu import fetch as run

    run(results)


@qpu.command()
def noise(
    backend: Annotated[
        str, typer.Argument(help="FakeTorino, FakeMarrakesh, FakeFez, or a backend of your IBM account.")
    ],
    out: Annotated[
        str,
        typer.Option(
            callback=_at_home,
            help="configs/noise/NAME.yaml makes noise=NAME, medians and date, in this folder; DIR/noise/NAME.yaml with "
            "--config-dir DIR; a .json file has every qubit, for noise.calibration=FILE.",
        ),
    ],
) -> None:
    """Write a noise preset or a whole calibration from a backend: what to write, and how runs take it, says --out."""
    from qrun.cli.qpu import refresh as run

    run(backend, out)


@app.command()
def export(
    adapter: Annotated[str, typer.Argument(help="Adapter folder written by `qrun train`.")],
    to: Annotated[
        ExportKind,
        typer.Option(
            help="peft: OFT adapter for PEFT; merged: the whole model with the adapter folded in; circuit: an adapter "
            "whose blocks are the nearest circuits of --czs CZ."
        ),
    ],
    out: Out,
    czs: Annotated[int, typer.Option(help="CZ of a block, for --to circuit.")] = 6,
    words: Words = None,
    config_dir: ConfigDir = None,
) -> None:
    """Write a saved adapter as a PEFT OFT adapter, merged into its model (model=... says which), or as circuits."""
    config = _composed("perplexity", [*(words or []), f"adapter.path={adapter}"], None, config_dir)
    _recipe("checks.check_model", config.model)
    _recipe("checks.check_out", out)
    _recipe("export.export", config, to.value, out, czs)


@app.command(epilog="Example: qrun push results/runs/<run>/adapter owner/name --license apache-2.0")
def push(
    adapter: Annotated[
        str, typer.Argument(callback=_at_home, help="Adapter folder written by `qrun train`, or a run's name.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub; made if it is missing.")],
    results: Results = "results",
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    licence: Annotated[str | None, typer.Option("--license", help="The adapter's licence, for the card.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the card into the folder, and stop.")] = False,
) -> None:
    """Upload an adapter to the Hugging Face hub with a card of its results (HF_TOKEN in the environment)."""
    _recipe("push.push", adapter, repo, results, private, licence, dry_run)


@app.command(epilog="Example: qrun doctor model=llama adapter=paper training=llama")
def doctor(
    words: Words = None, results: Results = "results", tracking_uri: Tracking = None, config_dir: ConfigDir = None,
    repair: Annotated[bool, typer.Option("--repair", help=REPAIR)] = False,
) -> None:  # fmt: skip
    """What works here, and what is missing for the rest. With a training's words: its files, memory, disk and time,
    before anything loads."""
    if repair:
        from qrun.tracking.repair import repair as mend

        for line in mend(results, tracking_uri):
            typer.echo(line)
        return
    from qrun.cli.doctor import doctor as run
    from qrun.config.tree import use

    use(config_dir)
    run(results, tracking_uri, words)


@app.command(name="config")
def config_command(
    group: Annotated[
        str | None, typer.Argument(help="Show the files of one group.", autocompletion=complete_group)
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List config groups and their options; every option is a commented YAML file, and own ones stand beside them."""
    from qrun.cli.configs import show
    from qrun.config.tree import use

    use(config_dir)
    show(group)


@app.command()
def ui(
    results: Results = "results",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    tracking_uri: Tracking = None,
) -> None:
    """Start the MLflow UI on the store and print the links to runs and saved views; of a server only the links."""
    from qrun.tracking.ui import serve

    serve(results, tracking_uri, port)


def main() -> None:
    """Entry point of the `qrun` command: known failures end in one line, bugs keep their traceback.

    Neither these nor what libraries log tell a secret.
    """
    atexit.register(gc.freeze)  # or the interpreter looks through every object before it ends, for two seconds
    make = logging.getLogRecordFactory()
    logging.setLogRecordFactory(partial(_record, make))
    # read when torch is imported, here and in workers: threads that wait would spin, against whoever shares the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # a closed terminal
    try:
        with insisting():
            app()
    except (InputError, RunFailed) as error:
        print(f"qrun: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"qrun: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FILES:
            wrong = one_line(f"qrun: {error.filename or 'a file'}: could not be read or written ({error.strerror})")
        else:
            how = "qrun: this is a bug of qrun: please report these lines, with the command, where you got qrun from"
            wrong = "".join(traceback.format_exception(error)) + how
        print(redacted(wrong), file=sys.stderr)
        sys.exit(1)
    finally:
        logging.setLogRecordFactory(make)


def _record(make: Callable[..., logging.LogRecord], *arguments: Any, **more: Any) -> logging.LogRecord:
    """A record of the log without secrets."""
    record = make(*arguments, **more)
    with suppress(TypeError, ValueError):  # a message that does not fit its arguments is logging's to tell
        record.msg, record.args = redacted(record.getMessage()), ()
    if record.exc_info and record.exc_info[0]:
        record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info)))
    return record
