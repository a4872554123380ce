"""The command line. Typer owns the verbs, Hydra composes the `key=value` words; nothing heavy is imported before a verb
runs.

Exit codes: 0 done, 1 the run failed, 2 a wrong word, value, file or combination, 130 and 143 interrupted (checkpointed,
resumable).
"""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from qrun.errors import InputError, Interrupted, RunFailed

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


class Shown(StrEnum):
    """What --cfg prints instead of running."""

    job = "job"  # the resolved config
    hash = "hash"  # its 8-digit hash


class ExportKind(StrEnum):
    """Formats of `qrun export`."""

    peft = "peft"
    merged = "merged"


def complete(incomplete: str) -> list[str]:
    """Groups and keys before `=`, options of a group after it."""
    from qrun.config.compose import options
    from qrun.config.verbs import leaf_keys

    groups, typed = options(), _bash_word() or incomplete
    key, equals, _ = typed.partition("=")
    words = (
        [f"{key}={option}" for option in groups.get(key, {})] if equals else [f"{k}=" for k in [*groups, *leaf_keys()]]
    )
    cut = len(key) + 1 if equals and typed != incomplete else 0  # bash replaces only what follows the `=`
    return sorted({w[cut:] for w in words if w.startswith(typed)})


def _bash_word() -> str | None:
    """The whole `key=value` under the cursor: bash hands it over in pieces, because `=` is one of its word breaks."""
    if os.environ.get("_QRUN_COMPLETE") != "complete_bash":
        return None
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
    words = words if len(words) > 1 else words[0].split(" ")
    if at < len(words) and words[at] == "=":
        return f"{words[at - 1]}="
    return f"{words[at - 2]}={words[at] if at < len(words) else ''}" if at > 1 and words[at - 1] == "=" else None


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        autocompletion=complete,
        help="Config words: group=option or key=value; see `qrun config`.",
    ),
]
Cfg = Annotated[Shown | None, typer.Option("--cfg", help="Print the resolved config (job) or its hash, and stop.")]

Dry = Annotated[
    bool, typer.Option("--dry-run", help="List the cells with their parameters, and stop; needs no weights.")
]


def _composed(verb: str, words: list[str] | None, cfg: Shown | None):  # type: ignore[no-untyped-def]
    """The checked config of a verb, or None after printing it."""
    from qrun.config.compose import compose, config_hash, to_yaml

    config = compose(verb, list(words or []))
    if cfg is None:
        return config
    typer.echo(config_hash(config) if cfg is Shown.hash else to_yaml(config), nl=cfg is Shown.hash)
    return None


@app.command(epilog="Example: qrun train model=smollm2 adapter.dim=8")
def train(
    words: Words = None,
    cfg: Cfg = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the unfinished run of this very config, if there is one.")
    ] = False,
) -> None:
    """Train a Cayley adapter in a frozen model; perplexity before and after, with an interval."""
    if (config := _composed("train", words, cfg)) is not None:
        from qrun.recipes.train import train as run

        run(config, resume=resume)


@measure.command(
    epilog="Example: qrun eval perplexity adapter.path=results/runs/nano-b4-s0-1a2b3c4d/adapter protocol=hf_strided"
)
def perplexity(words: Words = None, cfg: Cfg = None) -> None:
    """Perplexity and bits per byte under a stated protocol, alone and with a saved adapter."""
    if (config := _composed("perplexity", words, cfg)) is not None:
        from qrun.recipes.perplexity import measure as run

        run(config)


@measure.command(
    epilog="Example: qrun eval questions model=local model.path=small model@original=nano "
    "adapter.path=results/runs/<run>/adapter"
)
def questions(words: Words = None, cfg: Cfg = None) -> None:
    """Multiple choice by likelihood and by sampled answers: original, model, model with adapter on any device."""
    if (config := _composed("questions", words, cfg)) is not None:
        from qrun.recipes.questions import ask

        ask(config)


