"""`qrun eval tasks`: benchmarks of lm-evaluation-harness on the frozen model, with its adapter, and on a device.

qrun eval tasks tasks=[arc_easy,hellaswag] adapter.path=results/runs/<run>/adapter device=noisy noise=heron_r2

The numbers and their standard errors are the harness's own. Differences are paired over the documents of a task, for
metrics that are means over documents.
"""

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from qrun.adapters.methods import spec
from qrun.adapters.saving import read
from qrun.config.compose import config_hash, plain, to_yaml
from qrun.config.tree import flatten
from qrun.config.verbs import TasksConfig
from qrun.errors import InputError
from qrun.language import models
from qrun.language.corpus import text_digest
from qrun.language.hub import hub
from qrun.language.prompts import uses_chat
from qrun.recipes.device import circuit_line, open_executor
from qrun.recipes.measuring import attach_saved
from qrun.recipes.record import device_tags, record_device
from qrun.report.screen import say, table
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.store import Store
from qrun.training.interrupt import Interrupt

NORMAL = 1.959964  # half a 95 % interval in standard errors


@dataclass(frozen=True)
class Paired:
    """Mean difference of a metric over the same documents, and its standard error."""

    value: float
    error: float
    documents: int

    def words(self) -> str:
        """`[-0.010, +0.030]`."""
        return f"[{self.value - NORMAL * self.error:+.4f}, {self.value + NORMAL * self.error:+.4f}]"


def run_tasks(config: TasksConfig) -> dict[str, dict[str, Any]]:
    """Run the tasks on every arm and record them; returns the harness's results by arm. Raises InputError for unknown
    tasks, for data out of reach, and where the harness is not installed."""
    manager = _manager(config)
    saved = read(Path(config.adapter.path)) if config.adapter.path else None
    executor = open_executor(config, saved.config) if saved and config.device.kind != "exact" else None
    chat = uses_chat(config.prompt, config.model)
    language = models.load(config.model)
    adapter = attach_saved(language, saved, str(config.adapter.path)) if saved else None
    store = Store(config.results, config.tracking.uri)
    store.check_writable()
    kind = f"{spec(saved.config.method).label(saved.config)}-{config.device.kind}" if saved else "base"
    name = config.name or f"{config.model.name}-{kind}-tasks-{config_hash(config)}"
    words = {
        **git_state(), "config_hash": config_hash(config), "model_name": config.model.name,
        "model_weights": language.identity["weights"], "tokenizer": language.identity["tokenizer"],
        "chat": str(chat).lower(), **device_tags(config),
    }  # fmt: skip
    params = {key: value for key, value in flatten(plain(config)).items() if key not in ("results", "name")}
    results: dict[str, dict[str, Any]] = {}
    with Interrupt().installed(), store.run("eval-tasks", name, params, words) as run:
        run.texts({"config.yaml": to_yaml(config)})
        run.json(environment(), "env.json")
        if adapter is None:
            results["base"] = _evaluate(config, language, manager, chat)
        else:
            with adapter.disabled():
                results["base"] = _evaluate(config, language, manager, chat)
            results["adapted"] = _evaluate(config, language, manager, chat)
        if adapter is not None and executor is not None:
            adapter.set_executor(executor)
            try:
                results[config.device.kind] = _evaluate(config, language, manager, chat)
            finally:
                record_device(run, executor.device)
            run.metrics({f"circuit/{key}": value for key, value in executor.statistics.summary().items()})
        gains = paired(results["base"], list(results.values())[-1]) if adapter is not None else {}
        run.tags({"tasks_digest": _digest(results["base"])})
        for arm, found in results.items():
            run.metrics({f"{arm}/{task}/{metric}": value for (task, metric), value in numbers(found).items()})
            kept = {key: found.get(key) for key in ("results", "groups", "versions", "n-shot", "n-samples")}
            run.text(json.dumps(kept, indent=1, default=str) + "\n", f"tasks_{arm}.json")
            run.text("".join(_lines(found)), f"samples_{arm}.jsonl")
        for (task, metric), gap in gains.items():
            run.metrics({f"gain/{task}/{metric}": gap.value, f"gain/{task}/{metric}_stderr": gap.error})
    _show(name, results, gains)
    if executor is not None:
        say(circuit_line(executor.statistics.summary(), config))
    say(f"run  {store.link('eval-tasks', run.run_id)}")
    return results


