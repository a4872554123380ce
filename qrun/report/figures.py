"""Figures, drawn without a display."""

from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#d1691b", "#8a8a8a"


def loss_curve(history: list[dict[str, float]], evaluations: list[dict[str, float]], title: str) -> Any:
    """Training cross-entropy per step and validation, in nats per token, against the step; the base model is the validation point at step 0."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["cross_entropy"] for row in history], color=GREY, linewidth=0.9, label="training batch")
    axes.plot([r["step"] for r in evaluations], [r["validation_nats"] for r in evaluations], color=BLUE, marker="o", markersize=4, label="validation")
    axes.axhline(evaluations[0]["validation_nats"], color=ORANGE, linestyle="--", linewidth=1, label="frozen model, validation")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def dimension_curve(summary: dict[int, dict[str, float]], base: float, title: str) -> Any:
    """Gain over block dimension with its interval over seeds; parameters at each point."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    dims = list(summary)
    gains = [summary[b]["gain"] for b in dims]
    errors = [
        [max(0.0, g - summary[b]["low"]) for b, g in zip(dims, gains, strict=True)],
        [max(0.0, summary[b]["high"] - g) for b, g in zip(dims, gains, strict=True)],
    ]
    axes.errorbar(dims, gains, yerr=errors, color=BLUE, marker="o", markersize=4, capsize=3)
    for b, gain in zip(dims, gains, strict=True):
        axes.annotate(f"{summary[b]['parameters']:,}", (b, gain), textcoords="offset points", xytext=(5, -11), fontsize=7, color=GREY)
    axes.axhline(0, color=ORANGE, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(b) for b in dims])
    axes.set_xlabel("block dimension b (parameters beside the points)")
    axes.set_ylabel(f"gain, of perplexity {base:.2f}")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def phase_diagram(summary: dict[int, dict[str, Any]], rates: list[float], device_rate: float, title: str) -> Any:
    """Relative perplexity over the two-qubit error rate, one curve per b; shots alone as a dash at the left, a uniform distribution at the right."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = ("#1f5fa8", "#d1691b", "#2f8f4e", "#8b3fa0", "#a8271f", "#555555")
    for (b, values), colour in zip(summary.items(), colours, strict=False):
        relative = values["relative_perplexity"]
        axes.plot(rates, relative[1:-1], color=colour, marker="o", markersize=3.5, linewidth=1.3, label=f"b = {b}")
        axes.plot([rates[0] / 3], [relative[0]], color=colour, marker="_", markersize=12)
        axes.plot([rates[-1] * 3], [relative[-1]], color=colour, marker="_", markersize=12)
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.axvline(device_rate, color=GREY, linestyle=":", linewidth=1)
    axes.annotate("preset", (device_rate, axes.get_ylim()[1]), textcoords="offset points", xytext=(3, -10), fontsize=8, color=GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("two-qubit error rate (left: shots alone, right: uniform distribution)")
    axes.set_ylabel("perplexity relative to the frozen model")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
