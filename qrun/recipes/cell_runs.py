"""The heavy half of tasks: each opens its model, computes, and leaves one run in the store's `study` experiment."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from qrun.adapters.cut import cut
from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods import spec
from qrun.adapters.saving import read, save
from qrun.adapters.sites import sites
from qrun.cells.cell import Place
from qrun.cells.workspace import Opened, Workspace
from qrun.config.compose import config_hash, to_yaml
from qrun.config.verbs import CompressConfig, TrainConfig
from qrun.errors import InputError
from qrun.evaluation.measurement import Difference, Measurement, difference
from qrun.evaluation.questions import answer
from qrun.files import below
from qrun.language import questions
from qrun.language.prompts import uses_chat
from qrun.recipes.compress import compress_into
from qrun.recipes.device import open_executor
from qrun.recipes.fitting import fit_adapter, fit_metrics, prepared, resume
from qrun.recipes.measuring import attach_saved, change_values, measured, rounding
from qrun.recipes.record import (
    Words,
    adapter_params,
    cz_error,
    device_tags,
    headline,
    interval_metrics,
    on_text,
    peak_memory_mb,
    record_device,
    tags,
)
from qrun.recipes.scanning import best, scan, units
from qrun.recipes.tasks import Ask, Measure, Scan
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.runs import MODEL, Run
from qrun.tracking.store import Store
from qrun.training.interrupt import Interrupt

EXPERIMENT = "study"
UNITS = "units.json"  # what an interval over documents or questions needs; of scans the trials
MEASUREMENT = "measurement.json"


@contextmanager
def cell_run(place: Place, words: Mapping[str, object], resume_id: str | None = None) -> Iterator[Run]:
    """The run of a cell: its axes are its parameters, its key is a tag."""
    everything = {**words, **place.tags, "cell_key": place.key}
    everything |= {f"needs.{name}": run for name, run in place.needs.items()}
    params = {axis: value for axis, value in place.axes.items() if value is not None}
    with Store(place.results, place.uri).run(EXPERIMENT, place.name, params, everything, resume_id) as run:
        yield run


def train_cell(config: TrainConfig, workspace: Workspace, place: Place) -> str:
    """Train, save the adapter, record size, curve and diagnostics."""
    store = Store(place.results, place.uri)
    folder = below(store.folder, "runs", place.name)
    state = folder / "checkpoint.safetensors"
    with prepared(config, workspace, place.key) as job, Interrupt().installed() as interrupt:
        progress, run_id = resume(job, state, store)
        with cell_run(place, tags(config, job.opened), run_id) as run:
            progress = fit_adapter(job, run, state, progress, interrupt)
            metrics = {**fit_metrics(job, progress), "peak_memory_mb": peak_memory_mb(), "lr": config.training.lr}
            facts = {
                "config_hash": config_hash(config), "seed": config.seed, "steps": progress.step,
                "best_step": progress.best_step, "best_validation_nats": progress.best_nats,
                "data": job.opened.corpus.name, "cell_key": place.key,
            }  # fmt: skip
            save(folder / "adapter", job.adapter, job.opened.language.identity, facts)
            run.metrics(metrics)
            run.texts({"config.yaml": to_yaml(config), "env.json": _environment()})
            run.folder(folder / "adapter", "adapter")
            run.model(folder / "adapter", adapter_params(config.adapter, len(job.sites), job.adapter.count()))
    state.unlink(missing_ok=True)
    interrupt.after()
    return run.run_id


def scan_cell(task: Scan, workspace: Workspace, place: Place) -> str:
    """Try the rates, record the best and every trial."""
    store = Store(place.results, place.uri)
    folder, config = below(store.folder, "runs", place.name), task.config
    opened = workspace.open(config)
    with Interrupt().installed() as interrupt, cell_run(place, tags(config, opened)) as run:
        tried = scan(config, task.trials, workspace, folder, store, run, interrupt, place.key)
        found = units(tried)
        metrics = {"lr": best(tried).lr, "trials": len(tried), "steps": sum(trial.steps for trial in tried)}
        run.metrics({**metrics, "peak_memory_mb": peak_memory_mb()})
        run.texts({"config.yaml": to_yaml(config), "env.json": _environment(), UNITS: json.dumps(found)})
    shutil.rmtree(folder, ignore_errors=True)
    interrupt.after()
    return run.run_id


def measure_cell(task: Measure, workspace: Workspace, place: Place) -> str:
    """Measure, with paired differences to the frozen model (`base`) and to the exact adapter (`exact`)."""
    config, store = task.config, Store(place.results, place.uri)
    opened = workspace.open(config)
    others = {
        name: Measurement.from_json(store.recorded(place.needs[name]).text(MEASUREMENT))
        for name in ("base", "exact") if name in place.needs
    }  # fmt: skip
    adapter = _needed_adapter(task, opened, store, place)
    try:
        executor = None
        if adapter is not None and task.circuits:
            executor = open_executor(config, adapter.config)
            adapter.set_executor(executor)
        with Interrupt().installed(), cell_run(place, {**tags(config, opened), **device_tags(config)}) as run:
            try:
                result = measured("measuring", opened, config, adapter)
            finally:
                if executor is not None:
                    record_device(run, executor.device)
            metrics = {
                "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte, "seconds": result.seconds,
                "documents": len(result.nats), "effective_documents": result.effective_documents,
                "tokens": sum(result.tokens), "peak_memory_mb": peak_memory_mb(),
            }  # fmt: skip
            gaps = _gaps(result, others, config.evaluation.resamples)
            for name, gap in gaps.items():
                metrics |= interval_metrics(name, gap)
            metrics |= rounding(opened, config) if adapter is None else {}
            if adapter is not None:
                metrics["parameters"] = adapter.count() if task.values == "trained" or task.czs else 0
                where = [site for site in sites(opened.language.shape) if site.name in adapter.modules]
                flop = spec(adapter.config.method).flop(adapter.config, where)
                metrics |= {} if flop is None else {"flop": flop}
            if executor is not None and adapter is not None:
                metrics |= {f"circuit/{name}": value for name, value in executor.statistics.summary().items()}
                metrics["circuit/total_error"] = config.noise.total_error(
                    executor.device.wiring.counts(adapter.config.dim)
                )
                blocks = [module.blocks().shape[0] for module in adapter.modules.values()]
                cost = executor.cost(adapter.config.dim, blocks)
                metrics |= {f"circuit/{name}": value for name, value in cost.items()} | cz_error(config)
            exact = task.values == "trained" and not task.circuits and "adapter" in place.needs
            model = store.recorded(place.needs["adapter"]).tags.get(MODEL) if exact else None
            final = headline(result, gaps.get("gain"))
            # what a training cell's adapter came to stands with it among the models
            run.metrics(final, on_text(model, opened, config) if model else None)
            run.metrics({name: value for name, value in metrics.items() if name not in final})
            run.texts({
                "config.yaml": to_yaml(config), "env.json": _environment(), MEASUREMENT: result.to_json(),
                UNITS: json.dumps(result.units()),
            })  # fmt: skip
    finally:
        if adapter is not None:
            adapter.set_executor(None)
            detach(opened.language.model, adapter)
    return run.run_id


def _gaps(result: Measurement, others: Mapping[str, Measurement], resamples: int) -> dict[str, Difference]:
    """With resamples of seed 0, as studies draw theirs: an exact cell's key has no seed."""
    gaps = {}
    if "base" in others:
        gaps["gain"] = difference(others["base"], result, resamples, 0)
    if "exact" in others:
        gaps["penalty"] = difference(result, others["exact"], resamples, 0)
    return gaps


