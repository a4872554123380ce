"""`qrun train`: from a config to a trained adapter and its record. Read it from top to bottom.

    qrun train model=smollm2 adapter.dim=8

1. Check everything that can be checked: sites, block dimension, text, protocol, store.   2. Perplexity of the frozen
                                                                                          model.
3. Train K (or a control's parameters), keep the best by validation.   4. Perplexity with the adapter, paired difference
                                                                       with its interval.
5. Diagnostics, save and record.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qrun.adapters.sites import Site, check_divides, select, sites
from qrun.config.compose import config_hash, plain
from qrun.config.schema import BLOCKED, EvaluationConfig, Method, ProtocolConfig, Split
from qrun.config.verbs import TrainConfig
from qrun.errors import InputError
from qrun.language.models import model_shape


def train(config: TrainConfig, resume: bool = False, shelf: Any = None, cell: dict[str, str] | None = None) -> Path:
    """Run the recipe; returns the folder of the saved adapter.

    A study passes what its cells share (`shelf`, a record.Shelf) and the tags that make the run one of its cells;
    the model is left as it was.
    """
    shape = model_shape(config.model)
    if shape is not None:
        chosen_sites(config, shape)  # a wrong block dimension is told before torch is imported

    import torch

    from qrun.adapters.controls import attach_method
    from qrun.adapters.diagnostics import describe, on_text
    from qrun.adapters.linear import detach
    from qrun.adapters.saving import save
    from qrun.evaluation.perplexity import Measurement, difference, measure
    from qrun.evaluation.protocols import build
    from qrun.recipes.record import Shelf, flat_params, measured, open_record, record_measurements, result_table, tags
    from qrun.report.figures import loss_curve
    from qrun.report.screen import bar, say
    from qrun.tracking.store import Store
    from qrun.training.checkpoint import Progress, read_progress
    from qrun.training.interrupt import Interrupt
    from qrun.training.loop import fit
    from qrun.training.losses import Teacher, frozen_teacher, teacher_of

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.seed)
    shelf = shelf or Shelf()
    opened = shelf.open(config)
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

    name = config.name or f"{config.model.name}-{method_words(config)}-s{config.seed}-{config_hash(config)}"
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
        say(
            f"an unfinished run at step {read_progress(state).step} is there; starting over (--resume would "
            f"continue it)"
        )
        state.unlink()

    other = config.teacher is not None and plain(config.teacher) != plain(config.model)
    original = shelf.model(config.teacher) if other and config.training.distill_weight else None
    if original is not None and original.model.config.vocab_size != language.model.config.vocab_size:
        raise InputError(
            f"model@teacher={original.identity['name']}: its vocabulary is not that of model={config.model.name}"
        )
    adapter = attach_method(language.model, selected, config.adapter, language.identity["path"])
    count = adapter.count()
    say(
        f"adapter {method_words(config)}: {len(selected)} sites, {count:,} parameters; {len(windows):,} "
        f"training windows of {config.training.context} tokens"
    )
    params = {**flat_params(config), "sites": len(selected), "parameters": count}
    interrupt, cleanup = Interrupt(), ExitStack()
    cleanup.callback(
        detach, language.model, adapter
    )  # a failed cell must not leave its layers in the model that the next one uses
    with (
        cleanup,
        interrupt.installed(),
        store.run(
            "study" if cell else "train", name, params, {**tags(config, opened), **(cell or {})}, resume_id
        ) as run,
    ):
        progress.facts = {**facts, "run_id": run.run_id}
        if resume_id is None:
            open_record(run, config, opened)
        with adapter.disabled():
            if opened.base is not None:
                base = opened.base
            elif (
                resume_id
                and base_file.is_file()
                and (kept := Measurement.from_json(base_file.read_text())).fingerprint == opened.task.fingerprint
            ):
                base = kept
            else:
                base = measured("frozen model", language.model, opened.task, config.evaluation.batch)
                folder.mkdir(parents=True, exist_ok=True)
                base_file.write_text(base.to_json())
            opened.base = base

        def validate() -> float:
            result = measure(language.model, validation, config.evaluation.batch)
            return sum(result.nats) / sum(result.tokens)

        teacher: Teacher | None = None
        if config.training.distill_weight:
            teacher = teacher_of(original.model) if original is not None else frozen_teacher(language.model, adapter)
        logged = progress.step  # steps whose metrics the store has
        with bar("training", config.training.steps - progress.step, "steps") as advance:

            def on_step(now: Progress) -> None:
                nonlocal logged
                fresh = bool(now.evaluations) and now.evaluations[-1]["step"] == now.step
                if now.step:
                    advance(
                        1,
                        f"loss {now.history[-1]['cross_entropy']:.3f}  validation "
                        f"{now.evaluations[-1]['validation_nats']:.4f} nats/token",
                    )
                if fresh or interrupt.received:
                    rows = [
                        (int(r["step"]), {f"train/{k}": v for k, v in r.items() if k != "step"})
                        for r in now.history[logged:]
                    ]
                    run.series(
                        [
                            *rows,
                            *(
                                [(now.step, {"validation/nats": now.evaluations[-1]["validation_nats"]})]
                                if fresh
                                else []
                            ),
                        ]
                    )
                    logged = now.step

            best, progress = fit(
                language.model, adapter, windows, validate, config.training, config.seed, teacher,
                state, progress, on_step, interrupt
            )  # fmt: skip
        adapter.load(best)
        adapted = measured("with adapter", language.model, opened.task, config.evaluation.batch)
        gain = difference(base, adapted, config.evaluation.resamples, config.seed)

        tokens = (
            config.training.steps * config.training.batch * config.training.accumulation * (config.training.context - 1)
        )
        summary = summarise(config, opened.task.statement, base, adapted, gain, count, len(selected), progress)
        save(folder / "adapter", adapter, language.identity, summary)
        record_measurements(run, {"base": base, "adapted": adapted}, gain)
        run.metrics(
            {
                "parameters": count,
                "train/seconds": progress.seconds,
                "train/tokens_per_second": tokens / max(progress.seconds, 1e-9),
            }
        )
        run.metrics({"best_step": progress.best_step})
        if config.adapter.method is Method.cayley:
            summary["diagnostics"] = {**describe(adapter), **on_text(language.model, adapter, windows[:4, :-1])}
            run.metrics({f"blocks/{key}": value for key, value in summary["diagnostics"].items()})
        run.json(summary, "result.json")
        run.folder(folder / "adapter", "adapter")
        title = f"{name}: {config.model.name} on {corpus.name}, {method_words(config)}, {len(selected)} sites"
        run.figure(loss_curve(progress.history, progress.evaluations, title), "figures/loss_curve.png")
    state.unlink(missing_ok=True)
    base_file.unlink(missing_ok=True)

    caption = (
        f"{len(base.nats)} documents, {sum(base.tokens):,} tokens of {corpus.name} "
        f"{config.evaluation.split.value}; best step {progress.best_step}"
    )
    result_table(name, {"frozen model": base, f"with adapter, {count:,} parameters": adapted}, gain, caption)
    link = store.url("study" if cell else "train", run_id=run.run_id)
    say(f"adapter  {_shown(folder / 'adapter')}\nrun      {link}  (after `qrun ui{_results_option(config)}`)")
    return folder / "adapter"


def chosen_sites(config: TrainConfig, shape: Any) -> list[Site]:
    """Sites of the config in a model of this shape, block dimension checked."""
    selected = select(sites(shape), config.adapter.projections, config.adapter.layers)
    if config.adapter.method in BLOCKED:
        check_divides(selected, config.adapter.dim, config.adapter.side)
    return selected


def method_words(config: TrainConfig) -> str:
    """`b4`, `oft-b4`, `lora-r2`: what is trained, as part of a run's name."""
    adapter = config.adapter
    size = {Method.lora: f"-r{adapter.rank}", Method.boft: f"-b{adapter.dim}m{adapter.factors}"}
    if adapter.method is Method.cayley:
        return f"b{adapter.dim}" + ("-signed" if adapter.sign_constrained else "")
    return adapter.method.value + size.get(adapter.method, f"-b{adapter.dim}" if adapter.method in BLOCKED else "")


def summarise(
    config: TrainConfig,
    statement: dict[str, Any],
    base: Any,
    adapted: Any,
    gain: Any,
    count: int,
    selected: int,
    progress: Any,
) -> dict[str, Any]:
    """result.json, and the facts on the adapter's card."""
    return {
        "base_perplexity": base.perplexity, "adapted_perplexity": adapted.perplexity, "gain": gain.value,
        "gain_95_low": gain.low, "gain_95_high": gain.high,
        "interval": f"paired BCa bootstrap over {gain.units} {gain.unit}, {config.evaluation.resamples} resamples",
        "base_bits_per_byte": base.bits_per_byte, "adapted_bits_per_byte": adapted.bits_per_byte, "parameters": count,
        "sites": selected,
        "protocol": json.dumps(statement, sort_keys=True), "protocol_fingerprint": base.fingerprint,
        "config_hash": config_hash(config),
        "seed": config.seed, "steps": progress.step, "best_step": progress.best_step,
        "training_seconds": round(progress.seconds, 1),
    }  # fmt: skip


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _results_option(config: TrainConfig) -> str:
    return "" if config.results == "results" else f" --results {config.results}"
