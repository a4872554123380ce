"""`qrun eval perplexity` and `qrun eval compare`.

qrun eval perplexity adapter.path=results/runs/<run>/adapter protocol=hf_strided
qrun eval compare <run> <run>:base
"""

from pathlib import Path
from typing import Any

from qrun.config.compose import config_hash
from qrun.config.verbs import PerplexityConfig
from qrun.errors import InputError
from qrun.language.models import model_shape


def measure(config: PerplexityConfig) -> dict[str, Any]:
    """Measure the model, and the model with its adapter, on one task; returns the measurements by name."""
    model_shape(config.model)
    if config.device.kind != "exact" and not config.adapter.path:
        raise InputError(
            f"device={config.device.kind}: no adapter to run there; give adapter.path=<folder written by `qrun train`>"
        )
    from qrun.adapters.saving import read
    from qrun.evaluation.perplexity import difference
    from qrun.recipes.device import circuit_line, open_executor
    from qrun.recipes.record import (
        Shelf,
        attach_saved,
        flat_params,
        measured,
        open_record,
        record_measurements,
        result_table,
        tags,
    )
    from qrun.report.screen import say
    from qrun.tracking.store import Store
    from qrun.training.interrupt import Interrupt

    saved = read(Path(config.adapter.path).expanduser()) if config.adapter.path else None
    opened = Shelf().open(config)
    language = opened.language
    adapter = attach_saved(language, saved, str(config.adapter.path)) if saved else None
    executor = (
        open_executor(config, saved.config.dim, config.readout.sign)
        if saved and config.device.kind != "exact"
        else None
    )
    store = Store(config.results)
    store.check_writable()
    kind = f"b{saved.config.dim}-{config.device.kind}" if saved else "base"
    name = config.name or f"{config.model.name}-{kind}-{opened.task.statement['protocol']}-{config_hash(config)}"
    params = {**flat_params(config), "parameters": adapter.count() if adapter else 0}
    if saved:
        params["adapter.dim"] = saved.config.dim
    with Interrupt().installed(), store.run("eval-perplexity", name, params, tags(config, opened)) as run:
        open_record(run, config, opened)
        results, gain, penalty = {}, None, None
        if adapter is None:
            results["base"] = measured("model", language.model, opened.task, config.evaluation.batch)
        else:
            with adapter.disabled():
                results["base"] = measured("frozen model", language.model, opened.task, config.evaluation.batch)
            results["adapted"] = measured("with adapter", language.model, opened.task, config.evaluation.batch)
            last = "adapted"
            if executor is not None:
                last = config.device.kind
                adapter.set_executor(executor)
                results[last] = measured(f"on {last}", language.model, opened.task, config.evaluation.batch)
                penalty = difference(results[last], results["adapted"], config.evaluation.resamples, config.seed)
                run.metrics({f"circuit/{key}": value for key, value in executor.statistics.summary().items()})
            gain = difference(results["base"], results[last], config.evaluation.resamples, config.seed)
        record_measurements(run, results, gain)
        if penalty is not None:
            known = penalty.low == penalty.low
            run.metrics(
                {
                    "penalty": penalty.value,
                    **({"penalty_low": penalty.low, "penalty_high": penalty.high} if known else {}),
                }
            )
    first = next(iter(results.values()))
    caption = (
        f"{len(first.nats)} documents, {sum(first.tokens):,} tokens; protocol "
        f"{first.statement['protocol']} {first.fingerprint}"
    )
    result_table(name, results, gain, caption, penalty)
    if executor is not None:
        say(circuit_line(executor.statistics.summary(), config))
    say(f"run  {store.url('eval-perplexity', run_id=run.run_id)}  (after `qrun ui`)")
    return results


def compare(first: str, second: str, results: str) -> None:
    """Print the paired difference first - second of two recorded measurements."""
    from qrun.evaluation.perplexity import difference
    from qrun.report.screen import table

    a, b = recorded(first, results), recorded(second, results)
    gap = difference(a, b, 9999, 0)
    rows = [
        [first, f"{a.perplexity:.4f}", ""],
        [second, f"{b.perplexity:.4f}", ""],
        ["difference", f"{gap.value:+.4f}", f"[{gap.low:.4f}, {gap.high:.4f}]"],
    ]
    table(
        "paired comparison",
        ["", f"{a.statement['unit']} perplexity", "95% interval"],
        rows,
        f"{gap.units} documents, protocol {a.fingerprint}",
    )


def recorded(word: str, results: str) -> Any:
    """A measurement by file, run name or run id; `:base` or `:adapted` after a run picks one of its two."""
    from qrun.evaluation.perplexity import Measurement
    from qrun.tracking.store import Store

    if Path(word).is_file():
        try:
            return Measurement.from_json(Path(word).read_text())
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{word}: not a recorded perplexity ({type(error).__name__}: {error})") from error
    name, _, which = word.partition(":")
    store = Store(results)
    run = store.find(name)
    which = which or ("adapted" if "adapted/perplexity" in run.data.metrics else "base")
    if f"{which}/perplexity" not in run.data.metrics:
        raise InputError(f"{word}: the run has recorded no such perplexity (status {run.info.status})")
    return Measurement.from_json(store.artifact_text(run.info.run_id, f"perplexity_{which}.json"))
