"""`qrun train`: from a config to a trained adapter and its record. Read it from top to bottom.

    qrun train model=smollm2 adapter.dim=8

1. Check everything that can be checked: sites, block dimension, text, protocol, store.
2. Perplexity of the frozen model.
3. Train K (or a control's parameters), keep the best by validation.
4. Perplexity with the adapter, paired difference with its interval.
5. Diagnostics, save and record.
"""

import json
from pathlib import Path

from qrun.adapters.saving import save
from qrun.cells.workspace import Workspace
from qrun.config.compose import config_hash
from qrun.config.verbs import TrainConfig
from qrun.evaluation.measurement import Difference, Measurement, difference
from qrun.recipes.fitting import Job, fit_adapter, fit_metrics, prepared, resume
from qrun.recipes.measuring import measured, rounding
from qrun.recipes.record import flat_params, measured_words, open_record, record_measurements, result_table, tags
from qrun.report.figures import loss_curve
from qrun.report.screen import say
from qrun.tracking.store import Store
from qrun.training.checkpoint import Progress, read_progress
from qrun.training.interrupt import Interrupt

BASE = "base.json"  # the frozen model's measurement, beside the checkpoint of an unfinished run


def train(config: TrainConfig, resuming: bool = False) -> Path:
    """Run the recipe; returns the folder of the saved adapter."""
    store = Store(config.results)
    with prepared(config, Workspace()) as job:
        store.check_writable()
        name = config.name or f"{config.model.name}-{job.label}-s{config.seed}-{config_hash(config)}"
        folder = store.folder / "runs" / name
        state = folder / "checkpoint.safetensors"
        if state.is_file() and not resuming:
            step = read_progress(state).step
            say(f"an unfinished run at step {step} is there; starting over (--resume would continue it)")
            state.unlink()
        progress, run_id = resume(job, state, store)
        count = job.adapter.count()
        windows = f"{len(job.windows):,} training windows of {config.training.context} tokens"
        say(f"adapter {job.label}: {len(job.sites)} sites, {count:,} parameters; {windows}")
        params = {**flat_params(config), "sites": len(job.sites), "parameters": count}
        words = tags(config, job.opened)
        with Interrupt().installed() as interrupt, store.run("train", name, params, words, run_id) as run:
            if run_id is None:
                open_record(run, config, job.opened)
            base = frozen(job, folder / BASE, run_id is not None)
            with job.adapter.disabled():
                run.metrics(rounding(job.opened, config))
            progress = fit_adapter(job, run, state, progress, interrupt)
            adapted = measured("with adapter", job.opened, config, job.adapter)
            gain = difference(base, adapted, config.evaluation.resamples, config.seed)
            metrics = fit_metrics(job, progress)
            summary = summarise(job, base, adapted, gain, progress)
            save(folder / "adapter", job.adapter, job.opened.language.identity, summary)
            record_measurements(run, {"base": base, "adapted": adapted}, gain)
            run.metrics(metrics)
            run.json({**summary, "metrics": metrics}, "result.json")
            run.folder(folder / "adapter", "adapter")
            title = f"{name}: {config.model.name} on {job.opened.corpus.name}, {job.label}, {len(job.sites)} sites"
            run.figure(loss_curve(progress.history, progress.evaluations, title), "figures/loss_curve.png")
    for file in (state, folder / BASE):
        file.unlink(missing_ok=True)
    split = f"{job.opened.corpus.name} {config.evaluation.split.value}"
    caption = f"{measured_words(base)} of {split}; best step {progress.best_step}"
    shown = {"frozen model": base, f"with adapter, {count:,} parameters": adapted}
    result_table(name, shown, {"gain": gain}, caption)
    where = "" if config.results == "results" else f" --results {config.results}"
    saved = folder / "adapter"
    shown_path = saved.relative_to(Path.cwd()) if saved.is_relative_to(Path.cwd()) else saved
    say(f"adapter  {shown_path}\nrun      {store.url('train', run_id=run.run_id)}  (after `qrun ui{where}`)")
    return saved


def frozen(job: Job, kept: Path, resumed: bool) -> Measurement:
    """The frozen model's measurement; a resumed run finds it where the first start left it."""
    config, opened = job.config, job.opened
    if resumed and kept.is_file():
        found = Measurement.from_json(kept.read_text())
        if found.fingerprint == opened.task.fingerprint:
            return found
    with job.adapter.disabled():
        base = measured("frozen model", opened, config, job.adapter)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(base.to_json())
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
        "parameters": job.adapter.count(), "sites": len(job.sites),
        "protocol": json.dumps(job.opened.task.statement, sort_keys=True), "protocol_fingerprint": base.fingerprint,
        "config_hash": config_hash(config), "seed": config.seed, "steps": progress.step,
        "best_step": progress.best_step, "training_seconds": round(progress.seconds, 1),
    }  # fmt: skip
