"""The figure of `qrun sweep ladder`: everything over the parameters of the frozen model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qrun.report.look import GREY, SITES, error, of_dim, of_series, plain, sheet
from qrun.report.page import where

Frames = Mapping[str, pd.DataFrame]
SMOLLM2 = 134_515_008  # parameters
LOGARITHMS = ("end", "damage")


def by_size(model: str, numbers: Frames) -> dict[str, Figure]:
    """Over the parameters of the frozen model, a row of panels per site set: gain, penalty and the rate where the gain
    ends; below, what compression costs and what comes back. Dotted: the lines, with the interval at SmolLM2's size."""
    gains, device, lines = (numbers[name] for name in ("gains", "device", "lines"))
    panels: list[list[tuple[str, pd.DataFrame, str, str, dict[str, Any]]]] = []  # title, rows, column, quantity, point
    for sites in dict.fromkeys(gains["sites"]):
        place, own = str(SITES.get(sites, sites)), where(device, sites=sites)
        panels.append([
            (f"{place}: gain in percent", where(gains, sites=sites), "percent", "gain", {"sites": sites}),
            (f"{place}: penalty in percent", own, "penalty", "penalty", {"sites": sites}),
            (f"{place}: two-qubit error that ends the gain", own, "end_rate", "end", {"sites": sites}),
        ])  # fmt: skip
    if len(numbers["compressed"]):
        rows = numbers["compressed"]
        rows = rows.assign(**{f"recovery{k}": 100 * rows[f"recovery{k}"] for k in ("", "_both_low", "_both_high")})
        rows = rows.rename(columns={f"recovery_both_{end}": f"recovery_{end}" for end in ("low", "high")})
        panels.append([("damage of compression in nats", rows, "damage", "damage", {}),
                       ("recovered in percent", rows, "recovery", "recovery", {})])  # fmt: skip
    figure = sheet(12.4, 0.9 + 3.0 * len(panels), "what changes with the size of the frozen model")
    grid = figure.subplots(len(panels), 3, squeeze=False)
    shown: dict[str, Artist] = {}
    for line, row in zip(grid, panels, strict=True):
        for axes in line[len(row) :]:
            axes.remove()
        for axes, (title, rows, column, quantity, point) in zip(line, row, strict=False):
            if column in rows:
                found = lines if lines.empty else where(lines, **point)
                _over_size(axes, rows[rows[column].notna()], column, quantity, found, shown)
                _beyond(axes, rows[rows[column].isna()], quantity)
            axes.set_xscale("log")
            if quantity in LOGARITHMS and column in rows and (rows[column] > 0).any():
                axes.set_yscale("log")
            elif quantity == "gain":
                axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
            plain(axes, title)
            axes.set_xlabel("parameters of the frozen model", fontsize=9)
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False, fontsize=8,
                  title="bars: 95 %\nfilled: adamw, hollow: muon\ndotted: line to 135M", title_fontsize=8,
                  alignment="left")  # fmt: skip
    return {"ladder": figure}


def _over_size(
    axes: Axes, rows: pd.DataFrame, column: str, quantity: str, lines: pd.DataFrame, shown: dict[str, Artist]
) -> None:
    """A panel's points, a series per method, b and ratio, hollow where Muon trained the model, and their lines."""
    ends = [column.replace("_rate", "") + end for end in ("_low", "_high")]
    by = [name for name in ("method", "b", "ratio") if name in rows]
    for at, (point, own) in enumerate(rows.groupby(by, sort=False)):
        here = dict(zip(by, point, strict=True))
        lora = here.get("method") == "lora"
        look = {"color": GREY, "marker": "o"} if lora else of_dim(here["b"]) if "ratio" not in here else of_series(at)
        label = f"{here['ratio']:.0%} kept" if "ratio" in here else f"{'LoRA, for ' if lora else ''}b = {here['b']:g}"
        shown.setdefault(label, Line2D([], [], linestyle="", **look))
        for optimizer, some in own.groupby("optimizer", sort=False):
            bars = error(some[column], some[ends[0]], some[ends[1]])
            face = look["color"] if optimizer != "muon" else "w"
            axes.errorbar(some["size"] * 1.03**at, some[column], bars, markersize=5, capsize=3, linestyle="",
                          markerfacecolor=face, **look)  # fmt: skip
            name = f"{quantity}, {here['method']}" if "method" in here else quantity
            keys = {"b": here["b"]} if "ratio" not in here else {"ratio": here["ratio"]}
            line = lines if lines.empty else where(lines, quantity=name, optimizer=optimizer, **keys)
            if len(line) and np.isfinite(float(line["there"].iloc[0])):
                _to_there(axes, line.iloc[0], float(some["size"].min()), look, quantity in LOGARITHMS)


def _beyond(axes: Axes, rows: pd.DataFrame, quantity: str) -> None:
    """Arrows at the last rate asked, where a gain ends beyond it."""
    for row in rows.to_dict("records") if quantity == "end" else ():
        look = {**of_dim(row["b"]), "marker": "^" if row["end_side"] == "above" else "v"}
        axes.plot(row["size"], row["end_bound"], linestyle="", markerfacecolor="w", **look)


def _to_there(axes: Axes, line: pd.Series, start: float, look: Mapping[str, Any], logarithm: bool) -> None:
    """A fitted line from a size to SmolLM2's."""
    there, fall = line["there"], line["slope"] * np.log10(SMOLLM2 / start)
    first = there / 10**fall if logarithm else there - fall
    axes.plot([start, SMOLLM2], [first, there], ":", color=look["color"], linewidth=1)
    bars = error(*(pd.Series([line[name]]) for name in ("there", "there_low", "there_high")))
    if np.isfinite(bars).all():
        limits = axes.get_ylim()  # an interval of a few rungs may dwarf all points
        axes.errorbar([SMOLLM2], [there], bars, color=look["color"], linestyle="", capsize=3, alpha=0.5)
        axes.set_ylim(min(limits[0], there), max(limits[1], there))
