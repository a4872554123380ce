"""Figures of studies, drawn without a display, from a study's numbers alone."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qrun.report.curves import COLOURS
from qrun.report.ladder import by_size
from qrun.report.look import (
    BLUE,
    GREEN,
    GREY,
    LEFT,
    MARKERS,
    ORANGE,
    PALE,
    PURPLE,
    SITES,
    Map,
    ends_of,
    error,
    heat_maps,
    legend,
    of_dim,
    of_series,
    plain,
    share_axis,
    sheet,
    widest,
)  # fmt: skip
from qrun.report.page import where

Frames = Mapping[str, pd.DataFrame]
ACROSS = "gain-"  # how figures across studies are named
PAPER_RECOVERS = 83  # percent
PROPORTIONAL = "two-qubit error rate, all rates in proportion"
RATE = {
    "gates": "two-qubit error rate\n(one-qubit errors in proportion, readout as the preset)",
    "readout": "mean readout error\n(gates without errors)",
    "one_qubit": "one-qubit error rate\n(alone)",
    "two_qubit": "two-qubit error rate\n(alone)",
    "proportional": "scale of all errors,\nas the two-qubit error rate",
}
BESIDE = {"quiet": "none", "preset": "preset", "uniform": "uniform"}  # points without a rate
ADAPTER = "the adapter"
KINDS = {
    ADAPTER: ("cayley",), "other orthogonal": ("oft", "boft", "hra", "psoft", "road"), "low rank": ("lora",),
    "free numbers": ("diagonal", "block", "dense"),
}  # fmt: skip
KIND_COLOURS = dict(zip(KINDS, (BLUE, PURPLE, ORANGE, GREEN), strict=True))
TRAINS = ("dim", "controls", "frontier", "sites", "recover")  # whose trainings are drawn
QUESTION = "the paper's question: the adapter"
OWN = ("adapter", "sign")  # how the arms of a recovery begin that are the paper's question


def draw(study: str, model: str, numbers: Frames) -> dict[str, Figure]:
    """Figures of a study by name; none for a study without."""
    makers = {"dim": dimension_curves, "controls": gains_by_method, "noise": phase_diagrams, "recover": recoveries,
              "wall": walls, "circuits": gain_by_czs, "sites": by_count, "frontier": frontier,
              "ladder": by_size}  # fmt: skip
    found = makers[study](model, numbers) if study in makers else {}
    return found | (convergence(model, numbers["curves"]) if study in TRAINS and "curves" in numbers else {})


def across(model: str, studies: Mapping[str, Frames]) -> dict[str, Figure]:
    """Figures that need several studies of a model, of the same text: gain over parameters of all methods."""
    bases = {float(studies[name]["text"]["base"].iloc[0]) for name in ("dim", "controls") if name in studies}
    if not {"dim", "controls"} <= set(studies) or len(bases) > 1:
        return {}
    dims, controls = studies["dim"]["gains"].assign(null="trained"), studies["controls"]["gains"]
    rows = pd.concat([dims, controls]).sort_values("seeds", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["sites", "method", "null", "parameters"])
    return {f"{ACROSS}{model}": gain_over_parameters(model, rows, bases.pop())}


def dimension_curves(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over block dimension with its interval over seeds, parameters below each b; LoRA beside it."""
    figures = {}
    for sites, rows in numbers["gains"].groupby("sites", sort=False):
        figure = sheet(6.4, 3.8, f"{model}, {SITES.get(sites, sites)}: gain over block dimension, without noise")
        axes = figure.add_subplot()
        labels = {"cayley": "Cayley adapter", "lora": "LoRA of like size"}
        for at, (method, own) in enumerate(rows.groupby("method", sort=False)):
            many = own["seed_low"].notna().all()
            name = f"{labels.get(str(method), method)} ({'95 % over seeds' if many else 'one seed'})"
            bars = error(own["gain"], own["seed_low"], own["seed_high"]) if many else None
            look = of_series(at) | ({} if many else {"markerfacecolor": "w"})
            axes.errorbar(own["b"], own["gain"], bars, markersize=5, capsize=3, label=name, **look)
        parameters = rows[rows["method"] == "cayley"].set_index("b")["parameters"]
        dims = sorted(rows["b"].unique())
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(dims, [f"{b:g}\n{parameters[b]:,}" if b in parameters else f"{b:g}" for b in dims])
        axes.set_xlabel("block dimension b, and the adapter's parameters")
        axes.set_ylabel(_gain_from(float(numbers["text"]["base"].iloc[0])))
        legend(axes, loc="lower right")
        plain(axes, "")
        figures[f"dim-{sites}"] = figure
    return figures


