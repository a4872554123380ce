"""How figures look: colours, markers, axes and heat maps that several figures share.

Colours are told apart by protanopes and deuteranopes too (tests/report/test_look.py simulates both); b is ordered, so
its colours are viridis', the same for a b in every figure, each with a marker of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from qrun.report.curves import COLOURS

BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
GREY, PALE = "#6e6e6e", "#f4f4f4"
MARKERS = "osD^vP"
LEFT = "share of the gain left"
SITES = {"one": "one site", "layer": "one layer", "all": "all sites"}


def sheet(width: float, height: float, title: str = "") -> Figure:
    """An empty figure in inches; the title is also what a page says instead of it."""
    figure = Figure(figsize=(width, height), layout="constrained", label=title)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def plain(axes: Axes, title: str) -> None:
    """No frame above and to the right, the title on the left."""
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def legend(axes: Axes, **words: Any) -> None:
    style = {"framealpha": 0.85, "edgecolor": "none", "fontsize": 8, "title_fontsize": 8, "alignment": "left"}
    axes.legend(**{**style, **words})


def of_dim(b: float) -> dict[str, Any]:
    """Colour and marker of a block dimension; those of 64 and more are one."""
    step = min(max(math.log2(b) - 1, 0), 5)
    return {"color": to_hex(colormaps["viridis"](0.92 * step / 5)), "marker": MARKERS[round(step)]}


def of_series(at: int) -> dict[str, Any]:
    """Colour and marker of the at-th of series without an order."""
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}


def error(value: pd.Series, low: pd.Series, high: pd.Series) -> list[list[float]]:
    """Error bars, of no length where there is no interval."""
    return [(value - low).clip(lower=0).fillna(0).tolist(), (high - value).clip(lower=0).fillna(0).tolist()]


def widest(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Limits over seeds and documents drawn together; where there are none, those that hold what there is of each."""
    found = rows.reindex(columns=[f"{over}_{end}" for over in ("both", "seed", "document") for end in ("low", "high")])
    low, high = found[["seed_low", "document_low"]].min(axis=1), found[["seed_high", "document_high"]].max(axis=1)
    return found["both_low"].fillna(low), found["both_high"].fillna(high)


def share_axis(axes: Axes, lowest: float) -> None:
    """y is the share of the exact gain that is left: linear from 1 to -1, where the gain is, decades below."""
    axes.set_yscale("symlog", linthresh=1, linscale=1.6)
    deep = [-(10.0**k) for k in range(6) if -(10**k) >= lowest]
    axes.set_yticks([1, 0.5, 0, -0.5, *deep], [f"{100 * y:,.0f} %" for y in [1, 0.5, 0, -0.5, *deep]])
    axes.set_yticks([], minor=True)
    axes.set_ylim(min(-0.25, 1.4 * lowest), 1.6)  # in this order -0.25 where there is no gain to have a share of
    axes.axhspan(axes.get_ylim()[0], 0, color=PALE, zorder=0)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.axhline(1, color=GREY, linestyle=":", linewidth=0.8)


@dataclass(frozen=True)
class Map:
    """A heat map's panel: shares by b (rows) and rate (columns), and where each b's gain ends: the rate, or "below" or
    "above" all of them."""

    title: str
    grid: pd.DataFrame
    ends: Mapping[float, float | str]


def ends_of(rows: pd.DataFrame, rate: str, side: str) -> dict[float, float | str]:
    """Where the gain of each b ends, from columns of a study's `ends`."""
    return {row["b"]: row[side] or float(row[rate]) for row in rows.to_dict("records")}


def heat_maps(panels: Sequence[Sequence[Map]], title: str, xlabels: Sequence[str]) -> Figure:
    """Shares as colour and in percent, b over rate; red is worse than the frozen model, the line is where the gain
    ends. All rows of panels have the columns of the first."""
    widths = [max(len(m.grid.columns), 2) for m in panels[0]]
    heights = [max(len(row[0].grid.index), 2) for row in panels]
    figure = sheet(0.95 * sum(widths) + 0.9 * len(widths) + 1.0, 0.5 * sum(heights) + 0.55 * len(heights) + 0.7, title)
    grid = figure.subplots(
        len(heights), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths, "height_ratios": heights}
    )
    image = ScalarMappable(Normalize(-1, 1), colormaps["RdBu"])
    for axes_row, row in zip(grid, panels, strict=True):
        for axes, shown in zip(axes_row, row, strict=True):
            axes.imshow(shown.grid, cmap=image.cmap, norm=image.norm, aspect="auto", origin="lower")
            axes.set_facecolor(PALE)
            _contour(axes, shown)
            shares = shown.grid.to_numpy(float)
            empty = np.isnan(shares).all(axis=1)
            for y in np.flatnonzero(empty):
                axes.text((shares.shape[1] - 1) / 2, y, "not measured", ha="center", va="center", fontsize=8)
            for (y, x), share in np.ndenumerate(shares):
                if empty[y]:
                    continue
                words = "-" if np.isnan(share) else f"{share:.0%}" if share > -10 else "< -1,000%"
                white = abs(share) > 0.6
                ground = {"facecolor": image.to_rgba(share), "edgecolor": "none", "pad": 0.4}  # the line goes behind
                axes.text(x, y, "0%" if words == "-0%" else words, ha="center", va="center", fontsize=8,
                          color="w" if white else "k", bbox=None if np.isnan(share) else ground)  # fmt: skip
            axes.set_xticks(range(len(shown.grid.columns)), [f"{rate:g}" for rate in shown.grid.columns], fontsize=8)
            axes.set_yticks(range(len(shown.grid.index)), [f"b = {b:g}" for b in shown.grid.index], fontsize=8)
            axes.set_title(shown.title, fontsize=9, loc="left")
    for axes, words in zip(grid[-1], xlabels, strict=True):
        axes.set_xlabel(words, fontsize=8)
    bar = figure.colorbar(image, ax=grid, ticks=[-1, 0, 1], aspect=30, pad=0.02)
    bar.ax.set_yticklabels(["-100 %\nor worse", "0 %: frozen\nmodel", "100 %: the\nexact gain"], fontsize=7)
    return figure


def _contour(axes: Axes, shown: Map) -> None:
    """A line through each row of the map at the rate where its gain ends, log-linear between the columns."""
    rates, rows = [float(rate) for rate in shown.grid.columns], list(shown.grid.index)
    edges: dict[str, float] = {"below": -0.5, "above": len(rates) - 0.5}
    points: list[tuple[float, float]] = []
    for y, b in enumerate(rows):
        end = shown.ends.get(b, math.nan)
        inside = np.nan if isinstance(end, str) else np.interp(np.log(end), np.log(rates), range(len(rates)))
        x = edges[end] if isinstance(end, str) else float(inside)
        points += [(x, y - 0.5), (x, y + 0.5)]
    axes.plot(*zip(*points, strict=True), color="k", linewidth=2.5, solid_joinstyle="miter", clip_on=False)
    axes.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(rows) - 0.5))
