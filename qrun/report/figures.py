"""Figures, drawn without a display, from a study's numbers alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qrun.report.curves import COLOURS

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"
MARKERS = "osD^vP"
Frames = Mapping[str, pd.DataFrame]


def draw(study: str, model: str, numbers: Frames) -> dict[str, Figure]:
    """Figures of a study by name; none for a study without."""
    makers = {"dim": dimension_curves, "controls": gains_by_method, "noise": phase_diagrams, "recover": recovery_bars,
              "wall": walls, "circuits": gain_by_czs}  # fmt: skip
    return makers[study](model, numbers) if study in makers else {}


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _error(value: pd.Series, low: pd.Series, high: pd.Series) -> list[list[float]]:
    """Error bars, of no length where there is no interval."""
    return [(value - low).clip(lower=0).fillna(0).tolist(), (high - value).clip(lower=0).fillna(0).tolist()]


def loss_curve(
    history: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]], title: str
) -> Figure:
    """Training cross-entropy per step and validation, in nats per token; step 0 of validation is before training."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    loss, nats = [row["cross_entropy"] for row in history], [row["validation_nats"] for row in evaluations]
    axes.plot([row["step"] for row in history], loss, color=GREY, linewidth=0.9, label="training batch")
    axes.plot([row["step"] for row in evaluations], nats, color=BLUE, marker="o", markersize=4, label="validation")
    axes.axhline(nats[0], color=ORANGE, linestyle="--", linewidth=1, label="before training, validation")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes, title)
    return figure