def _needed_adapter(task: Measure, opened: Opened, store: Store, place: Place) -> Adapter | None:
    """The trained or saved adapter in the model, its values replaced for a null or its blocks cut to circuits."""
    if "adapter" in place.needs:
        folder = store.recorded(place.needs["adapter"]).file("adapter")
    elif task.config.adapter.path is not None:
        folder = Path(task.config.adapter.path)
    else:
        return None
    adapter = attach_saved(opened.language, read(folder), folder)
    if task.czs:
        selected = [site for site in sites(opened.language.shape) if site.name in adapter.modules]
        try:
            return cut(opened.language.model, selected, adapter, task.czs)
        except InputError:
            detach(opened.language.model, adapter)
            raise
    change_values(adapter, task.values, task.config.seed)
    return adapter


def compress_cell(config: CompressConfig, folder: Path, place: Place) -> str:
    """Compress into `folder`, record the sizes."""
    words: Words = {**git_state(), "config_hash": config_hash(config), "model_name": config.model.name}
    with Interrupt().installed(), cell_run(place, words) as run:
        run.params({"folder": str(folder)})
        statement = compress_into(config, folder)
        run.metrics({k: v for k, v in statement.items() if isinstance(v, int | float) and not isinstance(v, bool)})
        run.texts({"config.yaml": to_yaml(config), "compression.json": json.dumps(statement, indent=1)})
    return run.run_id