def _manager(config: TasksConfig) -> Any:
    """The harness's TaskManager, which knows every name that is asked for."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError("qrun eval tasks: needs lm-evaluation-harness; pip install 'qrun-adapters[tasks]'") from error
    own = Path(config.include_path) if config.include_path else None
    if own is not None and not own.is_dir():
        raise InputError(f"include_path={own}: no such folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(own) if own else None)
    for task in config.tasks:
        if task not in manager.all_tasks:
            close = difflib.get_close_matches(task, manager.all_tasks, n=3) or manager.all_tasks[:3]
            raise InputError(f"tasks={task}: no task of lm-evaluation-harness; near it: {', '.join(close)}")
    return manager


def _evaluate(config: TasksConfig, language: models.LanguageModel, manager: Any, chat: bool) -> dict[str, Any]:
    """The harness's results for the model as it is now."""
    import datasets  # noqa: F401  hub() keeps it from the network
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    scored = HFLM(pretrained=language.model, tokenizer=language.tokenizer, batch_size=config.batch)
    with hub() as away:
        try:
            found = simple_evaluate(
                model=scored, tasks=list(config.tasks), task_manager=manager, num_fewshot=config.fewshot,
                limit=config.limit, log_samples=True, apply_chat_template=chat, fewshot_random_seed=config.seed,
            )  # fmt: skip
        except OSError as error:  # each way of missing a dataset is one
            why = away or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            names = ",".join(config.tasks)
            raise InputError(f"tasks=[{names}]: their data could not be read ({why})") from error
    return dict(found)


def numbers(found: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """(task, metric) -> number, standard errors among them as `<metric>_stderr`; groups count as tasks."""
    values = {}
    for task, metrics in {**found["results"], **(found.get("groups") or {})}.items():
        for name, value in metrics.items():
            metric, comma, kind = name.partition(",")
            if comma and isinstance(value, int | float):
                values[task, metric if kind == "none" else f"{metric}-{kind}"] = float(value)
    return values


def paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[tuple[str, str], Paired]:
    """(task, metric) -> second less first over the same documents, where the harness's number is their mean."""
    gaps = {}
    stated = numbers(first)
    for task, samples in first["samples"].items():
        others = {(s["doc_id"], s["filter"]): s for s in second["samples"][task]}
        for metric, kind in {(m, s["filter"]) for s in samples for m in s["metrics"]}:
            rows = [(s[metric], others[s["doc_id"], kind][metric]) for s in samples if s["filter"] == kind]
            label = metric if kind == "none" else f"{metric}-{kind}"
            if not all(isinstance(value, int | float | np.number) for row in rows for value in row):
                continue
            values = np.array(rows, float)
            if abs(values[:, 0].mean() - stated.get((task, label), np.inf)) < 1e-6:
                change = values[:, 1] - values[:, 0]
                error = float(change.std(ddof=1)) / sqrt(len(change)) if len(change) > 1 else float("nan")
                gaps[task, label] = Paired(float(change.mean()), error, len(change))
    return dict(sorted(gaps.items()))


def _digest(found: Mapping[str, Any]) -> str:
    """16 hex digits over every text that is fed and scored."""
    return text_digest(
        json.dumps([task, s["doc_id"], s["arguments"]], sort_keys=True, default=str)
        for task, samples in sorted(found["samples"].items()) for s in samples
    )  # fmt: skip


def _lines(found: Mapping[str, Any]) -> list[str]:
    kept = ("doc_id", "filter", "target", "filtered_resps", "metrics")
    return [
        json.dumps({"task": task, **{k: s[k] for k in (*kept, *s["metrics"]) if k in s}}, default=str) + "\n"
        for task, samples in found["samples"].items() for s in samples
    ]  # fmt: skip


def _show(title: str, results: Mapping[str, Mapping[str, Any]], gains: Mapping[tuple[str, str], Paired]) -> None:
    shown = {arm: numbers(found) for arm, found in results.items()}
    rows = []
    for task, metric in shown["base"]:
        if metric.endswith("_stderr"):
            continue
        cells = []
        for found in shown.values():
            error = found.get((task, f"{metric}_stderr"))
            cells.append(f"{found[task, metric]:.4f}" + ("" if error is None else f" +- {error:.4f}"))
        gap = gains.get((task, metric))
        rows.append([task, metric, *cells, *([f"{gap.value:+.4f}", gap.words()] if gap else ["", ""] if gains else [])])
    heads = ["paired difference", "95% interval"] if gains else []
    table(title, ["task", "metric", *shown, *heads], rows, "numbers and standard errors of lm-evaluation-harness")
