"""`qrun train`: from a config to a trained adapter and its record. Read it from top to bottom.

    qrun train model=smollm2 adapter.dim=8

1. Check everything that can be checked: sites, block dimension, text, protocol, store.   2. Perplexity of the frozen model.
3. Train K, keep the best by validation.   4. Perplexity with the adapter, paired difference with its interval.   5. Save and record.
"""

import json
from pathlib import Path
from typing import Any

from qrun.adapters.sites import Site, check_divides, select, sites
from qrun.config.compose import config_hash
from qrun.config.schema import EvaluationConfig, ProtocolConfig, Split, TrainConfig
from qrun.errors import InputError
from qrun.language.models import model_shape


def train(config: TrainConfig, resume: bool = False, opened: Any = None, cell: dict[str, str] | None = None) -> Path:
    """Run the recipe; returns the folder of the saved adapter.

    A study passes what its cells share (`opened`, a record.Opened) and the tags that make the run one of its cells; the model is left as it was.
    """
    shape = model_shape(config.model)
    if shape is not None:
        chosen_sites(config, shape)  # a wrong block dimension is told before torch is imported

    import torch

    from qrun.adapters.linear import attach, detach
    from qrun.adapters.saving import save
    from qrun.evaluation.perplexity import Measurement, difference, measure
    from qrun.evaluation.protocols import build
    from qrun.report.figures import loss_curve
    from qrun.report.screen import bar, say
    from qrun.studies.record import flat_params, measured, open_all, open_record, record_measurements, result_table, tags
    from qrun.tracking.store import Store
    from qrun.training.checkpoint import Progress, read_progress
    from qrun.training.interrupt import Interrupt
    from qrun.training.loop import fit
    from qrun.training.losses import frozen_teacher

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.seed)
    opened = opened or open_all(config)
    language, corpus = opened.language, opened.corpus
    selected = chosen_sites(config, language.shape)
    positions = language.shape.max_position_embeddings
    if config.training.context > positions:
        raise InputError(f"training.context={config.training.context}: the model has {positions} positions")
    windows = opened.training_windows(config.training.context)
    context = min(config.training.context, positions)
    watched = EvaluationConfig(split=Split.validation, max_tokens=config.training.eval_tokens)
    validation = build(ProtocolConfig(ctx=context), watched, corpus, language.tokenizer, positions)
    store = Store(config.results)
    store.check_writable()

    name = config.name or f"{config.model.name}-b{config.adapter.dim}-s{config.seed}-{config_hash(config)}"
    folder = store.folder / "runs" / name
    state, base_file = folder / "checkpoint.safetensors", folder / "base.json"
    facts = {"config_hash": config_hash(config), "weights": language.identity["weights"], "data": corpus.digests}
    progress, resume_id = Progress(facts=facts), None
    if state.is_file() and resume:
        progress = read_progress(state)
        changed = [key for key, value in facts.items() if progress.facts.get(key) != value]
        if changed:
            raise InputError(f"{state}: was written with another {' and '.join(changed)}; delete it to start over")
        resume_id = progress.facts["run_id"] if store.exists(progress.facts["run_id"]) else None
        say(f"resuming {name} at step {progress.step} of {config.training.steps}")
    elif state.is_file():
        say(f"an unfinished run at step {read_progress(state).step} is there; starting over (--resume would continue it)")
        state.unlink()

    adapter = attach(language.model, selected, config.adapter)
    count = adapter.count()
    say(f"adapter b={config.adapter.dim}: {len(selected)} sites, {count:,} parameters; {len(windows):,} training windows of {config.training.context} tokens")
    params = {**flat_params(config), "sites": len(selected), "parameters": count}
    interrupt = Interrupt()
    with interrupt.installed(), store.run("study" if cell else "train", name, params, {**tags(config, opened), **(cell or {})}, resume_id) as run:
        progress.facts = {**facts, "run_id": run.run_id}
        if resume_id is None:
            open_record(run, config, opened)
        with adapter.disabled():
            if opened.base is not None:
                base = opened.base
            elif resume_id and base_file.is_file() and (kept := Measurement.from_json(base_file.read_text())).fingerprint == opened.task.fingerprint:
                base = kept
            else:
                base = measured("frozen model", language.model, opened.task, config.evaluation.batch)
                folder.mkdir(parents=True, exist_ok=True)
                base_file.write_text(base.to_json())
            opened.base = base

        def validate() -> float:
            result = measure(language.model, validation, config.evaluation.batch)
            return sum(result.nats) / sum(result.tokens)

        teacher = frozen_teacher(language.model, adapter) if config.training.distill_weight else None
        logged = progress.step  # steps whose metrics the store has
        with bar("training", config.training.steps - progress.step, "steps") as advance:

            def on_step(now: Progress) -> None:
                nonlocal logged
                fresh = bool(now.evaluations) and now.evaluations[-1]["step"] == now.step
                if now.step:
                    advance(1, f"loss {now.history[-1]['cross_entropy']:.3f}  validation {now.evaluations[-1]['validation_nats']:.4f} nats/token")
                if fresh or interrupt.received:
                    rows = [(int(r["step"]), {f"train/{k}": v for k, v in r.items() if k != "step"}) for r in now.history[logged:]]
                    run.series([*rows, *([(now.step, {"validation/nats": now.evaluations[-1]["validation_nats"]})] if fresh else [])])
                    logged = now.step

            best, progress = fit(
                language.model, adapter, windows, validate, config.training, config.seed, teacher, state, progress, on_step, interrupt
            )  # fmt: skip
        adapter.load(best)
        adapted = measured("with adapter", language.model, opened.task, config.evaluation.batch)
        gain = difference(base, adapted, config.evaluation.resamples, config.seed)

        tokens = config.training.steps * config.training.batch * config.training.accumulation * (config.training.context - 1)
        summary = summarise(config, opened.task.statement, base, adapted, gain, count, len(selected), progress)
        save(folder / "adapter", adapter, language.identity, summary)
        record_measurements(run, {"base": base, "adapted": adapted}, gain)
        run.metrics({"parameters": count, "train/seconds": progress.seconds, "train/tokens_per_second": tokens / max(progress.seconds, 1e-9)})
        run.metrics({"best_step": progress.best_step})
        run.json(summary, "result.json")
        run.folder(folder / "adapter", "adapter")
        title = f"{name}: {config.model.name} on {corpus.name}, b = {config.adapter.dim}, {len(selected)} sites"
        run.figure(loss_curve(progress.history, progress.evaluations, title), "figures/loss_curve.png")
    detach(language.model, adapter)
    state.unlink(missing_ok=True)
    base_file.unlink(missing_ok=True)

    caption = f"{len(base.nats)} documents, {sum(base.tokens):,} tokens of {corpus.name} {config.evaluation.split.value}; best step {progress.best_step}"
    result_table(name, {"frozen model": base, f"with adapter, {count:,} parameters": adapted}, gain, caption)
    link = store.url("study" if cell else "train", run_id=run.run_id)
    say(f"adapter  {_shown(folder / 'adapter')}\nrun      {link}  (after `qrun ui{_results_option(config)}`)")
    return folder / "adapter"