@measure.command()
def compare(
    first: Annotated[str, typer.Argument(help="Run name or id in the store, or a perplexity.json file.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
    results: Annotated[str, typer.Option(help="Folder of the store.")] = "results",
) -> None:
    """Paired difference of two recorded perplexities; refused if their protocols differ."""
    from qrun.recipes.perplexity import compare as run

    run(first, second, results)


@sweep.command(epilog="Example: qrun sweep dim study.dims=[2,4,8] study.seeds=[0,1,2]")
def dim(words: Words = None, cfg: Cfg = None, dry_run: Dry = False) -> None:
    """Perplexity over block dimension, seeds and sites, noiseless, with LoRA of equal parameters and the test of
    monotonicity."""
    if (config := _composed("sweep_dim", words, cfg)) is not None:
        from qrun.studies.dim import sweep_dim

        sweep_dim(config, dry_run)


@sweep.command(epilog="Example: qrun sweep controls study.dims=[4,8]")
def controls(words: Words = None, cfg: Cfg = None, dry_run: Dry = False) -> None:
    """OFT, BOFT, LoRA, diagonal, free and dense matrices at the adapter's sites; untrained nulls."""
    if (config := _composed("sweep_controls", words, cfg)) is not None:
        from qrun.studies.controls import sweep_controls

        sweep_controls(config, dry_run)


@sweep.command(name="noise", epilog="Example: qrun sweep noise noise=heron_r2 study.sites=[one]")
def noise_sweep(words: Words = None, cfg: Cfg = None, dry_run: Dry = False) -> None:
    """Perplexity over block dimension and two-qubit error rate; where does the gain end, and how sharply?"""
    if (config := _composed("sweep_noise", words, cfg)) is not None:
        from qrun.studies.noise import sweep_noise

        sweep_noise(config, dry_run)


@app.command(epilog="Example: qrun recover compression=mpo study.ratios=[0.7]")
def recover(words: Words = None, cfg: Cfg = None, dry_run: Dry = False) -> None:
    """What an adapter, its controls and healing bring back of what compression costs; three recoveries side by side."""
    if (config := _composed("recover", words, cfg)) is not None:
        from qrun.studies.recover import recover as run

        run(config, dry_run)


@app.command(epilog="Example: qrun compress compression=mpo compression.ratio=0.6 --out small")
def compress(
    out: Annotated[str, typer.Option(help="New folder to write.")], words: Words = None, cfg: Cfg = None
) -> None:
    """Write a model whose projections are truncated SVDs or matrix-product operators."""
    if (config := _composed("compress", words, cfg)) is not None:
        from qrun.recipes.compress import compress as run

        run(config, out)


@app.command()
def report(
    results: Annotated[str, typer.Option(help="Folder of the store.")] = "results",
    out: Annotated[
        str, typer.Option(help="Folder to write tables, figures, claims and negative results into.")
    ] = "results",
) -> None:
    """Tables, figures, the claims table and the log of negative results, from the store alone."""
    from qrun.report.report import report as run

    run(results, out)


@app.command(epilog="Example: qrun plan model=llama")
def plan(words: Words = None, cfg: Cfg = None) -> None:
    """What a run would cost on a QPU: packing, circuits, shots, jobs, seconds, errors. Sends nothing."""
    if (config := _composed("plan", words, cfg)) is not None:
        from qrun.recipes.plan import plan as run

        run(config)


@app.command(epilog='Example: qrun generate "Return the sum of" adapter.path=<folder> device=noisy noise=heron_r2')
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")], words: Words = None, cfg: Cfg = None
) -> None:
    """Continue a text with the adapter on any device; prints tokens as they come."""
    if (config := _composed("generate", words, cfg)) is not None:
        from qrun.recipes.generate import generate as run

        run(config, prompt)


@app.command(epilog="Example: qrun circuit dim=8 noise=heron_r2 --qasm block.qasm")
def circuit(
    words: Words = None,
    cfg: Cfg = None,
    qasm: Annotated[str | None, typer.Option(help="Write OpenQASM 3 to this file.")] = None,
) -> None:
    """Draw one block circuit with its gate counts, depth and estimated fidelity."""
    if (config := _composed("circuit", words, cfg)) is not None:
        from qrun.recipes.circuit import circuit as run

        run(config, qasm)


@qpu.command()
def fetch(results: Annotated[str, typer.Option(help="Folder of the store.")] = "results") -> None:
    """Status of the jobs that runs have sent.

    The counts of finished ones are stored, so that the run's command goes on from there.
    """
    from qrun.cli.qpu import fetch as run

    run(results)


@qpu.command()
def noise(
    backend: Annotated[
        str, typer.Argument(help="FakeTorino, FakeMarrakesh, FakeFez, or a backend of your IBM account.")
    ],
    out: Annotated[str, typer.Option(help="YAML file to write, for example configs/noise/heron_r2.yaml.")],
) -> None:
    """Write a noise preset, medians and date, from a backend's calibration."""
    from qrun.cli.qpu import refresh as run

    run(backend, out)


@app.command()
def export(
    adapter: Annotated[str, typer.Argument(help="Adapter folder written by `qrun train`.")],
    to: Annotated[
        ExportKind, typer.Option(help="peft: OFT adapter for PEFT; merged: the whole model with the adapter folded in.")
    ],
    out: Annotated[str, typer.Option(help="New folder to write.")],
    words: Words = None,
) -> None:
    """Write a saved adapter as a PEFT OFT adapter, or merged into its model (model=... says which)."""
    from qrun.config.compose import compose
    from qrun.recipes.export import export as run

    run(compose("perplexity", [*(words or []), f"adapter.path={_quoted(adapter)}"]), to.value, out)


@app.command()
def doctor(results: Annotated[str, typer.Option(help="Folder of the store.")] = "results") -> None:
    """Versions, devices and access: what works here, and what is missing for the rest."""
    from qrun.cli.doctor import doctor as run

    run(results)


@app.command(name="config")
def config_command(group: Annotated[str | None, typer.Argument(help="Show the files of one group.")] = None) -> None:
    """List config groups and their options; every option is a commented YAML file."""
    from qrun.cli.configs import show

    show(group)


@app.command()
def ui(
    results: Annotated[str, typer.Option(help="Folder of the store.")] = "results",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Start the MLflow UI on the store and print the link to the run table."""
    from qrun.tracking.ui import serve

    serve(results, port)


def _quoted(value: str) -> str:
    """A path as a config value, whatever characters it has."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def main() -> None:
    """Entry point of the `qrun` command: known failures end in one line, bugs keep their traceback."""
    try:
        app()
    except InputError as error:
        _say(error)
        sys.exit(2)
    except RunFailed as error:
        _say(error)
        sys.exit(1)
    except Interrupted as error:
        _say(error)
        sys.exit(128 + error.signum)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _say(message: object) -> None:
    print(f"qrun: {message}", file=sys.stderr)