def ask_cell(task: Ask, workspace: Workspace, place: Place) -> str:
    """Let one arm answer every question: by likelihood, and sampled at each temperature."""
    config, circuits = task.config, task.circuits
    language, asked = workspace.model(config.model), questions.load(config.questions, config.seed)
    if uses_chat(config.prompt, config.model):
        asked = questions.in_chat(asked, language.tokenizer)
    words: Words = {
        **git_state(), "config_hash": config_hash(config), "model_name": config.model.name,
        "model_weights": language.identity["weights"], "questions_digest": asked.digest,
        "questions_source": asked.source, "chat": str(asked.chat).lower(),
        **(device_tags(config) if circuits else {"device": "exact"}),
    }  # fmt: skip
    adapter = executor = None
    try:
        if config.adapter.path is not None:
            saved = read(Path(config.adapter.path))
            adapter = attach_saved(language, saved, config.adapter.path)
            change_values(adapter, task.values, config.seed)
            if circuits:
                executor = open_executor(config, saved.config)
                adapter.set_executor(executor)
        with Interrupt().installed(), cell_run(place, words) as run:
            try:
                found = answer(language.model, language.tokenizer, asked.questions, config.batch)
            finally:
                if executor is not None:
                    record_device(run, executor.device)
            units = {
                "chosen": found.chosen.tolist(), "right": found.right.tolist(), "choices": found.choices.tolist(),
                "cluster": asked.clusters,
            }  # fmt: skip
            for t in config.temperatures:
                units[f"sampled {t:g}"] = found.sampled(t, config.trials, config.seed).tolist()
            shares = {"right": float(found.correct.mean()), "acc": float(found.likeliest.mean())}
            counts = {"questions": len(found.right), "truncated": int((found.lost > 0).sum()), "trials": config.trials}
            run.metrics({**shares, **counts})
            scores = "".join(
                json.dumps({"question": q.name, "loglikelihoods": row[: len(q.choices)].tolist(), "chosen": chosen,
                            "answer": q.answer, "lost_tokens": lost}) + "\n"
                for q, row, chosen, lost in zip(
                    asked.questions, found.likelihood, units["chosen"], found.lost.tolist(), strict=True
                )
            )  # fmt: skip
            files = {"config.yaml": to_yaml(config), "env.json": _environment(), "answers.jsonl": scores}
            run.texts({**files, UNITS: json.dumps(units)})
    finally:
        if adapter is not None:
            adapter.set_executor(None)
            detach(language.model, adapter)
    return run.run_id


@cache
def _environment() -> str:
    return json.dumps(environment(), indent=1)
