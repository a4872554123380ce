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
