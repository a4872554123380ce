"""Figures, drawn without a display."""

from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#d1691b", "#8a8a8a"


def draw(study: str, model: str, values: dict[str, Any]) -> dict[str, Any]:
    """Figures of a study by name, from the numbers of its result.json alone."""
    kind = study.partition("-")[0]
    if kind == "dim":
        return {
            f"dim-{name}": dimension_curve(_by_dim(v), v["base"], f"{model}, sites={name}")
            for name, v in values.items()
        }
    if kind == "controls":
        return {
            f"controls-{name}": gains_by_method(rows, f"{model}, sites={name.replace('-', ', b = ')}")
            for name, rows in values.items()
        }
    if kind == "noise":
        marks = preset_rates()
        return {
            f"noise-{name}": phase_diagram({**v, "dims": _by_dim(v)}, v["rates"], marks, f"{model}, {name}")
            for name, v in values.items()
        }
    return {"recovery": recovery_bars(values["rows"], f"{model}, {study}")} if kind == "recover" else {}


def _by_dim(values: dict[str, Any]) -> dict[int, Any]:
    """Block dimensions as numbers: JSON keys are text."""
    return {int(b): row for b, row in values["dims"].items()}


def preset_rates() -> dict[str, float]:
    """Two-qubit error rates of the shipped noise presets."""
    from qrun.config.compose import compose, options

    found = {
        name: compose("perplexity", [f"noise={name}", "device=noisy"]).noise.cz
        for name in options()["noise"]
        if name not in ("none", "gates")
    }
    return {name: rate for name, rate in found.items() if rate > 0}