def chosen_sites(config: TrainConfig, shape: Any) -> list[Site]:
    """Sites of the config in a model of this shape, block dimension checked."""
    selected = select(sites(shape), config.adapter.projections, config.adapter.layers)
    check_divides(selected, config.adapter.dim, config.adapter.side)
    return selected


def summarise(config: TrainConfig, statement: dict[str, Any], base: Any, adapted: Any, gain: Any, count: int, selected: int, progress: Any) -> dict[str, Any]:
    """result.json, and the facts on the adapter's card."""
    return {
        "base_perplexity": base.perplexity, "adapted_perplexity": adapted.perplexity, "gain": gain.value, "gain_95_low": gain.low, "gain_95_high": gain.high,
        "interval": f"paired BCa bootstrap over {gain.units} {gain.unit}, {config.evaluation.resamples} resamples",
        "base_bits_per_byte": base.bits_per_byte, "adapted_bits_per_byte": adapted.bits_per_byte, "parameters": count, "sites": selected,
        "protocol": json.dumps(statement, sort_keys=True), "protocol_fingerprint": base.fingerprint, "config_hash": config_hash(config),
        "seed": config.seed, "steps": progress.step, "best_step": progress.best_step, "training_seconds": round(progress.seconds, 1),
    }  # fmt: skip


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _results_option(config: TrainConfig) -> str:
    return "" if config.results == "results" else f" --results {config.results}"
