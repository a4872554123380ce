"""`qrun sweep dim` and `qrun sweep noise`: the paper's curve over block dimension, and what two-qubit errors leave of it.

qrun sweep dim                      6 dimensions x 5 seeds, noiseless
qrun sweep noise                    4 dimensions x 9 error rates x 3 seeds, with the adapters of the dim sweep where they exist
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from qrun.adapters.sites import check_divides, select, sites
from qrun.config.schema import NoiseConfig, SweepConfig, TrainConfig
from qrun.evaluation.trends import mean_interval, monotone_trend, zero_crossing
from qrun.language.models import model_shape
from qrun.studies.cells import Cell, cell_key, run_cells, study

TRAIN_KEYS = [f.name for f in dataclasses.fields(TrainConfig)]


def check(config: SweepConfig) -> None:
    """Every block dimension must divide every chosen site; told before torch is imported."""
    shape = model_shape(config.model)
    if shape is not None:
        selected = select(sites(shape), config.adapter.projections, config.adapter.layers)
        for dim in config.study.dims:
            check_divides(selected, dim, config.adapter.side)


def training_config(config: SweepConfig, dim: int, seed: int) -> TrainConfig:
    """The cell's config: that of `qrun train` with the same words and the learning rate scaled to b."""
    values = {name: getattr(config, name) for name in TRAIN_KEYS}
    training = dataclasses.replace(config.training, lr=config.training.lr * (4 / dim) ** config.study.lr_exponent)
    adapter = dataclasses.replace(config.adapter, dim=dim)
    return TrainConfig(**{**values, "adapter": adapter, "training": training, "seed": seed, "name": None})


def training_cell(config: SweepConfig, opened: Any, dim: int, seed: int) -> Cell:
    from qrun.studies.train import train

    cell = training_config(config, dim, seed)
    key = cell_key(cell, opened.language.identity["weights"], opened.corpus.digests)
    cell.name = f"{config.model.name}-b{dim}-s{seed}-{key[:8]}"

    def run(tags: dict[str, str]) -> None:
        train(cell, resume=True, opened=opened, cell=tags)

    return Cell(f"b={dim} seed={seed}", key, run)


def sweep_dim(config: SweepConfig) -> dict[int, Any]:
    """Train every (b, seed), then table, figure and the test of "monotonically improving with block dimension"."""
    check(config)
    from qrun.report.figures import dimension_curve
    from qrun.report.screen import say, table
    from qrun.studies.record import flat_params, open_all, open_record, tags
    from qrun.tracking.store import Store

    opened, store = open_all(config), Store(config.results)
    grid = [(dim, seed) for dim in config.study.dims for seed in config.study.seeds]
    cells = {point: training_cell(config, opened, *point) for point in grid}
    key = cell_key(config, opened.language.identity["weights"], opened.corpus.digests, axes=dataclasses.asdict(config.study), verb="dim")
    with study(store, config.name or f"{config.model.name}-dim-{key[:8]}", key, flat_params(config), tags(config, opened)) as parent:
        open_record(parent, config, opened)
        runs = run_cells(store, parent, list(cells.values()))
        metrics = {point: runs[cell.key].data.metrics for point, cell in cells.items()}
        rows, summary = [], {}
        for dim in config.study.dims:
            adapted = [metrics[dim, seed]["adapted/perplexity"] for seed in config.study.seeds]
            gains = [metrics[dim, seed]["gain"] for seed in config.study.seeds]
            low, high = mean_interval(gains)
            summary[dim] = {"perplexity": float(np.mean(adapted)), "gain": float(np.mean(gains)), "low": low, "high": high, "seeds": len(gains)}
            count = int(metrics[dim, config.study.seeds[0]]["parameters"])
            summary[dim]["parameters"] = count
            rows.append([f"b = {dim}", f"{count:,}", f"{np.mean(adapted):.3f}", f"{np.mean(gains):+.3f}", _interval(low, high)])
        base = metrics[grid[0]]["base/perplexity"]
        trend = monotone_trend([[metrics[dim, seed]["adapted/perplexity"] for dim in config.study.dims] for seed in config.study.seeds])
        verdict = trend_words(trend, config)
        parent.json({"base_perplexity": base, "dims": summary, "trend": trend, "verdict": verdict}, "result.json")
        parent.figure(dimension_curve(summary, base, f"{config.model.name}, {config.data.name}, {len(config.study.seeds)} seeds"), "figures/dim.png")
        parent.metrics({f"b{dim}/gain": values["gain"] for dim, values in summary.items()})
        parent.note(verdict)
    table(f"{parent.name}: frozen model {base:.3f}", ["", "parameters", "perplexity", "gain", "95% over seeds"], rows, verdict)
    say(f"run  {store.url('study', run_id=parent.run_id)}  (after `qrun ui`)")
    return summary