def dimension_curves(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over block dimension with its interval over seeds, parameters at each point; LoRA beside it."""
    figures = {}
    for sites, rows in numbers["gains"].groupby("sites", sort=False):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        labels = {"cayley": "Cayley adapter, 95% over seeds", "lora": "LoRA of about equal parameters"}
        for (method, own), colour, marker in zip(rows.groupby("method", sort=False), COLOURS, MARKERS, strict=False):
            error = _error(own["gain"], own["seed_low"], own["seed_high"])
            name = labels.get(str(method), str(method))
            axes.errorbar(
                own["b"], own["gain"], error, color=colour, marker=marker, markersize=4, capsize=3, label=name
            )
        for row in rows[rows["method"] == "cayley"].itertuples():
            where = (row.b, row.gain)
            axes.annotate(
                f"{row.parameters:,}", where, textcoords="offset points", xytext=(5, -11), fontsize=7, color=GREY
            )
        dims = sorted(rows["b"].unique())
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(dims, [f"{b:g}" for b in dims])
        axes.set_xlabel("block dimension b (parameters beside the points)")
        axes.set_ylabel(f"gain, of perplexity {numbers['text']['base'].iloc[0]:.2f}")
        axes.legend(frameon=False, fontsize=8)
        _plain(axes, f"{model}, sites={sites}")
        figures[f"dim-{sites}"] = figure
    return figures


def gains_by_method(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain of every method with its interval over seeds, parameters in the label; the adapter is blue, nulls grey."""
    figures = {}
    for (sites, dim), group in numbers["gains"].groupby(["sites", "b"], sort=False):
        rows = group.sort_values(["parameters", "method"], ascending=False).reset_index()
        figure = Figure(figsize=(6.4, 0.34 * len(rows) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        error = _error(rows["gain"], rows["seed_low"], rows["seed_high"])
        names = []
        for at, row in enumerate(rows.itertuples()):
            null = row.null != "trained"
            colour = GREY if null else BLUE if row.method == "cayley" else ORANGE
            one = [[error[0][at]], [error[1][at]]]
            axes.errorbar([row.gain], [at], xerr=one, color=colour, marker="o", markersize=5, capsize=3)
            names.append(row.null if null else f"{row.method}, {row.parameters:,}")
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel("gain, 95% over seeds (beside the names: trained parameters)")
        _plain(axes, f"{model}, sites={sites}, b = {dim:g}")
        figures[f"controls-{sites}-{dim:g}"] = figure
    return figures


def phase_diagrams(model: str, numbers: Frames) -> dict[str, Figure]:
    """Share of the gain left over the error rate, a panel per axis of noise, a curve per b; 0 is the frozen model."""
    figures = {}
    for (sites, sign, shots), rows in numbers["relative"].groupby(["sites", "sign", "shots"], sort=False):
        curves = rows[rows["rate"].notna()]
        kinds, dims = list(dict.fromkeys(curves["axis"])), sorted(curves["b"].unique())
        if not kinds:
            continue
        figure = Figure(figsize=(5.2 * len(kinds), 4.2), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            exact = numbers["exact"].set_index(["sites", "b"])["gain"].where(lambda gain: gain > 0)
            for b, own in curves[curves["axis"] == kind].groupby("b"):
                share, at = own["gain"] / exact[sites, b], dims.index(b) % len(COLOURS)  # one look per b in all panels
                style = {"color": COLOURS[at], "marker": MARKERS[at]}
                axes.plot(own["rate"], share, markersize=4, linewidth=1.3, label=f"b = {b:g}", **style)
            axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
            axes.axhline(1, color=GREY, linestyle=":", linewidth=0.8)
            rates = curves[curves["axis"] == kind]["rate"]
            axes.set_xscale("log")
            axes.set_xlim(rates.min() / 1.5, rates.max() * 1.5)
            axes.set_ylim(-1.5, 1.15)
            what = "mean readout error" if kind == "readout" else f"error rate, axis {kind}"
            axes.set_xlabel(f"{what} (below: worse than the frozen model)")
            axes.set_ylabel("share of the exact gain left")
            axes.legend(frameon=False, fontsize=8)
            _plain(axes, f"{model}, sites={sites}, signs of {sign}, {int(shots) or 'no'} shots")
        figures[f"noise-{sites}-{sign}-{int(shots)}"] = figure
    return figures


def walls(model: str, numbers: Frames) -> dict[str, Figure]:
    """Curves, and the phase diagram of each way beside that of the paper's."""
    return {**kept_by_way(model, numbers), **kept_maps(model, numbers)}


def kept_maps(model: str, numbers: Frames) -> dict[str, Figure]:
    """Share of the gain left as colour, b over the two-qubit error rate, a panel per way; red is worse than frozen."""
    figures = {}
    moved = numbers["kept"][numbers["kept"]["rate"].notna()]
    for sites, rows in moved.groupby("sites", sort=False):
        ways = list(dict.fromkeys(rows["way"]))
        dims, rates = sorted(rows["b"].unique()), sorted(rows["rate"].unique())
        height = 1.5 + 0.55 * len(dims)
        figure = Figure(figsize=(4.4 * len(ways) + 0.8, height), layout="constrained")
        panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
        for axes, way in zip(panels, ways, strict=True):
            grid = (
                rows[rows["way"] == way]
                .pivot(index="b", columns="rate", values="kept")
                .reindex(index=dims, columns=rates)
            )
            image = axes.imshow(grid.clip(-1, 1), cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
            for (y, x), share in np.ndenumerate(grid.to_numpy()):
                shown = "-" if np.isnan(share) else f"{share:.0%}" if share > -10 else "below -1,000%"
                axes.text(x, y, shown, ha="center", va="center", fontsize=8, color="w" if abs(share) > 0.6 else "k")
            axes.set_xticks(range(len(grid.columns)), [f"{rate:g}" for rate in grid.columns])
            axes.set_yticks(range(len(grid.index)), [f"b = {b:g}" for b in grid.index])
            axes.set_title(way, fontsize=9)
        figure.supxlabel("two-qubit error rate, all rates in proportion", fontsize=9)
        figure.suptitle(f"{model}, sites={sites}: share of the exact gain left", fontsize=10, x=0.01, ha="left")
        figure.colorbar(image, ax=panels, ticks=[-1, 0, 1])
        figures[f"wall-map-{sites}"] = figure
    return figures


def kept_by_way(model: str, numbers: Frames) -> dict[str, Figure]:
    """Share of the gain left over the two-qubit error rate, a panel per b, a curve per way with its interval over
    documents."""
    figures = {}
    moved = numbers["kept"][numbers["kept"]["rate"].notna()]
    for sites, rows in moved.groupby("sites", sort=False):
        dims, ways = sorted(rows["b"].unique()), list(dict.fromkeys(rows["way"]))
        figure = Figure(figsize=(5.2 * len(dims), 4.2), layout="constrained")
        for axes, b in zip(figure.subplots(1, len(dims), squeeze=False)[0], dims, strict=True):
            for at, way in enumerate(ways):
                own = rows[(rows["b"] == b) & (rows["way"] == way)].sort_values("rate")
                colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
                axes.plot(own["rate"], own["kept"], color=colour, marker=marker, markersize=4, linewidth=1.3, label=way)
                axes.fill_between(own["rate"], own["document_low"], own["document_high"], color=colour, alpha=0.15)
            axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
            axes.axhline(1, color=GREY, linestyle=":", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_ylim(-1.5, 1.15)
            axes.set_xlabel("two-qubit error rate, all rates in proportion")
            axes.set_ylabel("share of the exact gain left")
            axes.legend(frameon=False, fontsize=8, loc="lower left")
            _plain(axes, f"{model}, sites={sites}, b = {b:g}")
        figures[f"wall-{sites}"] = figure
    return figures


def gain_by_czs(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over the CZ of a block with its interval over documents: trained circuits and cut Cayley blocks by b; whole
    Cayley blocks are lines, their b beside them."""
    figures = {}
    for sites, rows in numbers["gains"].groupby("sites", sort=False):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        curves = rows[rows["what"] != "cayley"].groupby(["what", "b"], sort=False)
        for ((what, b), own), colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
            own = own.sort_values("k")
            error = _error(own["gain"], own["document_low"], own["document_high"])
            axes.errorbar(
                own["k"], own["gain"], error, color=colour, marker=marker, markersize=4, capsize=3,
                label=f"{what}, b = {b:g}",
            )  # fmt: skip
        for row in rows[rows["what"] == "cayley"].itertuples():
            axes.axhline(row.gain, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(f"Cayley, b = {row.b:g}", (1, row.gain), xycoords=("axes fraction", "data"), ha="right",
                          va="bottom", fontsize=7, color=GREY)  # fmt: skip
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel("CZ of a block's circuit")
        axes.set_ylabel(f"gain, of perplexity {numbers['text']['base'].iloc[0]:.2f}")
        axes.legend(frameon=False, fontsize=8)
        _plain(axes, f"{model}, sites={sites}")
        figures[f"circuits-{sites}"] = figure
    return figures


def recovery_bars(model: str, numbers: Frames) -> dict[str, Figure]:
    """Recovery of every arm with its interval over documents, a panel per ratio; 83 % marked, home text paler."""
    rows = numbers["recovery"]
    ratios = list(dict.fromkeys(rows["ratio"]))
    most = max((rows["ratio"] == ratio).sum() for ratio in ratios)
    figure = Figure(figsize=(3.2 * len(ratios) + 2.6, 0.3 * most + 1.4), layout="constrained")
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for axes, ratio in zip(panels, ratios, strict=True):
        shown = rows[rows["ratio"] == ratio].iloc[::-1]
        error = _error(shown["recovery"], shown["recovery_document_low"], shown["recovery_document_high"])
        own = shown["what"].str.startswith(("adapter", "sign"))
        for at, (row, ours) in enumerate(zip(shown.itertuples(), own, strict=True)):
            alpha = 0.45 if row.text == "home" else 0.9
            one = [[error[0][at]], [error[1][at]]]
            colour = BLUE if ours else ORANGE
            axes.barh(at, row.recovery, color=colour, alpha=alpha, xerr=one, error_kw={"linewidth": 1})
        names = [f"{row.text}: {row.what}, b = {row.b:g}" for row in shown.itertuples()]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.axvline(0.83, color=GREY, linestyle=":", linewidth=1)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel("recovery (dotted: 83 %)", fontsize=8)
        first = shown.iloc[-1]
        _plain(axes, f"{ratio:g} kept, x {first['compressed'] / first['original']:.2f}")
    figure.suptitle(model, fontsize=10, x=0.01, ha="left")
    return {"recovery": figure}
