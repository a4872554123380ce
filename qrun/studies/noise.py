"""`qrun sweep noise`: every trained adapter on the noisy device at every two-qubit error rate. Where does the gain end,
how sharply, and why there?

qrun sweep noise                    4 dimensions x 9 error rates x 3 seeds x two site sets, with the adapters of the dim
                                    sweep where they exist
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrun.cells.pool import Cell
from qrun.cells.schedule import Scene, open_study
from qrun.cells.works import (
    TRAIN_KEYS,
    NoisyConfig,
    NoisyWork,
    at_sites,
    noisy_cell,
    training_cell,
    training_config,
    usable_dims,
)
from qrun.config.schema import NoiseConfig, Sign
from qrun.config.verbs import NoiseSweepConfig, ReadoutError, SiteSet
from qrun.evaluation.trends import mean_interval, sharpness, zero_crossing

QUIET, PRESET, UNIFORM = (
    "quiet",
    "preset",
    "uniform",
)  # columns beside the rates: no gate noise, the preset as it is, a circuit that forgot everything


@dataclass(frozen=True)
class Series:
    """One set of curves: everything but block dimension, rate and seed."""

    sites: SiteSet
    sign: Sign
    shots: int | None
    readout: ReadoutError

    @property
    def name(self) -> str:
        """`one-input-8192-scaled`."""
        return f"{self.sites.value}-{self.sign.value}-{self.shots or 'exact'}-{self.readout.value}"


def all_series(config: NoiseSweepConfig) -> list[Series]:
    """The product of the switched axes."""
    study = config.study
    return [Series(*point) for point in itertools.product(study.sites, study.signs, study.shots, study.readout)]


def noise_at(config: NoiseSweepConfig, column: float | str, readout: ReadoutError) -> NoiseConfig:
    """The preset scaled to a two-qubit error rate, readout error moving with it or not."""
    if column == UNIFORM:
        return dataclasses.replace(config.noise, block=1.0, read_1_given_0=0.0, read_0_given_1=0.0, factor=1.0)
    factor = {QUIET: 0.0, PRESET: 1.0}.get(column) if isinstance(column, str) else column / config.noise.cz
    assert factor is not None
    built = config.noise
    if readout is not ReadoutError.scaled and factor:
        share = 0.0 if readout is ReadoutError.none else 1 / factor
        built = dataclasses.replace(
            built,
            read_1_given_0=min(built.read_1_given_0 * share, 0.5),
            read_0_given_1=min(built.read_0_given_1 * share, 0.5),
        )
    if readout is ReadoutError.fixed and factor == 0:
        return dataclasses.replace(built, sx=0.0, cz=0.0, t1_us=None, t2_us=None, factor=1.0)
    return dataclasses.replace(built, factor=factor)


def train_cells(
    config: NoiseSweepConfig, dims: dict[SiteSet, list[int]], weights: str, data: dict[str, str]
) -> dict[tuple[Any, ...], Cell]:
    """(site set, b, seed) -> the training cell, the same as in `qrun sweep dim`."""
    cells: dict[tuple[Any, ...], Cell] = {}
    for chosen, usable in dims.items():
        for dim, seed in itertools.product(usable, config.study.seeds):
            adapter = dataclasses.replace(at_sites(config.adapter, chosen), dim=dim)
            cell = training_config(config, adapter, seed, config.training.lr)
            cells[chosen, dim, seed] = training_cell(cell, weights, data, f"sites={chosen.value} b={dim} seed={seed}")
    return cells


def noisy_cells(
    config: NoiseSweepConfig,
    cells: dict[tuple[Any, ...], Cell],
    runs: dict[str, Any],
    weights: str,
    data: dict[str, str],
) -> dict[tuple[Any, ...], Cell]:
    """(series, b, seed, column) -> one measurement."""
    found: dict[tuple[Any, ...], Cell] = {}
    for series in all_series(config):
        for (chosen, dim, seed), trained in cells.items():
            if chosen is not series.sites:
                continue
            work: Any = trained.work
            columns: list[Any] = [QUIET, *config.study.rates, PRESET, UNIFORM]
            for column in columns:
                values: dict[str, Any] = {key: getattr(work.config, key) for key in TRAIN_KEYS} | {
                    "sign": series.sign,
                    "noise": noise_at(config, column, series.readout),
                }
                noisy = NoisyConfig(**values, device=dataclasses.replace(config.device, shots=series.shots))
                name = f"{config.model.name}-b{dim}-s{seed}-{series.name}-cz{column}"
                rate = (
                    {QUIET: 0.0, PRESET: config.noise.cz, UNIFORM: -1.0}.get(column, column)
                    if isinstance(column, str)
                    else column
                )
                params = (("study.series", series.name), ("study.column", str(column)), ("study.rate", rate))
                measured = NoisyWork(noisy, runs[trained.key].info.run_id, name, params=params)
                found[series, dim, seed, column] = noisy_cell(
                    measured, weights, data, trained.key, f"{series.name} b={dim} seed={seed} cz={column}"
                )
    return found


def sweep_noise(config: NoiseSweepConfig, dry: bool = False) -> dict[str, Any]:
    """Measure every adapter at every rate; phase diagrams, critical rates, widths, collapse and verdicts."""
    dims, said = usable_dims(config)
    if dry:
        from qrun.studies.dry import show

        return show("sweep noise", list(train_cells(config, dims, "", {}).values()), said)
    from qrun.quantum.circuits import preparation_and_block_counts
    from qrun.studies.result import conclude

    with open_study(config, "noise", said) as scene:
        cells = train_cells(config, dims, scene.weights, scene.data)
        trained = scene.run(list(cells.values()))
        noisy = noisy_cells(config, cells, trained, scene.weights, scene.data)
        found = scene.run(list(noisy.values()))
        runs = {point: found[cell.key] for point, cell in noisy.items()}
        exact = {point: trained[cell.key] for point, cell in cells.items()}
        counts = {dim: preparation_and_block_counts(dim) for dim in config.study.dims}
        values = {
            series.name: summarise(scene, series, dims[series.sites], runs, exact, counts)
            for series in all_series(config)
        }
        crossings = {
            f"{n}/b{b}/critical_rate": row["critical_rate"]["rate"]
            for n, v in values.items()
            for b, row in v["dims"].items()
        }
        scene.parent.metrics({name: value for name, value in crossings.items() if value == value})
        conclude(scene.parent, scene.store, judge(config, values))
    return values


def summarise(
    scene: Scene,
    series: Series,
    dims: list[int],
    runs: dict[tuple[Any, ...], Any],
    trained: dict[tuple[Any, ...], Any],
    counts: dict[int, Any],
) -> dict[str, Any]:
    """Curves of one series, with critical rate, width and the total error of the block circuit at the critical rate."""
    config: NoiseSweepConfig = scene.config
    rates, seeds = config.study.rates, config.study.seeds
    exact = {point: run.data.metrics for point, run in trained.items()}
    base = exact[series.sites, dims[0], seeds[0]]["base/perplexity"]
    rows: dict[int, Any] = {}
    for dim in dims:
        at = {c: [runs[series, dim, seed, c].data.metrics for seed in seeds] for c in (QUIET, *rates, PRESET, UNIFORM)}
        gains = {c: [m["gain"] for m in cells] for c, cells in at.items()}
        curve = np.array([gains[rate] for rate in rates]).T
        critical = zero_crossing(rates, curve)
        preset = at[PRESET]
        adapted = [exact[series.sites, dim, seed]["adapted/perplexity"] for seed in seeds]
        penalty = [m["penalty"] for m in preset]
        sides = (
            [runs[series, dim, seed, PRESET] for seed in seeds],
            [trained[series.sites, dim, seed] for seed in seeds],
        )
        total = [total_error(config, series, rate, counts[dim]) for rate in rates]
        rows[dim] = {
            "exact_gain": float(np.mean([exact[series.sites, dim, seed]["gain"] for seed in seeds])),
            "exact_perplexity": float(np.mean(adapted)),
            "relative": {str(c): 1 - float(np.mean(g)) / base for c, g in gains.items()},
            "gains": {str(c): g for c, g in gains.items()},
            "critical_rate": critical, "sharpness": sharpness(rates, curve, gains[QUIET]), "total_error": total,
            "critical_error": math.nan if critical["side"] else
            total_error(config, series, critical["rate"], counts[dim]),
            "quiet_penalty": float(np.mean([m["penalty"] for m in at[QUIET]])),
            "preset_perplexity": base - float(np.mean(gains[PRESET])),
            "penalty": float(np.mean(penalty)), "penalty_seeds": mean_interval(penalty),
            "penalty_documents": scene.documents_interval(*sides, ("noisy", "adapted")),
            "counts": counts[dim], "sign_flips": float(np.mean([m["circuit/sign_flips"] for m in preset])),
        }  # fmt: skip
    return {"base": base, "rates": rates, "preset_rate": config.noise.cz, "dims": rows, "spread": spreads(rows)}


def total_error(config: NoiseSweepConfig, series: Series, rate: float, counts: dict[str, int]) -> float:
    """Probability that something happened in one block circuit: 1 - (1 - 4/3 cz)^CZ (1 - 2 sx)^SX (1 - readout)^n."""
    noise = noise_at(config, rate, series.readout).build()
    readout = (noise.read_1_given_0 + noise.read_0_given_1) / 2
    return (
        1
        - max(noise.keep_2q, 0.0) ** counts["cz"]
        * max(noise.keep_1q, 0.0) ** counts["sx"]
        * (1 - readout) ** counts["qubits"]
    )


def spreads(rows: dict[int, Any]) -> dict[str, float]:
    """Largest over smallest critical value among block dimensions, in rate and in total error.

    A collapse would bring the second near 1.
    """
    found = {}
    for name, values in (
        ("rate", [row["critical_rate"]["rate"] for row in rows.values()]),
        ("error", [row["critical_error"] for row in rows.values()])
    ):  # fmt: skip
        known = [value for value in values if value == value and value > 0]
        found[name] = max(known) / min(known) if len(known) > 1 else math.nan
    return found


def judge(config: NoiseSweepConfig, values: dict[str, Any]) -> Any:
    """Tables and the verdicts on the transition and on the two- and three-qubit penalties."""
    from qrun.studies.result import StudyResult, Table

    tables, verdicts, negatives = [], [], []
    for name, v in values.items():
        dims = v["dims"]
        quiet = f"shots and {name.split('-')[1]} signs alone"
        labels = {
            QUIET: quiet,
            PRESET: f"preset, {v['preset_rate']:.2g}",
            UNIFORM: "uniform output",
            **{str(r): f"{r:g}" for r in v["rates"]},
        }
        rows = [["gain, exact", *(f"{row['exact_gain']:+.3f}" for row in dims.values())]]
        rows += [
            [labels[c], *(f"{row['relative'][c]:.4f}" for row in dims.values())]
            for c in (QUIET, *map(str, v["rates"]), PRESET, UNIFORM)
        ]
        rows += [["critical rate", *(crossing_words(row["critical_rate"]) for row in dims.values())]]
        rows += [
            [
                "circuit error there",
                *(
                    f"{row['critical_error']:.2g}" if row["critical_error"] == row["critical_error"] else "-"
                    for row in dims.values()
                ),
            ]
        ]
        rows += [["width, decades", *(width_words(row["sharpness"]) for row in dims.values())]]
        caption = (
            f"perplexity relative to the frozen model's {v['base']:.3f}, below 1 is a gain; other rates in the "
            f"proportions of noise={config.noise.name}; "
            f"{spread_words(v['spread'])}"
        )
        tables.append(
            Table(f"{config.model.name}, {name}", ["two-qubit error rate", *(f"b = {b}" for b in dims)], rows, caption)
        )
        ended = [b for b, row in dims.items() if row["relative"][PRESET] > 1]
        if ended:
            negatives.append(
                f"{name}: at noise={config.noise.name} the gain is gone for b = {', '.join(map(str, ended))}"
            )
    seeds = len(config.study.seeds)
    paper = {
        kind: next((v for n, v in values.items() if n.startswith(f"{kind}-input-") and n.endswith("-scaled")), None)
        for kind in ("one", "all")
    }
    verdicts.append(transition_verdict(values, seeds))
    if paper["one"] is not None and 4 in paper["one"]["dims"]:
        verdicts.append(penalty_verdict(paper["one"], seeds))
        if 8 in paper["one"]["dims"]:
            verdicts.append(percent_verdict(paper["one"], seeds))
    if paper["all"] is not None and 8 in paper["all"]["dims"]:
        verdicts.append(fold_verdict(paper, seeds))
    return StudyResult("noise", config.model.name, tables, values, verdicts, negatives)


def transition_verdict(values: dict[str, Any], seeds: int) -> Any:
    """Sharp means narrower than proportional damage: exponents clearly above 2."""
    from qrun.studies.result import Verdict

    parts, exponents = [], []
    for name, v in values.items():
        known = {
            b: row["sharpness"]
            for b, row in v["dims"].items()
            if row["sharpness"]["width"] == row["sharpness"]["width"]
        }
        exponents += [s["exponent"] for s in known.values()]
        shown = (
            ", ".join(f"b = {b} {s['width']:.2f}" for b, s in known.items()) or "the gain does not end inside the rates"
        )
        parts.append(f"{name}: width in decades {shown}; {spread_words(v['spread'])}")
    word = (
        "not testable here"
        if not exponents
        else "reproduced"
        if min(exponents) > 2
        else "in part"
        if max(exponents) > 2
        else "not reproduced"
    )
    why = (
        "A penalty proportional to the rate ends a gain over 0.95 decades; a phase transition would be much "
        "narrower. What falls steeply with b is the "
        "critical rate, as the gate count of the circuit grows."
    )
    return Verdict("transition", "; ".join(parts), seeds, "proportional damage: 0.95 decades", word, why)


def penalty_verdict(one: dict[str, Any], seeds: int) -> Any:
    """The paper's +0.007, 0.08 % at one site."""
    from qrun.studies.result import Verdict, interval

    row = one["dims"][4]
    percent = 100 * row["penalty"] / row["exact_perplexity"]
    low, high = row["penalty_documents"]
    spread = f"over documents {interval(low, high)}, over seeds {interval(*row['penalty_seeds'])}"
    ours = f"one v_proj, b = 4: {row['penalty']:+.3f} perplexity, {percent:+.2f} %, {spread}"
    scaled = 0.0008 * row["exact_perplexity"]
    word = "reproduced" if low <= scaled <= high and percent < 0.5 else "not reproduced"
    why = f"0.08 % of this perplexity is {scaled:+.3f}; shots alone cost {row['quiet_penalty']:+.3f}."
    return Verdict("penalty2", ours, seeds, "no gate noise: shots and input signs alone", word, why)


def percent_verdict(one: dict[str, Any], seeds: int) -> Any:
    """The milder reading of the three-qubit result."""
    from qrun.studies.result import Verdict

    two, three = one["dims"][4], one["dims"][8]
    percent = 100 * three["penalty"] / three["exact_perplexity"]
    fold = three["penalty"] / two["penalty"] if two["penalty"] > 0 else math.nan
    ours = (
        f"one v_proj, b = 8: {three['penalty']:+.3f} perplexity, {percent:+.2f} %, {fold:.1f} times the "
        f"penalty of b = 4"
    )
    word = "reproduced" if 10 <= fold <= 100 and 1 <= percent <= 8 else "in part" if fold > 2 else "not reproduced"
    return Verdict(
        "penalty3_percent",
        ours,
        seeds,
        "b = 4 at the same site",
        word,
        "Three-qubit circuits have about eight times the gates of two-qubit ones.",
    )


def fold_verdict(paper: dict[str, Any], seeds: int) -> Any:
    """The harsher reading: 35 times the perplexity."""
    from qrun.studies.result import Verdict

    everywhere = paper["all"]["dims"][8]
    fold = everywhere["preset_perplexity"] / everywhere["exact_perplexity"]
    ours = (
        f"all sites, b = 8: perplexity {everywhere['exact_perplexity']:.2f} to "
        f"{everywhere['preset_perplexity']:.2f}, x {fold:.2f}"
    )
    if paper["one"] is not None and 8 in paper["one"]["dims"]:
        single = paper["one"]["dims"][8]
        ours += f"; one v_proj x {single['preset_perplexity'] / single['exact_perplexity']:.3f}"
    word = "reproduced" if fold > 10 else "in part" if fold > 2 else "not reproduced"
    return Verdict(
        "penalty3_fold",
        ours,
        seeds,
        "one site against all",
        word,
        "The factor grows with the number of sites: a deeper model with 210 sites loses more.",
    )


def spread_words(spread: dict[str, float]) -> str:
    """Do the curves collapse?"""
    if spread["rate"] != spread["rate"]:
        return "no critical rates of two dimensions to compare"
    return (
        f"critical rates differ {spread['rate']:.2g}-fold between b, circuit errors at them {spread['error']:.2g}-fold"
    )


def crossing_words(crossing: dict[str, Any]) -> str:
    """Critical error rate in a table cell."""
    from qrun.studies.result import interval

    if crossing["side"]:
        return f"{crossing['side']} {crossing['bound']:g}"
    return f"{crossing['rate']:.2g} {interval(crossing['low'], crossing['high'], '.2g')}"


def width_words(sharp: dict[str, float]) -> str:
    """Width in decades with its interval."""
    from qrun.studies.result import interval

    return (
        f"{sharp['width']:.2f} {interval(sharp['low'], sharp['high'], '.2f')}"
        if sharp["width"] == sharp["width"]
        else "-"
    )