def trend_words(trend: dict[str, float], config: SweepConfig) -> str:
    """Verdict on monotonicity, with its test."""
    if math.isnan(trend["p"]):
        return "monotonicity not tested: it needs two seeds and three dimensions or more"
    held = trend["p"] < 0.05 and trend["violations"] == 0
    return (
        f"perplexity falls with b: Page trend test over {len(config.study.seeds)} seeds p = {trend['p']:.2g}, "
        f"{trend['violations']:.0f} rises between neighbouring means: {'held' if held else 'not held'} here; parameters grow with b too"
    )


def sweep_noise(config: SweepConfig) -> dict[int, Any]:
    """Measure every adapter at every error rate; phase diagram and the critical error rate of each b, where the gain crosses zero."""
    check(config)
    from qrun.report.figures import phase_diagram
    from qrun.report.screen import say, table
    from qrun.studies.record import flat_params, open_all, open_record, tags
    from qrun.tracking.store import Store

    opened, store = open_all(config), Store(config.results)
    grid = [(dim, seed) for dim in config.study.dims for seed in config.study.seeds]
    columns: list[float | str] = [0.0, *config.study.rates, "uniform"]
    trained = {point: training_cell(config, opened, *point) for point in grid}
    key = cell_key(config, opened.language.identity["weights"], opened.corpus.digests, axes=dataclasses.asdict(config.study), verb="noise")
    with study(store, config.name or f"{config.model.name}-noise-{key[:8]}", key, flat_params(config), tags(config, opened)) as parent:
        open_record(parent, config, opened)
        adapters = run_cells(store, parent, list(trained.values()))
        noisy = {(*point, column): noisy_cell(config, opened, store, point, column, adapters[trained[point].key]) for point in grid for column in columns}
        runs = run_cells(store, parent, list(noisy.values()))
        metrics = {point: runs[cell.key].data.metrics for point, cell in noisy.items()}
        base = adapters[trained[grid[0]].key].data.metrics["base/perplexity"]
        summary: dict[int, Any] = {}
        for dim in config.study.dims:
            gains = np.array([[metrics[dim, seed, column]["gain"] for column in columns] for seed in config.study.seeds])
            crossing = zero_crossing(config.study.rates, gains[:, 1:-1])
            exact = [adapters[trained[dim, seed].key].data.metrics["gain"] for seed in config.study.seeds]
            relative = 1 - gains.mean(0) / base
            summary[dim] = {
                "noiseless_gain": float(np.mean(exact)),
                "relative_perplexity": relative.tolist(),
                "gains": gains.tolist(),
                "critical_rate": crossing,
            }
        result = {"base_perplexity": base, "columns": [str(c) for c in columns], "preset": config.noise.name, "dims": summary}
        parent.json(result, "result.json")
        parent.figure(phase_diagram(summary, config.study.rates, config.noise.cz, f"{config.model.name}, noise {config.noise.name}"), "figures/noise.png")
        parent.metrics({f"b{dim}/critical_rate": v["critical_rate"]["rate"] for dim, v in summary.items() if not math.isnan(v["critical_rate"]["rate"])})
    caption = f"perplexity relative to the frozen model's {base:.3f} (below 1 is a gain); other rates in the proportions of noise={config.noise.name}"
    titles = ["shots alone", *(f"{rate:g}" for rate in config.study.rates), "uniform output"]
    rows = [["gain, exact", *(f"{v['noiseless_gain']:+.3f}" for v in summary.values())]]
    rows += [[title, *(f"{v['relative_perplexity'][index]:.4f}" for v in summary.values())] for index, title in enumerate(titles)]
    rows += [["critical rate", *(crossing_words(v["critical_rate"]) for v in summary.values())]]
    table(f"{parent.name}: relative perplexity over the two-qubit error rate", ["", *(f"b = {dim}" for dim in summary)], rows, caption)
    say(f"run  {store.url('study', run_id=parent.run_id)}  (after `qrun ui`)")
    return summary