def _gain_from(base: float) -> str:
    return f"gain: perplexity below the frozen {base:.2f}"


def gains_by_method(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over parameters, a figure per b."""
    base = float(numbers["text"]["base"].iloc[0])
    return {
        f"controls-{b:g}": gain_over_parameters(f"{model}, b = {b:g}", rows, base)
        for b, rows in numbers["gains"].groupby("b", sort=False)
    }


def gain_over_parameters(title: str, rows: pd.DataFrame, base: float) -> Figure:
    """Gain with its interval over seeds, two panels per site set: trained methods over their parameters, and what is
    untrained or on the device, if any. Intervals that reach far beyond all gains end in arrows."""
    sets = list(dict.fromkeys(rows["sites"]))
    nulls = list(dict.fromkeys(rows[rows["null"] != "trained"]["null"]))
    widths = [3.4, 0.1 + 0.6 * len(nulls)] if nulls else [3.4]
    title = f"{title}: what trained methods gain, by their parameters, without noise"
    figure = sheet(max(2 + (3.8 + 0.6 * len(nulls)) * len(sets), 7.2), 4.2, title)  # the title's length at least
    panels = figure.subplots(1, len(widths) * len(sets), squeeze=False, width_ratios=widths * len(sets))[0]
    shown: dict[str, Artist] = {}
    for sites, (axes, *beside) in zip(sets, panels.reshape(len(sets), -1), strict=True):
        own = rows[rows["sites"] == sites]
        low, high = min(own["gain"].min(), 0), own["gain"].max()
        room = 0.3 * (high - low)
        ends = own["seed_low"].fillna(low), own["seed_high"].fillna(high)  # one seed has none
        lowest, highest = ends[0].clip(low - room, low).min(), ends[1].clip(high, high + room).max()
        limits = lowest - room / 6, highest + room / 6
        trained = own[own["null"] == "trained"]
        for kind, methods in KINDS.items():
            for at, method in enumerate(m for m in methods if m in set(trained["method"])):
                shown.setdefault(f"_{kind}", Line2D([], [], linestyle="", label=kind))
                points = trained[trained["method"] == method].sort_values("parameters")
                look = {"color": KIND_COLOURS[kind], "marker": MARKERS[at], "markersize": 4.5, "zorder": 4}
                if kind != ADAPTER:  # which may lie on the same point
                    look |= {"markersize": 7, "zorder": 3}
                line = "-" if len(points) > 1 else ""
                shown[method] = _gains(axes, points["parameters"] * 1.04**at, points, limits, linestyle=line, **look)
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters", fontsize=9)
        plain(axes, str(SITES.get(sites, sites)))
        if beside:
            _untrained(beside[0], nulls, own[own["null"] != "trained"], limits)
        for each in (axes, *beside):
            each.axhline(0, color=GREY, linestyle="--", linewidth=1)
            each.set_ylim(limits)
    panels[0].set_ylabel(_gain_from(base), fontsize=9)
    names = [name.removeprefix("_") if name.startswith("_") else f"   {name}" for name in shown]
    figure.legend(list(shown.values()), names, loc="outside right upper", frameon=False, fontsize=8, title_fontsize=8,
                  title="bars: 95 % over seeds\nhollow: one seed", alignment="left")  # fmt: skip
    return figure


def _untrained(axes: Axes, nulls: list[str], rows: pd.DataFrame, limits: tuple[float, float]) -> None:
    """Gains of what is untrained or on the device, side by side."""
    places = pd.Series(range(len(nulls)), nulls)
    _gains(
        axes, places, rows.set_index("null").reindex(nulls), limits, linestyle="", color="k", marker="X", markersize=5
    )
    axes.set_xticks(places.tolist(), [fill(name, 9) for name in nulls])
    axes.set_xlim(-0.6, len(nulls) - 0.4)
    plain(axes, "nulls, device")
    axes.tick_params(labelsize=7)
    axes.set_facecolor(PALE)
    axes.set_yticks([])


def frontier(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over parameters of all sizes, a panel per site set."""
    rows = numbers["gains"].assign(null="trained")
    return {"frontier": gain_over_parameters(model, rows, float(numbers["text"]["base"].iloc[0]))}


def convergence(model: str, curves: pd.DataFrame) -> dict[str, Figure]:
    """Validation nats over training steps, a thin line per seed, a colour per method, arm or number of sites, each at
    b = 4 or the nearest b that it has; a panel per site set, or text and ratio."""
    by = [name for name in ("sites", "text", "ratio") if name in curves]
    kind = next(name for name in ("what", "count", "method") if name in curves)
    panels = list(curves.groupby(by, sort=False))
    wide = min(len(panels), 3)
    high = -(-len(panels) // wide)
    figure = sheet(2.4 + 3.8 * wide, 0.8 + 2.8 * high, f"{model}: validation while training, at b = 4 or near it")
    names, shown = list(dict.fromkeys(curves[kind])), {}
    grid = figure.subplots(high, wide, squeeze=False).flat
    for (point, rows), axes in zip(panels, grid, strict=False):
        for name, own in rows.groupby(kind, sort=False):
            b = min(own["b"].unique(), key=lambda b: (abs(np.log2(b / 4)), b))
            at = names.index(name)
            look = of_series(at) | {"markersize": 5, "linestyle": "-" if at < len(COLOURS) else ":", "linewidth": 0.7}
            shown[f"{name:g} sites" if kind == "count" else name] = Line2D([], [], **look)
            for _, line in own[own["b"] == b].groupby("seed"):
                ends = [*np.flatnonzero(line["plateau"]), len(line) - 1]
                axes.plot(line["step"], line["nats"], **look, markevery=ends[-1:])
                axes.plot(line["step"], line["nats"], **look, markevery=ends[:-1], markerfacecolor="w")
        told = (value if isinstance(value, str) else f"{value:.0%} of the parameters" for value in point)
        plain(axes, ", ".join(SITES.get(value, value) for value in told))
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel("validation, nats a token", fontsize=9)
    for axes in grid:  # of the last row, where it is not full
        axes.remove()
    marks = "hollow: plateau, full: end" if curves["plateau"].any() else "its mark: the end"
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False, fontsize=8,
                  title=f"a line per seed\n{marks}", title_fontsize=8, alignment="left")  # fmt: skip
    return {"convergence": figure}


def by_count(model: str, numbers: Frames) -> dict[str, Figure]:
    """Over the number of adapted sites, a row of panels per b: gain, exact and left on the device, and the penalty in
    nats with the power law through it."""
    each = {str(sites): rows for sites, rows in numbers["exact"].groupby("sites", sort=False)}
    found = {}
    for sites, exact in each.items():
        device, ends = (where(numbers[name], sites=sites) for name in ("device", "ends"))
        title = f"{model}, sites={sites}: gain and penalty by the number of adapted sites"
        found["sites" if len(each) == 1 else f"sites-{sites}"] = _by_count(title, exact, device, ends)
    return found


def _by_count(title: str, exact: pd.DataFrame, device: pd.DataFrame, ends: pd.DataFrame) -> Figure:
    dims = sorted(exact["b"].unique())
    figure = sheet(9.6, 0.6 + 3.2 * len(dims), title)
    panels = figure.subplots(len(dims), 2, squeeze=False, sharex=True)
    for b, (left, right) in zip(dims, panels, strict=True):
        own = where(exact, b=b)
        bars = error(own["gain"], *widest(own))
        left.errorbar(own["count"], own["gain"], bars, color="k", marker="s", markersize=5, capsize=3, label="exact")
        for at, (way, rows) in enumerate(where(device, b=b).groupby("way", sort=False)):
            look = of_series(at)
            left.errorbar(rows["count"], rows["gain"], error(rows["gain"], *widest(rows)), markersize=5, capsize=3,
                          label=str(way), **look)  # fmt: skip
            some = rows[rows["nats"] > 0]
            right.plot(some["count"], some["nats"], linestyle="", markersize=5, **look)
            for end in where(ends, b=b, way=way).to_dict("records"):
                line = end["factor"] * rows["count"] ** end["exponent"]
                label = f"N^{end['exponent']:.2f} [{end['exponent_both_low']:.2f}, {end['exponent_both_high']:.2f}]"
                right.plot(rows["count"], line, ":", color=look["color"], label=label)
        left.axhline(0, color=GREY, linestyle="--", linewidth=1)
        left.set_ylabel("gain in perplexity (bars: 95 %)", fontsize=9)
        right.set_ylabel("penalty in nats a token", fontsize=9)
        counts = sorted(own["count"].unique())
        for axes, title in ((left, f"b = {b:g}"), (right, "")):
            axes.set_xscale("log")
            axes.set_xticks(counts, [f"{count:g}" for count in counts])
            axes.set_xticks([], minor=True)
            plain(axes, title)
        right.set_yscale("log")
        legend(left, loc="lower left")
        legend(right, loc="upper left")
    for axes in panels[-1]:
        axes.set_xlabel("adapted sites N", fontsize=9)
    return figure


def _gains(axes: Axes, x: pd.Series, rows: pd.DataFrame, limits: tuple[float, float], **look: Any) -> Artist:
    """Points with their intervals over seeds, cut at the limits, where an arrow says so; one seed is hollow."""
    bars = error(rows["gain"], rows["seed_low"].clip(*limits), rows["seed_high"].clip(*limits))
    line = axes.plot(x, rows["gain"], linewidth=1, **look)[0]
    axes.errorbar(x, rows["gain"], bars, color=look["color"], linestyle="", capsize=3, linewidth=1.2)
    single = rows["seed_low"].isna()
    axes.plot(x[single.to_numpy()], rows["gain"][single], **{**look, "linestyle": ""}, markerfacecolor="w")
    for column, end, arrow in (("seed_low", limits[0], "v"), ("seed_high", limits[1], "^")):
        beyond = (rows[column] < end) if arrow == "v" else (rows[column] > end)
        if not beyond.any():  # an empty line that is not clipped has no bounds, and the layout fails
            continue
        axes.plot(x[beyond.to_numpy()], [end] * beyond.sum(), arrow, color=look["color"], markersize=7, clip_on=False)
    return line


def phase_diagrams(model: str, numbers: Frames) -> dict[str, Figure]:
    """Of a noise study: the maps of all site sets, then curves of each."""
    found = {}
    rows = numbers["relative"][numbers["relative"]["rate"].notna()]
    for (sign, shots), own in rows.groupby(["sign", "shots"], sort=False):
        words = f"signs of {sign}, {int(shots):,} shots" if shots else f"signs of {sign}, no shots"
        if own.groupby("axis")["rate"].nunique().min() > 1:
            ends = where(numbers["ends"], sign=sign, shots=shots)
            found[f"noise-map-{sign}-{int(shots)}"] = noise_maps(f"{model}, {words}", own, ends)
        for sites in dict.fromkeys(own["sites"]):
            here = {"sites": sites, "sign": sign, "shots": shots}
            frames = {name: where(numbers[name], **here) for name in ("relative", "ends")}
            title = f"{model}, {SITES.get(sites, sites)}, {words}: what noise leaves of the gain"
            found[f"noise-{sites}-{sign}-{int(shots)}"] = noise_curves(title, frames["relative"], frames["ends"])
    return found


def noise_maps(title: str, rows: pd.DataFrame, ends: pd.DataFrame) -> Figure:
    """Share of the gain left, b over rate, a row of panels per site set, a column per axis of noise."""
    kinds, dims = list(dict.fromkeys(rows["axis"])), sorted(rows["b"].unique())
    panels = []
    for sites in dict.fromkeys(rows["sites"]):
        line = []
        for kind in kinds:
            own = where(rows, sites=sites, axis=kind)
            grid = own.pivot(index="b", columns="rate", values="kept").reindex(dims)
            here = ends_of(where(ends, sites=sites, axis=kind), "critical_rate", "critical_side")
            line.append(Map(str(SITES.get(sites, sites)), grid, here))
        panels.append(line)
    return heat_maps(panels, f"{title}: {LEFT}, and where it ends", [RATE[kind] for kind in kinds])


def noise_curves(title: str, relative: pd.DataFrame, ends: pd.DataFrame) -> Figure:
    """Share of the gain left over the error rate with its interval, a column per axis of noise, a curve per b; below,
    where each curve crosses 0."""
    curves = relative[relative["rate"].notna()]
    kinds = list(dict.fromkeys(curves["axis"]))
    dims = sorted(curves["b"].unique())
    figure = sheet(5.4 * len(kinds), 4.4 + 0.25 * len(dims), title)
    shape = {"height_ratios": [4, 0.3 + 0.25 * len(dims)]}
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex="col", gridspec_kw=shape)
    lowest = relative["kept"].min()
    for kind, axes, below in zip(kinds, panels[0], panels[1], strict=True):
        rates = sorted(curves[curves["axis"] == kind]["rate"].unique())
        nulls = []
        beside = dict(zip(BESIDE, (rates[0] / 3.5, rates[-1] * 3.5, rates[-1] * 12), strict=True))
        for b, own in curves[curves["axis"] == kind].groupby("b"):
            own, look = own.sort_values("rate"), of_dim(float(str(b)))
            axes.plot(own["rate"], own["kept"], markersize=5, linewidth=1.4, label=f"b = {b:g}", **look)
            axes.fill_between(own["rate"], *widest(own), color=look["color"], alpha=0.15, linewidth=0)
            alone = where(relative[relative["rate"].isna()], b=b).set_index("axis").reindex(list(beside))
            bars = error(alone["kept"], *widest(alone))
            axes.errorbar(list(beside.values()), alone["kept"], bars, linestyle="", markersize=5, **look)
            (end,) = where(ends, axis=kind, b=b).to_dict("records")
            nulls.append((own, float(alone["kept"]["quiet"]), end, look))
            _end(below, dims.index(b), end, (rates[0], rates[-1]), look)
        for null in nulls:
            _proportional(axes, *null)
        axes.set_xscale("log")
        for x in beside.values():
            for each in (axes, below):
                each.axvspan(x / 1.7, x * 1.7, color=GREY, alpha=0.1, linewidth=0)
        decades = [10.0**k for k in range(-7, 1) if rates[0] <= 1.01 * 10.0**k <= 1.05 * rates[-1]] or rates
        below.set_xticks([*decades, *beside.values()], [*(f"{rate:g}" for rate in decades), *BESIDE.values()])
        below.set_xticks([], minor=True)
        below.set_xlim(beside["quiet"] / 1.7, beside["uniform"] * 1.7)
        share_axis(axes, lowest)
        plain(axes, "")
        below.set_yticks(range(len(dims)), [f"b = {b:g}" for b in dims])
        below.set_ylim(-0.7, len(dims) - 0.3)
        plain(below, "rate at which the gain ends (95 % over both)")
        below.set_xlabel(RATE[kind], fontsize=9)
    key = {line.get_label(): line for axes in panels[0] for line in axes.get_legend_handles_labels()[0]}
    figure.legend(list(key.values()), list(key), loc="outside lower center", ncols=len(key), frameon=False, fontsize=8)
    panels[0][0].set_ylabel(f"{LEFT}\n(bands: 95 % over seeds and documents)", fontsize=8)
    return figure


