"""`qrun train`: from a config to a trained adapter and its record. Read it from top to bottom.

    qrun train model=smollm2 adapter.dim=8

1. Check everything that can be checked: sites, block dimension, text, protocol, store.
2. Perplexity of the frozen model.
3. Train K (or a control's parameters), keep the best by validation.
4. Perplexity with the adapter, paired difference with its interval.
5. Diagnostics, save and record, with figures of the loss and of the blocks.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from qrun.adapters.methods import spec
from qrun.adapters.saving import CONFIG, read, save
from qrun.adapters.spectra import haar_blocks, spectra, trained_blocks
from qrun.cells.workspace import Workspace
from qrun.config.compose import config_hash
from qrun.config.tree import used
from qrun.config.verbs import TrainConfig
from qrun.errors import InputError
from qrun.evaluation.measurement import Difference, Measurement, difference
from qrun.files import below, replaced
from qrun.recipes.fitting import Job, fit_adapter, fit_metrics, prepared, resume
from qrun.recipes.measuring import Way, measured, narrowed, rounding
from qrun.recipes.record import (
    TRAININGS,
    adapter_params,
    flat_params,
    measured_words,
    on_text,
    open_record,
    record_measurements,
    record_text,
    result_table,
    tags,
)
from qrun.report.pictures import block_histograms, loss_curve
from qrun.report.screen import say
from qrun.tracking.store import Store
from qrun.training.checkpoint import Progress, read_progress
from qrun.training.interrupt import Interrupt

CONSTANT = "blocks/haar_"  # of random blocks: the same for every training, in result.json only
BASE = "base.json"  # the frozen model's measurement, beside the checkpoint of an unfinished run


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    run: str  # name and id in the store
    run_id: str
    folder: Path  # of the saved adapter
    base: Measurement = field(repr=False)  # of the frozen model
    adapted: Measurement = field(repr=False)
    gain: Difference  # perplexity of base less that of adapted
    metrics: Mapping[str, float] = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)  # of each step: step, cross_entropy ...
    evaluations: list[dict[str, float]] = field(repr=False)  # of each validation: step, validation_nats


def train(config: TrainConfig, resuming: bool = False) -> Path:
    """Run the recipe; returns the folder of the saved adapter."""
    return train_in(Workspace(), config, resuming).folder


def train_in(workspace: Workspace, config: TrainConfig, resuming: bool = False) -> Trained:
    """The recipe in a workspace, which opens the model unless it has it; the model is left as it was."""
    store = Store(config.results, config.tracking.uri)
    label = spec(config.adapter.method).label(config.adapter)
    name = config.name or f"{config.model.name}-{label}-s{config.seed}-{config_hash(config)}"
    folder = below(store.folder, "runs", name)
    state = folder / "checkpoint.safetensors"
    with prepared(config, workspace) as job, own_folder(folder, config, store):
        say(f"runs go to {store.where}")
        if state.is_file() and not resuming:
            step = read_progress(state).step
            say(f"an unfinished run at step {step} is there; starting over (--resume would continue it)")
            state.unlink()
        progress, run_id = resume(job, state, store)
        count = job.adapter.count()
        windows = f"{len(job.windows):,} training windows of {config.training.context} tokens"
        say(f"adapter {job.label}: {len(job.sites)} sites, {count:,} parameters; {windows}")
        params = {**flat_params(config), "sites": len(job.sites), "parameters": count}
        words = {**tags(config, job.opened), **used()}
        with Interrupt().installed() as interrupt, store.run("train", name, params, words, run_id) as run:
            if run_id is None:
                open_record(run, config, job.opened)
            base = frozen(job, folder / BASE, run_id is not None)
            with job.adapter.disabled():
                run.metrics(rounding(job.opened, config))
            progress = fit_adapter(job, run, state, progress, interrupt)
            interrupt.after()
            adapted = measured("with adapter", job.opened, config, job.adapter)
            ways: dict[str, Way] = {"base": job.adapter.disabled, "adapted": nullcontext}
            both, opened = narrowed({"base": base, "adapted": adapted}, ways, job.opened, config, job.adapter)
            base, adapted = both.values()
            gain = difference(base, adapted, config.evaluation.resamples, config.seed)
            metrics = fit_metrics(job, progress)
            summary = summarise(job, base, adapted, gain, progress)
            record_text(run, opened)
            save(folder / "adapter", job.adapter, job.opened.language.identity, summary)
            model = run.model(folder / "adapter", adapter_params(config.adapter, len(job.sites), count))
            record_measurements(run, {"base": base, "adapted": adapted}, gain, on_text(model, opened, config))
            run.metrics({name: value for name, value in metrics.items() if not name.startswith(CONSTANT)})
            run.json({**summary, "metrics": metrics}, "result.json")
            run.folder(folder / "adapter", "adapter")
            title = f"{name}: {config.model.name} on {job.opened.corpus.name}, {job.label}, {len(job.sites)} sites"
            run.figure(loss_curve(progress.history, progress.evaluations, title), "figures/loss_curve.png")
            if spec(config.adapter.method).circuits:
                run.figure(drawn_blocks(job, title), "figures/blocks.png")
    for file in (state, folder / BASE):
        file.unlink(missing_ok=True)
    split = f"{job.opened.corpus.name} {config.evaluation.split.value}"
    caption = f"{measured_words(base)} of {split}; best step {progress.best_step}"
    shown = {"frozen model": base, f"with adapter, {count:,} parameters": adapted}
    result_table(name, shown, {"gain": gain}, caption)
    saved = folder / "adapter"
    shown_path = saved.relative_to(Path.cwd()) if saved.is_relative_to(Path.cwd()) else saved
    store.view("train", "trainings", TRAININGS)
    say(f"adapter  {shown_path}\nrun      {store.link('train', run.run_id)}")
    say(f"all      {store.link('train', view='trainings')}")
    return Trained(name, run.run_id, saved, base, adapted, gain, metrics, progress.history, progress.evaluations)


@contextmanager
def own_folder(folder: Path, config: TrainConfig, store: Store) -> Iterator[None]:
    """A run's folder for this training alone. Raises InputError where it cannot be written, where another process is at
    it, or where it has the adapter of another config: a name is its first config's."""
    store.check_writable()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"name={folder.name}: another process is training it; wait, or choose another name") from error
    with held:
        if (folder / "adapter" / CONFIG).is_file():
            kept, own = read(folder / "adapter").facts.get("config_hash"), config_hash(config)
            if kept not in (None, own):
                how = "choose another name=..., or move that folder away"
                raise InputError(f"name={folder.name}: {folder} has the adapter of config {kept}, not {own}; {how}")
        yield