def noise_at(config: SweepConfig, column: float | str) -> NoiseConfig:
    """The preset scaled to a two-qubit error rate; 0 is shots alone, "uniform" a circuit that has forgotten everything."""
    if column == "uniform":
        return dataclasses.replace(config.noise, block=1.0, read_1_given_0=0.0, read_0_given_1=0.0, factor=1.0)
    return dataclasses.replace(config.noise, factor=float(column) / config.noise.cz)


def noisy_cell(config: SweepConfig, opened: Any, store: Any, point: tuple[int, int], column: float | str, trained: Any) -> Cell:
    """One adapter on the noisy device at one error rate."""
    from qrun.adapters.linear import detach
    from qrun.adapters.saving import read
    from qrun.evaluation.perplexity import Measurement, difference
    from qrun.studies.device import open_executor
    from qrun.studies.record import attach_saved, flat_params, measured, record_measurements, tags

    dim, seed = point
    cell = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, dim=dim), seed=seed, noise=noise_at(config, column))
    key = cell_key(cell, opened.language.identity["weights"], opened.corpus.digests, adapter=trained.data.tags["cell_key"])

    def run(cell_tags: dict[str, str]) -> None:
        run_id = trained.info.run_id
        base, exact = (Measurement.from_json(store.artifact_text(run_id, f"perplexity_{which}.json")) for which in ("base", "adapted"))
        folder = Path(store.folder) / "runs" / trained.info.run_name / "adapter"
        adapter = attach_saved(opened.language, read(folder), folder)
        try:
            executor = open_executor(cell, dim)
            adapter.set_executor(executor)
            params = {**flat_params(cell), "study.rate": column, "trained_by": run_id}
            with store.run("study", f"{config.model.name}-b{dim}-s{seed}-cz{column}", params, {**tags(cell, opened), **cell_tags}) as record:
                result = measured("on circuits", opened.language.model, opened.task, cell.evaluation.batch)
                gain = difference(base, result, cell.evaluation.resamples, config.seed)
                penalty = difference(result, exact, cell.evaluation.resamples, config.seed)
                record_measurements(record, {"base": base, "noisy": result}, gain)
                record.metrics({"penalty": penalty.value, "rate": -1.0 if column == "uniform" else float(column)})
                record.metrics({f"circuit/{name}": value for name, value in executor.statistics.summary().items()})
        finally:
            detach(opened.language.model, adapter)

    return Cell(f"b={dim} seed={seed} cz={column}", key, run)


def crossing_words(crossing: dict[str, Any]) -> str:
    """Critical error rate in a table cell."""
    if crossing["side"]:
        return f"{crossing['side']} {crossing['bound']:g}"
    return f"{crossing['rate']:.2g} {_interval(crossing['low'], crossing['high'], '.2g')}"


def _interval(low: float, high: float, form: str = "+.3f") -> str:
    return f"[{low:{form}}, {high:{form}}]" if not math.isnan(low) else "one seed"
