"""`qrun sweep controls`: what other trained matrices, and untrained ones, do at the same sites with the same steps.

qrun sweep controls                 Cayley, OFT, BOFT, LoRA, diagonal, free blocks, dense; K = 0 and a shuffled rotation
                                    as nulls; 3 seeds
"""

import dataclasses
from typing import Any

import numpy as np

from qrun.adapters.sites import count_parameters, matched_rank, select, sites
from qrun.cells.pool import Cell
from qrun.cells.schedule import Scene, open_study
from qrun.cells.works import (
    TRAIN_KEYS,
    NoisyConfig,
    NoisyWork,
    at_sites,
    control_lr,
    noisy_cell,
    training_cell,
    training_config,
    usable_dims,
)
from qrun.config.schema import AdapterConfig, DeviceConfig, Method, NoiseConfig
from qrun.config.verbs import ControlsConfig, SiteSet
from qrun.evaluation.trends import mean_interval

NULLS = ("K = 0 on the device", "adapter on the device", "shuffled K, exact")


def method_config(adapter: AdapterConfig, method: Method, shape: Any) -> AdapterConfig:
    """The control at the adapter's sites.

    LoRA at the rank of equal parameters, BOFT with three factors of half blocks, which have about as many.
    """
    selected = select(sites(shape), adapter.projections, adapter.layers)
    changes: dict[str, Any] = {"method": method}
    if method is Method.lora:
        changes["rank"] = matched_rank(selected, count_parameters(selected, adapter) or 0)
    if method is Method.boft:
        changes |= {"dim": max(2, adapter.dim // 2), "factors": 3 if adapter.dim == 4 else 2}
    return dataclasses.replace(adapter, **changes)


def control_cells(
    config: ControlsConfig, dims: dict[SiteSet, list[int]], shape: Any, weights: str, data: dict[str, str]
) -> dict[tuple[Any, ...], Cell]:
    """(site set, b, method, seed) -> training cell."""
    cells: dict[tuple[Any, ...], Cell] = {}
    lrs = {"cayley": config.training.lr, **{name: control_lr(config, name) for name in config.study.controls}}
    for chosen, usable in dims.items():
        for dim in usable:
            own = dataclasses.replace(at_sites(config.adapter, chosen), dim=dim)
            for name, lr in lrs.items():
                adapter = own if name == "cayley" else method_config(own, Method(name), shape)
                for seed in config.study.seeds:
                    cell = training_config(config, adapter, seed, lr)
                    label = f"sites={chosen.value} {'' if name == 'cayley' else name + ' '}b={dim} seed={seed}"
                    cells[chosen, dim, name, seed] = training_cell(cell, weights, data, label)
    return cells


def null_cells(
    config: ControlsConfig, cells: dict[tuple[Any, ...], Cell], runs: dict[str, Any], weights: str, data: dict[str, str]
) -> dict[tuple[Any, ...], Cell]:
    """(site set, b, null, seed) -> measurement of the trained adapter's place taken by something untrained, or by
    its circuits."""
    found: dict[tuple[Any, ...], Cell] = {}
    for (chosen, dim, name, seed), cell in cells.items():
        if name != "cayley" or dim & (dim - 1):
            continue
        trained: Any = cell.work
        for null, values, device in (
            (NULLS[0], "zero", True),
            (NULLS[1], "trained", True),
            (NULLS[2], "shuffled", False),
        ):
            values_of = {key: getattr(trained.config, key) for key in TRAIN_KEYS}
            where = (
                {"device": config.device, "noise": config.noise}
                if device
                else {"device": DeviceConfig(), "noise": NoiseConfig()}
            )
            noisy = NoisyConfig(**{**values_of, **where, "sign": config.readout.sign})
            run = runs[cell.key]
            label = f"sites={chosen.value} b={dim} seed={seed} {null}"
            work = NoisyWork(
                noisy,
                run.info.run_id,
                f"{config.model.name}-b{dim}-s{seed}-{values}-{config.device.kind if device else 'exact'}",
                values,
            )
            found[chosen, dim, null, seed] = noisy_cell(work, weights, data, cell.key, label)
    return found


def sweep_controls(config: ControlsConfig, dry: bool = False) -> dict[str, Any]:
    """Train and measure all of them; table, figure and the verdicts on efficiency and on OFT."""
    from qrun.language.models import model_shape

    dims, said = usable_dims(config)
    if dry:
        from qrun.studies.dry import show

        return show(
            "sweep controls", list(control_cells(config, dims, model_shape(config.model), "", {}).values()), said
        )
    from qrun.studies.result import conclude

    with open_study(config, "controls", said) as scene:
        cells = control_cells(config, dims, scene.opened.language.shape, scene.weights, scene.data)
        found = scene.run(list(cells.values()))
        nulls = null_cells(config, cells, found, scene.weights, scene.data) if config.device.kind != "exact" else {}
        found |= scene.run(list(nulls.values()))
        values = summarise(scene, {point: found[cell.key] for point, cell in {**cells, **nulls}.items()})
        conclude(scene.parent, scene.store, judge(config, values))
    return values


def summarise(scene: Scene, runs: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    """`<site set>-<b>` -> method -> parameters, gain, intervals, largest relative difference to the adapter's
    perplexity."""
    seeds: list[int] = scene.config.study.seeds
    groups: dict[str, Any] = {}
    for chosen, dim, name in dict.fromkeys(point[:3] for point in runs):
        these = [runs[chosen, dim, name, seed] for seed in seeds]
        rows = [run.data.metrics for run in these]
        gains, which = [row["gain"] for row in rows], "noisy" if name in NULLS else "adapted"
        low, high = mean_interval(gains)
        limits = scene.documents_interval(these, these, ("base", which))
        pairs = [
            (row[f"{which}/perplexity"], runs[chosen, dim, "cayley", seed].data.metrics["adapted/perplexity"])
            for row, seed in zip(rows, seeds, strict=True)
        ]
        groups.setdefault(f"{chosen.value}-{dim}", {})[name] = {
            "parameters": int(rows[0]["parameters"]), "gain": float(np.mean(gains)), "low": low, "high": high,
            "base": rows[0]["base/perplexity"],
            "documents_low": limits[0], "documents_high": limits[1],
            "relative_difference": max(abs(a - b) / b for a, b in pairs),
        }  # fmt: skip
    return groups


def judge(config: ControlsConfig, values: dict[str, Any]) -> Any:
    """Tables, verdicts, and every control that beats the adapter as a finding."""
    from qrun.studies.result import StudyResult, Table, Verdict, interval

    tables, negatives, equal = [], [], []
    efficient: list[tuple[str, dict[str, float], str, dict[str, Any]]] = []
    seeds = len(config.study.seeds)
    for group, methods in values.items():
        where, _, b = group.partition("-")
        rows = []
        for name, row in methods.items():
            per = f"{1000 * row['gain'] / row['parameters']:+.4f}" if row["parameters"] else "-"
            shown = [
                f"{row['parameters']:,}",
                f"{row['gain']:+.3f}",
                interval(row["low"], row["high"]),
                interval(row["documents_low"], row["documents_high"]),
            ]
            rows.append([name, *shown, per])
        base, own = next(iter(methods.values()))["base"], methods["cayley"]
        columns = ["", "parameters", "gain", "95% over seeds", "95% over documents", "gain per 1,000 parameters"]
        caption = (
            f"same sites, windows, steps; learning rate of each method fixed beforehand; device "
            f"{config.device.kind}, noise {config.noise.name}"
        )
        tables.append(
            Table(f"{config.model.name}, sites={where}, b = {b}: frozen model {base:.3f}", columns, rows, caption)
        )
        trained = {n: r for n, r in methods.items() if r["parameters"] and n not in NULLS and n != "cayley"}
        better = [
            f"{n} ({r['gain']:+.3f}, {r['parameters']:,} parameters)"
            for n, r in trained.items()
            if n != "oft" and r["gain"] > own["gain"]
        ]
        if better:
            negatives.append(
                f"sites={where}, b = {b}: the adapter gains {own['gain']:+.3f} with {own['parameters']:,} "
                f"parameters; more is gained by {', '.join(better)}"
            )
        if "oft" in methods:
            equal.append((group, methods["oft"]["relative_difference"]))
        if "lora" in methods:
            each = {
                n: methods[n]["gain"] / methods[n]["parameters"] for n in ("cayley", "lora", "diagonal") if n in methods
            }
            efficient.append((group, each, max(("cayley", "lora"), key=lambda n: each[n]), methods))
    verdicts = []
    if equal:
        most = max(value for _, value in equal)
        ours = f"perplexity of trained OFT and adapter differ by at most {most:.1e} (relative, over seeds)"
        word = "confirmed" if most < 1e-4 else "not confirmed"
        verdicts.append(
            Verdict(
                "oft",
                ours,
                seeds,
                "PEFT's OFT, exact Cayley map, learning rate and clipping in its coordinates",
                word,
                "It is the same map.",
            )
        )
    if efficient:
        parts = [f"{g}: " + ", ".join(f"{n} {1000 * v:+.4f}" for n, v in per.items()) for g, per, _, _ in efficient]
        best = [winner for _, _, winner, _ in efficient]
        word = "reproduced" if set(best) == {"cayley"} else "in part" if "cayley" in best else "not reproduced"
        pairs = [(g, m["lora"], m["cayley"]) for g, _, _, m in efficient]
        control = "; ".join(
            f"LoRA {g}: {a['gain']:+.3f} with {a['parameters']:,} parameters (adapter {b['gain']:+.3f} with "
            f"{b['parameters']:,})"
            for g, a, b in pairs
        )
        why = (
            "Gain per 1,000 parameters falls with their number for every method, so it favours the smallest; "
            "the verdict is about LoRA, the low-rank one."
        )
        verdicts.append(Verdict("efficiency", "per 1,000 parameters, " + "; ".join(parts), seeds, control, word, why))
    return StudyResult("controls", config.model.name, tables, values, verdicts, negatives)