def loss_curve(history: list[dict[str, float]], evaluations: list[dict[str, float]], title: str) -> Any:
    """Training cross-entropy per step and validation, in nats per token, against the step.

    The base model is the validation point at step 0.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["cross_entropy"] for row in history], color=GREY, linewidth=0.9, label="training batch")
    axes.plot(
        [r["step"] for r in evaluations],
        [r["validation_nats"] for r in evaluations],
        color=BLUE,
        marker="o",
        markersize=4,
        label="validation",
    )
    axes.axhline(
        evaluations[0]["validation_nats"], color=ORANGE, linestyle="--", linewidth=1, label="frozen model, validation"
    )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def dimension_curve(summary: dict[int, dict[str, Any]], base: float, title: str) -> Any:
    """Gain over block dimension with its interval over seeds, parameters at each point.

    The LoRA of equal parameters beside it.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    dims = list(summary)
    gains = [summary[b]["gain"] for b in dims]
    errors = [
        [max(0.0, g - summary[b]["low"]) for b, g in zip(dims, gains, strict=True)],
        [max(0.0, summary[b]["high"] - g) for b, g in zip(dims, gains, strict=True)],
    ]
    axes.errorbar(
        dims,
        gains,
        yerr=errors,
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=3,
        label="Cayley adapter, 95% over seeds",
    )
    for b, gain in zip(dims, gains, strict=True):
        axes.annotate(
            f"{summary[b]['parameters']:,}",
            (b, gain),
            textcoords="offset points",
            xytext=(5, -11),
            fontsize=7,
            color=GREY,
        )
    if all("lora" in row for row in summary.values()):
        axes.plot(
            dims,
            [summary[b]["lora"]["gain"] for b in dims],
            color=ORANGE,
            marker="s",
            markersize=4,
            label="LoRA of about equal parameters",
        )
        axes.legend(frameon=False, fontsize=8)
    axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(b) for b in dims])
    axes.set_xlabel("block dimension b (parameters beside the points)")
    axes.set_ylabel(f"gain, of perplexity {base:.2f}")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def gains_by_method(methods: dict[str, dict[str, float]], title: str) -> Any:
    """Gain of every method with its interval over seeds, parameters in the label; the adapter is blue."""
    rows = sorted(methods.items(), key=lambda item: (item[1]["parameters"], item[0]), reverse=True)
    figure = Figure(figsize=(6.4, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for at, (name, row) in enumerate(rows):
        known = row["low"] is not None and row["low"] == row["low"]
        error = [[max(0.0, row["gain"] - row["low"])], [max(0.0, row["high"] - row["gain"])]] if known else None
        colour = BLUE if name == "cayley" else ORANGE if row["parameters"] and not name.startswith("adapter") else GREY
        axes.errorbar([row["gain"]], [at], xerr=error, color=colour, marker="o", markersize=5, capsize=3)
    axes.set_yticks(
        range(len(rows)),
        [f"{name}, {row['parameters']:,}" if row["parameters"] else name for name, row in rows],
        fontsize=8,
    )
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("gain, 95% over seeds (beside the names: trained parameters)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def phase_diagram(values: dict[str, Any], rates: list[float], presets: dict[str, float], title: str) -> Any:
    """Relative perplexity over the two-qubit error rate, one curve per b, presets marked.

    Right, the share of the gain left over the circuit's total error.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ("#1f5fa8", "#d1691b", "#2f8f4e", "#8b3fa0", "#a8271f", "#555555")
    for (b, row), colour in zip(values["dims"].items(), colours, strict=False):
        relative = [row["relative"][str(rate)] for rate in rates]
        left.plot(rates, relative, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=f"b = {b}")
        left.plot([rates[0] / 3], [row["relative"]["quiet"]], color=colour, marker="_", markersize=12)
        left.plot([rates[-1] * 3], [row["relative"]["uniform"]], color=colour, marker="_", markersize=12)
        critical = row["critical_rate"]
        if not critical["side"] and critical["low"] is not None and critical["low"] == critical["low"]:
            left.plot(
                [critical["low"], critical["high"]], [1, 1], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt"
            )
        quiet = 1 - row["relative"]["quiet"]
        if quiet > 0:
            right.plot(
                row["total_error"],
                [(1 - value) / quiet for value in relative],
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=1.3,
            )
    left.axhline(1, color=GREY, linestyle="--", linewidth=1)
    top = left.get_ylim()[1]
    for index, (name, rate) in enumerate(sorted(presets.items(), key=lambda item: item[1])):
        left.axvline(rate, color=GREY, linestyle=":", linewidth=0.8)
        left.annotate(
            name, (rate, top), textcoords="offset points", xytext=(2, -10 - 9 * index), fontsize=7, color=GREY
        )
    left.set_xscale("log")
    if top > 3:
        left.set_yscale("log")
    left.set_xlabel("two-qubit error rate (left dash: no gate noise, right dash: uniform output)")
    left.set_ylabel("perplexity relative to the frozen model")
    left.set_title(title, fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8)
    right.axhline(0, color=GREY, linestyle="--", linewidth=1)
    right.set_xscale("log")
    right.set_ylim(-1, 1.15)
    right.set_xlabel("total error of one block circuit")
    right.set_ylabel("share of the gain left")
    right.set_title("do the curves collapse?", fontsize=10, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def recovery_bars(rows: list[dict[str, Any]], title: str) -> Any:
    """Recovery of every row with its interval, one panel per ratio; 83 % marked."""
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    most = max(sum(row["ratio"] == ratio for row in rows) for ratio in ratios)
    figure = Figure(figsize=(3.2 * len(ratios) + 2.6, 0.3 * most + 1.4), layout="constrained")
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for axes, ratio in zip(panels, ratios, strict=True):
        shown = [row for row in rows if row["ratio"] == ratio][::-1]
        for at, row in enumerate(shown):
            own = row["what"].startswith(("adapter", "sign"))
            value = row["recovery"]
            known = value["low"] == value["low"]
            error = (
                [[max(0.0, value["value"] - value["low"])], [max(0.0, value["high"] - value["value"])]]
                if known
                else None
            )
            axes.barh(
                at,
                value["value"],
                color=BLUE if own else ORANGE,
                alpha=0.45 if row["text"] == "home" else 0.9,
                xerr=error,
                error_kw={"linewidth": 1},
            )
        axes.set_yticks(
            range(len(shown)), [f"{row['text']}: {row['what']}, b = {row['dim']}" for row in shown], fontsize=8
        )
        axes.axvline(0.83, color=GREY, linestyle=":", linewidth=1)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title(f"{ratio:g} kept, x {shown[-1]['compressed'] / shown[-1]['original']:.2f}", fontsize=9)
        axes.set_xlabel("recovery (dotted: 83 %)", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure
