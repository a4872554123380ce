"""`qrun eval perplexity` and `qrun eval compare`.

qrun eval perplexity adapter.path=results/runs/<run>/adapter protocol=hf_strided
qrun eval compare <run> <run>:base
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from qrun.adapters.executor import CircuitExecutor
from qrun.adapters.linear import Adapter
from qrun.adapters.methods import spec
from qrun.adapters.saving import read
from qrun.cells.workspace import Opened, Workspace
from qrun.config.compose import config_hash
from qrun.config.tree import used
from qrun.config.verbs import PerplexityConfig
from qrun.errors import InputError
from qrun.evaluation.measurement import Difference, Measurement, difference
from qrun.foreign import said
from qrun.recipes.device import circuit_line, open_executor
from qrun.recipes.measuring import Way, attach_saved, measured, narrowed, rounding
from qrun.recipes.record import (
    EVALUATIONS,
    cz_error,
    device_tags,
    flat_params,
    interval_metrics,
    measured_words,
    open_record,
    record_device,
    record_measurements,
    record_text,
    result_table,
    tags,
)
from qrun.recipes.tasks import saved
from qrun.report.screen import say, table
from qrun.tracking.store import Store
from qrun.training.interrupt import Interrupt


@dataclass(frozen=True)
class Measured:
    """What an evaluation left."""

    run: str  # name and id in the store
    run_id: str
    measurements: dict[str, Measurement] = field(repr=False)  # base, adapted, and the device's by its name
    gain: Difference | None  # base less the last of them
    penalty: Difference | None  # the device's less adapted
    circuits: dict[str, float] = field(repr=False)  # statistics of the circuits: sign flips, relative error ...

    @property
    def perplexity(self) -> dict[str, float]:
        """By name, as `measurements`."""
        return {name: found.perplexity for name, found in self.measurements.items()}


def measure(config: PerplexityConfig) -> dict[str, Measurement]:
    """Measure the model, and the model with its adapter, on one task; returns the measurements by name."""
    found = read(Path(config.adapter.path)) if config.adapter.path else None
    opened = Workspace().open(config)
    adapter = attach_saved(opened.language, found, str(config.adapter.path)) if found else None
    return measure_in(opened, adapter, config).measurements


def measure_in(opened: Opened, adapter: Adapter | None, config: PerplexityConfig) -> Measured:
    """The recipe on an opened model with that adapter in it, if any."""
    evaluation = config.evaluation
    circuits = config.device.kind != "exact"
    executor = open_executor(config, adapter.config) if adapter and circuits else None
    store = Store(config.results, config.tracking.uri)
    store.check_writable()
    say(f"runs go to {store.where}")
    kind = f"{spec(adapter.config.method).label(adapter.config)}-{config.device.kind}" if adapter else "base"
    name = config.name or f"{config.model.name}-{kind}-{opened.task.statement['protocol']}-{config_hash(config)}"
    params = {**flat_params(config), "parameters": adapter.count() if adapter else 0}
    if adapter:
        params |= {"adapter.dim": adapter.config.dim, "adapter.method": adapter.config.method}
    files = {"adapter_files": " ".join(saved(config.adapter) or [])} if config.adapter.path else {}
    words = {**tags(config, opened), **device_tags(config), **files, **used()}
    gaps: dict[str, Difference] = {}
    with Interrupt().installed(), store.run("eval-perplexity", name, params, words) as run:
        open_record(run, config, opened)
        if adapter is None:
            results = {"base": measured("model", opened, config, None)}
            run.metrics(rounding(opened, config))
            results, opened = narrowed(results, {"base": nullcontext}, opened, config, None)
        else:
            with adapter.disabled():
                results = {"base": measured("frozen model", opened, config, adapter)}
                run.metrics(rounding(opened, config))
            results["adapted"] = measured("with adapter", opened, config, adapter)
            last = "adapted"
            ways: dict[str, Way] = {"base": adapter.disabled, "adapted": nullcontext}
            if executor is None:
                results, opened = narrowed(results, ways, opened, config, adapter)
            else:
                last = config.device.kind
                ways[last] = partial(executing, adapter, executor)
                try:
                    with ways[last]():
                        results[last] = measured(f"on {last}", opened, config, adapter)
                    results, opened = narrowed(results, ways, opened, config, adapter)
                finally:  # what was sent belongs to the record of a failed run too
                    record_device(run, executor.device)
                gap = difference(results[last], results["adapted"], evaluation.resamples, config.seed)
                gaps["penalty of the device"] = gap
                run.metrics(interval_metrics("penalty", gap))
                run.metrics({f"circuit/{key}": value for key, value in executor.statistics.summary().items()})
            gaps["gain"] = difference(results["base"], results[last], evaluation.resamples, config.seed)
        record_text(run, opened)
        record_measurements(run, results, gaps.get("gain"))
        if executor is not None:
            run.metrics(cz_error(config))
    store.view("eval-perplexity", "perplexities", EVALUATIONS)
    first = next(iter(results.values()))
    caption = f"{measured_words(first)}; protocol {first.statement['protocol']} {first.fingerprint}"
    result_table(name, results, gaps, caption)
    statistics = executor.statistics.summary() if executor else {}
    if statistics:
        say(circuit_line(statistics, config))
    say(f"run  {store.link('eval-perplexity', run.run_id)}")
    say(f"all  {store.link('eval-perplexity', view='perplexities')}")
    found = (gaps.get("gain"), gaps.get("penalty of the device"))
    return Measured(name, run.run_id, results, *found, statistics)


@contextmanager
def executing(adapter: Adapter, executor: CircuitExecutor) -> Iterator[None]:
    """The blocks run as circuits."""
    adapter.set_executor(executor)
    try:
        yield
    finally:
        adapter.set_executor(None)


def compare(first: str, second: str, results: str, tracking_uri: str | None = None) -> None:
    """Print the paired difference first - second of two recorded measurements."""
    store = Store(results, tracking_uri)
    a, b = recorded(first, store), recorded(second, store)
    gap = difference(a, b, 9999, 0)
    rows = [[first, f"{a.perplexity:.4f}", ""], [second, f"{b.perplexity:.4f}", ""]]
    rows.append(["difference", f"{gap.value:+.4f}", gap.words(".4f")])
    unit = f"{a.statement['unit']} perplexity"
    table("paired comparison", ["", unit, "95% interval"], rows, f"{measured_words(a)}, protocol {a.fingerprint}")


def recorded(word: str, store: Store) -> Measurement:
    """A measurement by file, run name or run id; `:base`, `:adapted` or `:<device>` after a run picks one of its, by
    default the last, its headline."""
    if os.path.isfile(word):
        try:
            found = Measurement.from_json(Path(word).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{word}: not a recorded perplexity ({said(error)})") from error
        if not found.whole:
            raise InputError(f"{word}: not a recorded perplexity (documents, tokens or statement are missing)")
        return found
    name, _, which = word.partition(":")
    run = store.find(name)
    own = (run.data.tags.get("device"), "adapted", "base")
    which = which or next((kind for kind in own if f"{kind}/perplexity" in run.data.metrics), "base")
    if f"{which}/perplexity" not in run.data.metrics:
        raise InputError(f"{word}: the run has recorded no such perplexity (status {run.info.status})")
    return Measurement.from_json(store.artifact_text(run.info.run_id, f"perplexity_{which}.json"))
