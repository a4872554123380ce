"""`qrun sweep dim`: noiseless perplexity over block dimension, seeds and sites, with a LoRA of equal parameters beside
it.

qrun sweep dim                      6 dimensions x 5 seeds x two site sets, then the LoRA curve; monotonicity by Page's
                                    trend test
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from qrun.adapters.sites import count_parameters, matched_rank, select, sites
from qrun.cells.pool import Cell
from qrun.cells.schedule import Scene, open_study
from qrun.cells.works import at_sites, training_cell, training_config, usable_dims
from qrun.config.schema import Method
from qrun.config.verbs import DimSweepConfig, SiteSet
from qrun.evaluation.trends import mean_interval, monotone_trend


def dim_cells(
    config: DimSweepConfig, dims: dict[SiteSet, list[int]], shape: Any, weights: str, data: dict[str, str]
) -> dict[tuple[Any, ...], Cell]:
    """(site set, method, b, seed) -> cell."""
    cells: dict[tuple[Any, ...], Cell] = {}
    for chosen, usable in dims.items():
        for dim in usable:
            adapter = dataclasses.replace(at_sites(config.adapter, chosen), dim=dim)
            for seed in config.study.seeds:
                cell = training_config(config, adapter, seed, config.training.lr)
                cells[chosen, "cayley", dim, seed] = training_cell(
                    cell, weights, data, f"sites={chosen.value} b={dim} seed={seed}"
                )
            if "lora" in config.study.controls:
                selected = select(sites(shape), adapter.projections, adapter.layers)
                rank = matched_rank(selected, count_parameters(selected, adapter) or 0)
                lora = dataclasses.replace(adapter, method=Method.lora, rank=rank, dim=4)
                for seed in config.study.control_seeds:
                    cell = training_config(config, lora, seed, config.study.control_lr["lora"])
                    cells[chosen, "lora", dim, seed] = training_cell(
                        cell, weights, data, f"sites={chosen.value} LoRA r={rank} (for b={dim}) seed={seed}"
                    )
    return cells


def sweep_dim(config: DimSweepConfig, dry: bool = False) -> dict[str, Any]:
    """Train every cell, then table, figure and the test of "monotonically improving with block dimension".

    Returns the numbers.
    """
    from qrun.language.models import model_shape

    dims, said = usable_dims(config)
    unknown = set(config.study.controls) - {"lora"}
    if unknown:
        from qrun.errors import InputError

        raise InputError(
            f"study.controls={sorted(unknown)}: this study's curve is lora's; the others are in `qrun sweep controls`"
        )
    if dry:
        from qrun.studies.dry import show

        return show("sweep dim", list(dim_cells(config, dims, model_shape(config.model), "", {}).values()), said)
    from qrun.studies.result import conclude

    with open_study(config, "dim", said) as scene:
        cells = dim_cells(config, dims, scene.opened.language.shape, scene.weights, scene.data)
        found = scene.run(list(cells.values()))
        runs = {point: found[cell.key] for point, cell in cells.items()}
        values = {chosen.value: summarise(scene, runs, chosen, usable) for chosen, usable in dims.items()}
        scene.parent.metrics(
            {f"{name}/b{b}/gain": row["gain"] for name, v in values.items() for b, row in v["dims"].items()}
        )
        conclude(scene.parent, scene.store, judge(config, values))
    return values


def summarise(scene: Scene, runs: dict[tuple[Any, ...], Any], chosen: SiteSet, dims: list[int]) -> dict[str, Any]:
    """Means, intervals, the trend test and the LoRA curve of one site set."""
    config: DimSweepConfig = scene.config
    metrics = {point: run.data.metrics for point, run in runs.items()}
    seeds, rows = config.study.seeds, {}
    for dim in dims:
        cells = [metrics[chosen, "cayley", dim, seed] for seed in seeds]
        own = [runs[chosen, "cayley", dim, seed] for seed in seeds]
        gains = [cell["gain"] for cell in cells]
        low, high = mean_interval(gains)
        limits = scene.documents_interval(own, own, ("base", "adapted"))
        row: dict[str, Any] = {
            "parameters": int(cells[0]["parameters"]),
            "perplexity": float(np.mean([c["adapted/perplexity"] for c in cells])), "gain": float(np.mean(gains)),
            "low": low, "high": high, "documents_low": limits[0], "documents_high": limits[1],
            "blocks": {k.partition("/")[2]: float(np.mean([c[k] for c in cells]))
            for k in cells[0] if k.startswith("blocks/")},
        }  # fmt: skip
        if "lora" in config.study.controls:
            lora = [metrics[chosen, "lora", dim, seed] for seed in config.study.control_seeds]
            row["lora"] = {
                "parameters": int(lora[0]["parameters"]),
                "gain": float(np.mean([c["gain"] for c in lora])),
                "seeds": len(lora),
            }
        rows[dim] = row
    base = metrics[chosen, "cayley", dims[0], seeds[0]]["base/perplexity"]
    trend = monotone_trend(
        [[metrics[chosen, "cayley", dim, seed]["adapted/perplexity"] for dim in dims] for seed in seeds]
    )
    return {"base": base, "dims": rows, "trend": trend}


def judge(config: DimSweepConfig, values: dict[str, Any]) -> Any:
    """Tables, verdicts and negative results."""
    from qrun.studies.result import StudyResult, Table, Verdict, interval

    tables, verdicts, negatives = [], [], []
    seeds = len(config.study.seeds)
    for name, v in values.items():
        rows = []
        for b, row in v["dims"].items():
            lora = [f"{row['lora']['parameters']:,}", f"{row['lora']['gain']:+.3f}"] if "lora" in row else []
            documents = interval(row["documents_low"], row["documents_high"])
            rows.append(
                [
                    f"b = {b}",
                    f"{row['parameters']:,}",
                    f"{row['perplexity']:.3f}",
                    f"{row['gain']:+.3f}",
                    interval(row["low"], row["high"]),
                    documents,
                    *lora,
                ]
            )
        more = ["LoRA parameters", "LoRA gain"] if "lora" in config.study.controls else []
        columns = ["", "parameters", "perplexity", "gain", "95% over seeds", "95% over documents", *more]
        tables.append(
            Table(
                f"{config.model.name}, sites={name}: frozen model {v['base']:.3f}",
                columns,
                rows,
                trend_words(v["trend"], seeds),
            )
        )
        if any("entropy_ratio" in row["blocks"] for row in v["dims"].values()):
            tables.append(blocks_table(name, v["dims"]))
        weak = [b for b, row in v["dims"].items() if b >= 4 and not row["low"] > 0]
        if weak:
            negatives.append(
                f"sites={name}: the gain's interval over seeds does not exclude 0 for b = {', '.join(map(str, weak))}"
            )
        ahead = [b for b, row in v["dims"].items() if "lora" in row and row["lora"]["gain"] > row["gain"]]
        if ahead:
            negatives.append(
                f"sites={name}: LoRA of about equal parameters gains more at b = {', '.join(map(str, ahead))}"
            )
    tested = {name: v["trend"] for name, v in values.items() if v["trend"]["p"] == v["trend"]["p"]}
    held = {name: trend["p"] < 0.05 and trend["violations"] == 0 for name, trend in tested.items()}
    negatives += [f"sites={name}: {trend_words(values[name]['trend'], seeds)}" for name, ok in held.items() if not ok]
    ours = "; ".join(
        f"sites={n}: gain {_gains(v['dims'].values())}, "
        + (f"Page p = {tested[n]['p']:.2g}" if n in tested else "not tested")
        for n, v in values.items()
    )
    word = (
        "not testable here"
        if not held
        else "reproduced"
        if all(held.values())
        else "in part"
        if any(held.values())
        else "not reproduced"
    )
    why = (
        "Parameters grow with b too, so the trend is not one of expressivity alone. The learning rate falls "
        "as 1/b; with one for all b the curve turns down."
    )
    control = "; ".join(
        f"LoRA, sites={n}: {_gains(row['lora'] for row in v['dims'].values())}" for n, v in values.items() if more
    )
    verdicts.append(
        Verdict("monotone", f"b = {', '.join(map(str, config.study.dims))}: {ours}", seeds, control, word, why)
    )
    if "one" in values and 4 in values["one"]["dims"]:
        verdicts.append(gain_verdict(values["one"], seeds))
    if found := schmidt_verdict(values, seeds):
        verdicts.append(found)
    return StudyResult("dim", config.model.name, tables, values, verdicts, negatives)


def _gains(rows: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"{row['gain']:+.2f}" for row in rows)


def gain_verdict(one: dict[str, Any], seeds: int) -> Any:
    """The paper's Llama setting in small: one v_proj, b = 4."""
    from qrun.studies.result import Verdict, interval

    row = one["dims"][4]
    ours = (
        f"{row['parameters']:,} parameters in one v_proj: {one['base']:.3f} to {row['perplexity']:.3f}, "
        f"{-100 * row['gain'] / one['base']:+.2f} %, gain "
        f"{row['gain']:+.3f}, over seeds {interval(row['low'], row['high'])}, over documents "
        f"{interval(row['documents_low'], row['documents_high'])}"
    )
    held = (row["low"] > 0, row["documents_low"] > 0)
    word = "reproduced" if all(held) else "in part" if any(held) else "not reproduced"
    control = f"LoRA of {row['lora']['parameters']:,} parameters: {row['lora']['gain']:+.3f}" if "lora" in row else ""
    return Verdict(
        "gain",
        ours,
        seeds,
        control,
        word,
        "The sign of the effect; its size depends on model, text and how far the text is from pretraining.",
    )