def _proportional(
    axes: Axes, own: pd.DataFrame, quiet: float, end: Mapping[str, float], look: Mapping[str, Any]
) -> None:
    """What a penalty proportional to the rate would leave, through the same half of the gain: only where a curve passes
    from 90 % to 10 % of it, as the width of the transition asks."""
    if not end["width"] > 0:
        return
    kept, rates = own["kept"].to_numpy(), own["rate"].to_numpy()
    k = int(np.flatnonzero(kept < quiet / 2)[0])
    half = np.exp(np.interp(-quiet / 2, -kept[k - 1 : k + 1], np.log(rates[k - 1 : k + 1])))
    x = np.geomspace(rates[0], rates[-1], 60)
    axes.plot(
        x, quiet * (1 - x / half / 2), ":", color=look["color"], linewidth=1.6, label="damage in proportion to the rate"
    )


def _end(axes: Axes, y: int, end: Mapping[str, Any], rates: tuple[float, float], look: Mapping[str, Any]) -> None:
    """The rate where a curve crosses 0 with its interval, or an arrow to the side where it does."""
    if end["critical_side"]:
        x, marker = (rates[0], "<") if end["critical_side"] == "below" else (rates[1], ">")
        axes.plot([x], [y], marker, color=look["color"], markersize=7)
        words = f"{end['critical_side']} {end['critical_bound']:g}"
        side = "left" if marker == "<" else "right"
        axes.annotate(words, (x, y), (7 if side == "left" else -7, 0), textcoords="offset points", fontsize=7.5,
                      va="center", ha=side)  # fmt: skip
        return
    value, low, high = (pd.Series([end[f"critical_{name}"]]) for name in ("rate", "low", "high"))
    axes.errorbar(value, [y], xerr=error(value, low, high), capsize=3, markersize=5, **look)
    axes.annotate(f"{value[0]:.2g}", (np.nanmax([value[0], high[0]]), y), (5, 0), textcoords="offset points",
                  fontsize=7.5, va="center")  # fmt: skip


def walls(model: str, numbers: Frames) -> dict[str, Figure]:
    """Curves, and the phase diagram of each way beside that of the paper's."""
    figures = {}
    moved = numbers["kept"][numbers["kept"]["rate"].notna()]
    for sites, rows in moved.groupby("sites", sort=False):
        if rows["kept"].isna().all():
            continue  # no gain to have a share of
        place = f"{model}, {SITES.get(sites, sites)}"
        figures[f"wall-{sites}"] = kept_by_way(place, rows)
        dims, rates = sorted(rows["b"].unique()), sorted(rows["rate"].unique())
        line = []
        for way in dict.fromkeys(rows["way"]):
            grid = rows[rows["way"] == way].pivot(index="b", columns="rate", values="kept")
            ends = where(numbers["ends"], sites=sites, way=way) if "ends" in numbers else pd.DataFrame()
            line.append(Map(way, grid.reindex(index=dims, columns=rates), ends_of(ends, "rate", "side")))
        title = f"{place}: {LEFT}, by circuit/estimate/signs, and where it ends"
        words = [PROPORTIONAL if i == len(line) // 2 else "" for i in range(len(line))]
        figures[f"wall-map-{sites}"] = heat_maps([line], title, words)
    return figures


def kept_by_way(place: str, rows: pd.DataFrame) -> Figure:
    """Share of the gain left over the two-qubit error rate, a panel per b, a curve per way with its interval over seeds
    and documents."""
    dims, ways = sorted(rows["b"].unique()), list(dict.fromkeys(rows["way"]))
    figure = sheet(4.8 * len(dims), 4.2, f"{place}: what noise leaves of the gain, by circuit/estimate/signs")
    panels = figure.subplots(1, len(dims), squeeze=False, sharey=True)[0]
    for axes, b in zip(panels, dims, strict=True):
        for at, way in enumerate(ways):
            own, look = rows[(rows["b"] == b) & (rows["way"] == way)].sort_values("rate"), of_series(at)
            axes.plot(own["rate"], own["kept"], markersize=5, linewidth=1.4, label=way, **look)
            axes.fill_between(own["rate"], *widest(own), color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        share_axis(axes, rows["kept"].min())
        axes.set_xlabel(PROPORTIONAL, fontsize=9)
        plain(axes, f"b = {b:g}")
    legend(panels[0], loc="lower left")
    panels[0].set_ylabel(f"{LEFT} (bands: 95 %)", fontsize=9)
    return figure


def gain_by_czs(model: str, numbers: Frames) -> dict[str, Figure]:
    """Gain over the CZ of a block with its interval over documents: trained circuits and cut Cayley blocks by b; whole
    Cayley blocks are lines, their b beside them."""
    figures = {}
    for sites, rows in numbers["gains"].groupby("sites", sort=False):
        figure = sheet(6.4, 4.2, f"{model}, {SITES.get(sites, sites)}: gain by the CZ of a block, without noise")
        axes = figure.add_subplot()
        for at, ((what, b), own) in enumerate(rows[rows["what"] != "cayley"].groupby(["what", "b"], sort=False)):
            own = own.sort_values("k")
            bars = error(own["gain"], own["document_low"], own["document_high"])
            x = own["k"] + 0.12 * at  # curves of equal k side by side
            axes.errorbar(x, own["gain"], bars, markersize=5, capsize=3, label=f"{what}, b = {b:g}", **of_series(at))
        for row in rows[rows["what"] == "cayley"].itertuples():
            axes.axhline(row.gain, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(f"Cayley, b = {row.b:g}", (1.01, row.gain), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8, color=GREY)  # fmt: skip
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel("CZ of a block's circuit")
        axes.set_ylabel(_gain_from(float(numbers["text"]["base"].iloc[0])))
        legend(axes, loc="lower left", bbox_to_anchor=(1, 0), title="bars: 95 % over documents")
        plain(axes, "")
        figures[f"circuits-{sites}"] = figure
    return figures


def recoveries(model: str, numbers: Frames) -> dict[str, Figure]:
    """Recovery of every arm in percent with its interval over seeds and documents: above the paper's question, the
    adapter, below controls; texts by colour, ratios by marker."""
    rows = numbers["recovery"].rename(columns=lambda name: name.removeprefix("recovery_"))
    own = rows["what"].str.startswith(OWN)
    rows = rows.assign(label=[_arm(what, b, rows) for what, b in zip(rows["what"], rows["b"], strict=True)])
    halves = {title: half for title, half in ((QUESTION, rows[own]), ("controls", rows[~own])) if len(half)}
    heights = [half["label"].nunique() + 0.8 for half in halves.values()]
    figure = sheet(8.6, 1.1 + 0.45 * sum(heights), f"{model}: how much of compression's cost in perplexity comes back")
    panels = figure.subplots(len(halves), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    texts, series = list(dict.fromkeys(rows["text"])), list(rows.groupby(["text", "ratio"], sort=False).groups)
    for axes, (title, half) in zip(panels, halves.items(), strict=True):
        labels = list(dict.fromkeys(half["label"]))
        for at, (text, ratio) in enumerate(series):
            here = where(half, text=text, ratio=ratio)
            value, y = 100 * here["recovery"], [labels.index(label) for label in here["label"]]
            bars = error(value, *(100 * limit for limit in widest(here)))
            cost = where(rows, text=text, ratio=ratio).iloc[0]
            axes.errorbar(
                value, np.array(y) + 0.15 * (at - (len(series) - 1) / 2), xerr=bars, linestyle="", markersize=5,
                capsize=2, color=(BLUE, ORANGE)[texts.index(text) % 2], marker=MARKERS[at % len(MARKERS)],
                label=f"{text}, {ratio:.0%}: {cost['original']:.1f} to {cost['compressed']:.1f}",
            )  # fmt: skip
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.axvline(PAPER_RECOVERS, color=GREY, linestyle=":", linewidth=1.2)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.grid(axis="x", color=PALE)
        plain(axes, title)
    panels[0].annotate("paper: 83 %", (PAPER_RECOVERS, 1), xycoords=("data", "axes fraction"), fontsize=8, ha="center",
                       va="bottom", color=GREY)  # fmt: skip
    panels[-1].set_xlabel("recovery in percent (bars: 95 % over seeds and documents)", fontsize=9)
    lines, words = panels[0].get_legend_handles_labels()
    figure.legend(lines, words, loc="outside lower center", ncols=4, frameon=False, fontsize=8,
                  title="text, parameters kept: perplexity before and after", title_fontsize=8)  # fmt: skip
    return {"recovery": figure}


def _arm(what: str, b: float, rows: pd.DataFrame) -> str:
    """An arm with its trained parameters, which for healing depend on the ratio; only blocks have a b."""
    counts = sorted(set(rows[(rows["what"] == what) & (rows["b"] == b)]["parameters"]), reverse=True)
    size = f", b = {b:g}" if what.startswith(OWN) else ""
    return f"{what}{size}\n{' or '.join(f'{count:,}' for count in counts)} parameters"