def drawn_blocks(job: Job, title: str) -> Figure:
    """Angles and operator-Schmidt values of the trained blocks beside those of random ones."""
    (angles, values), (haar, others) = (
        spectra(blocks) for blocks in (trained_blocks(job.adapter), haar_blocks(job.config.adapter.dim))
    )
    return block_histograms((angles, haar), None if values is None or others is None else (values, others), title)


def frozen(job: Job, kept: Path, resumed: bool) -> Measurement:
    """The frozen model's measurement; a resumed run finds it where the first start left it."""
    config, opened = job.config, job.opened
    if resumed and kept.is_file():
        with suppress(ValueError):  # torn where the machine lost its power
            found = Measurement.from_json(kept.read_text())
            if found.fingerprint == opened.task.fingerprint:
                return found
    with job.adapter.disabled():
        base = measured("frozen model", opened, config, job.adapter)
    with replaced(kept) as file:
        file.write_text(base.to_json())
    return base


def summarise(
    job: Job, base: Measurement, adapted: Measurement, gain: Difference, progress: Progress
) -> dict[str, object]:
    """result.json, and the facts on the adapter's card."""
    config, limits = job.config, gain.interval
    how = f"paired BCa bootstrap over {gain.documents} documents ({gain.effective:.1f} effective)"
    return {
        "base_perplexity": base.perplexity, "adapted_perplexity": adapted.perplexity, "gain": gain.value,
        "gain_95_low": limits.low if limits else None, "gain_95_high": limits.high if limits else None,
        "interval": f"{how}, {config.evaluation.resamples} resamples",
        "base_bits_per_byte": base.bits_per_byte, "adapted_bits_per_byte": adapted.bits_per_byte,
        "data": job.opened.corpus.name, "data_hub_id": config.data.hub_id,
        "data_split": config.evaluation.split.value, "parameters": job.adapter.count(), "sites": len(job.sites),
        "protocol": json.dumps(base.statement, sort_keys=True), "protocol_fingerprint": base.fingerprint,
        "config_hash": config_hash(config), "seed": config.seed, "steps": progress.step,
        "best_step": progress.best_step, "training_seconds": round(progress.seconds, 1),
    }  # fmt: skip