def schmidt_verdict(values: dict[str, Any], seeds: int) -> Any:
    """Entanglement of the trained blocks against K = 0 and Haar."""
    from qrun.studies.result import Verdict

    name, v = next(iter(values.items()))
    rows = {b: row["blocks"] for b, row in v["dims"].items() if "entropy_ratio" in row["blocks"]}
    if not rows:
        return None
    ours = f"sites={name}: " + "; ".join(
        f"b = {b} effective bond {r['effective_bond']:.2f} (Haar {r['haar_effective_bond']:.2f}), entropy ratio "
        f"{r['entropy_ratio']:.3f}"
        for b, r in rows.items()
    )
    why = (
        "The paper gives no values; K = 0 has effective bond 1 and entropy 0. The trained blocks are closer "
        "to the identity than to random rotations."
    )
    far = any(r["entropy_ratio"] > 0.5 for r in rows.values())
    return Verdict(
        "schmidt",
        ours,
        seeds,
        "Haar-random SO(b), K = 0",
        "no value to compare",
        why if not far else why.partition(". ")[0] + ".",
    )


def blocks_table(name: str, rows: dict[int, Any]) -> Any:
    """Diagnostics of the trained blocks."""
    from qrun.studies.result import Table

    shown = [
        [
            f"b = {b}",
            f"{r['rotation_degrees']:.2f}",
            f"{r['sign_flips']:.2%}",
            f"{r['relative_change']:.1%}",
            *schmidt_cells(r),
        ]
        for b, r in ((b, row["blocks"]) for b, row in rows.items())
    ]
    columns = [
        "",
        "rotation, degrees",
        "sign flips",
        "|Qx - x| / |x|",
        "entropy, bits",
        "of Haar",
        "effective bond",
        "Haar's",
    ]
    return Table(
        f"trained blocks, sites={name} (means over blocks and seeds)",
        columns,
        shown,
        "operator-Schmidt entropy and bond dimension; K = 0 has 0 and 1",
    )


def schmidt_cells(row: dict[str, float]) -> list[str]:
    """Entropy, its share of Haar's, effective bond dimension and Haar's; dashes for one qubit."""
    if "entropy_bits" not in row:
        return ["-"] * 4
    return [
        f"{row['entropy_bits']:.4f}",
        f"{row['entropy_ratio']:.1%}",
        f"{row['effective_bond']:.3f}",
        f"{row['haar_effective_bond']:.2f}",
    ]


def trend_words(trend: dict[str, float], seeds: int) -> str:
    """The trend test in words."""
    if math.isnan(trend["p"]):
        return "monotonicity not tested: it needs two seeds and three dimensions or more"
    held = trend["p"] < 0.05 and trend["violations"] == 0
    return (
        f"perplexity falls with b: Page trend test over {seeds} seeds p = {trend['p']:.2g}, "
        f"{trend['violations']:.0f} rises between neighbouring means: "
        f"{'held' if held else 'not held'} here; parameters grow with b too"
    )
