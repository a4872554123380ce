"""Pictures of single runs, drawn without a display: a training, its blocks, a chip with its places, a circuit."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qrun.errors import InputError
from qrun.report.look import BLUE, GREEN, GREY, ORANGE, legend, plain, sheet

Pair = tuple[int, int]
KINDS = (".png", ".svg", ".pdf")
FOLD = 26  # gates beside each other in a line of a circuit
PARTS = (GREEN, BLUE, ORANGE)  # preparation, Q, measurement


def check_picture(path: str | None) -> None:
    """Raise InputError for a file that cannot be drawn to."""
    if path is None:
        return
    if Path(path).suffix not in KINDS:
        raise InputError(f"--draw {path}: name a file that ends in {', '.join(KINDS)}")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--draw {path}: its folder does not exist")


def loss_curve(
    history: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]], title: str
) -> Figure:
    """Nats per token: above the batches with their running mean over a tenth of the steps, below validation on a scale
    of its own; its step 0 is before training."""
    figure = sheet(6.4, 4.8, title)
    batches, axes = figure.subplots(2, 1, sharex=True)
    loss, nats = [row["cross_entropy"] for row in history], [row["validation_nats"] for row in evaluations]
    steps, wide = [row["step"] for row in history], max(1, len(loss) // 10)
    batches.plot(steps, loss, color=GREY, linewidth=0.8, alpha=0.4, label="training batch")
    mean = pd.Series(loss).rolling(wide).mean()
    batches.plot(steps, mean, color=GREY, linewidth=1.8, label=f"mean of {wide} batches")
    axes.plot([row["step"] for row in evaluations], nats, color=BLUE, marker="o", markersize=4, label="validation")
    axes.axhline(nats[0], color=ORANGE, linestyle="--", linewidth=1, label="before training")
    axes.set_xlabel("optimiser step")
    for each in (batches, axes):
        each.set_ylabel("nats per token", fontsize=9)
        legend(each)
        plain(each, "")
    return figure


def block_histograms(
    degrees: tuple[NDArray[np.float64], NDArray[np.float64]],
    schmidt: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    title: str,
) -> Figure:
    """Of trained blocks and of Haar-random ones: rotation angles [N] as shares, and operator-Schmidt values
    [blocks, values], largest first, median and 5 to 95 % of the blocks; None for blocks of one qubit."""
    figure = sheet(6.4 if schmidt is None else 10, 3.8, title)
    panels = figure.subplots(1, 1 if schmidt is None else 2, squeeze=False)[0]
    looks = (("trained", BLUE), ("Haar-random", ORANGE))
    least = max(1e-3, min(float(np.percentile(values, 1)) for values in degrees))  # smaller ones are in the first bar
    edges = np.geomspace(least, 180, 46)
    for values, (name, colour) in zip(degrees, looks, strict=True):
        shares = 100 * np.histogram(values.clip(least, 180), edges)[0] / values.size
        label = f"{name}: median {np.median(values):.2g} degrees"
        panels[0].stairs(shares, edges, fill=True, color=colour, alpha=0.5, label=label)
    panels[0].set_xscale("log")
    panels[0].set_xlabel("rotation angle in degrees")
    panels[0].set_ylabel("percent of the angles")
    for values, (name, colour) in zip(schmidt or (), looks, strict=False):
        low, middle, high = np.percentile(values.clip(1e-16), [5, 50, 95], axis=0)
        k = np.arange(1, values.shape[1] + 1)
        panels[1].plot(k, middle, color=colour, marker="o" if name == "trained" else "s", markersize=4, label=name)
        panels[1].fill_between(k, low, high, color=colour, alpha=0.25, linewidth=0)
    if schmidt is not None:
        panels[1].set_yscale("log")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].set_xlabel("operator-Schmidt values, largest first\n(bands: 5 to 95 % of the blocks)")
        panels[1].set_ylabel("its share of the square sum")
    for axes in panels:
        legend(axes)
        plain(axes, "")
    return figure


def positions(size: int, couplers: Collection[Pair]) -> dict[int, tuple[float, float]]:
    """Column and row of each qubit. A chip's qubits are numbered along its rows, coupled to the next; whatever is
    between two rows stands below the qubit that it is coupled to."""
    pairs = {(min(pair), max(pair)) for pair in couplers}
    runs: list[list[int]] = []
    for qubit in range(size):
        if runs and (qubit - 1, qubit) in pairs:
            runs[-1].append(qubit)
        else:
            runs.append([qubit])
    above = {b: a for a, b in sorted(pairs, reverse=True) if b - a > 1}
    found: dict[int, tuple[float, float]] = {}
    for run in runs:
        held = next(((i, found[above[q]]) for i, q in enumerate(run) if above.get(q) in found), None)
        deepest = max((row for _, row in found.values()), default=-1.0)
        start, row = (held[1][0] - held[0], held[1][1] + 1) if held else (0.0, deepest + 1)
        found |= {qubit: (start + i, row) for i, qubit in enumerate(run)}
    return found


def chip_map(
    size: int,
    couplers: Collection[Pair],
    out: Collection[int],
    places: Sequence[tuple[Sequence[int], Collection[Pair]]],
    errors: Iterable[float] | None,
    title: str,
) -> Figure:
    """A chip's qubits and couplers with the packed places, each its qubits and the couplers between them, coloured by
    their errors where these are known; qubits `out` of order are crossed."""
    where = positions(size, couplers)
    right, down = (max(at[i] for at in where.values()) for i in (0, 1))
    left = min(x for x, _ in where.values())
    figure = sheet(0.42 * (right - left) + 1.8, 0.42 * down + 1.4, title)
    axes = figure.add_subplot()
    for a, b in couplers:
        axes.plot(*zip(where[a], where[b], strict=True), color="#c8c8c8", linewidth=1.2, zorder=1)
    known = [100 * error for error in errors] if errors is not None else []
    norm, shades = Normalize(min(known), max(known)) if known else None, colormaps["viridis_r"]
    pale = {q for at, (qubits, _) in enumerate(places) for q in qubits if norm and norm(known[at]) < 0.3}
    for at, (qubits, edges) in enumerate(places):
        colour = shades(norm(known[at])) if norm else (BLUE, ORANGE, GREEN)[at % 3]
        for a, b in edges:
            axes.plot(
                *zip(where[a], where[b], strict=True), color=colour, linewidth=5, zorder=2, solid_capstyle="round"
            )
        axes.plot(*zip(*(where[q] for q in qubits), strict=True), "o", color=colour, markersize=9.7, zorder=3)
    used = {q for qubits, _ in places for q in qubits}
    free = [at for q, at in where.items() if q not in used and q not in out]
    empty: dict[str, Any] = {
        "linestyle": "",
        "markersize": 8.4,
        "markerfacecolor": "w",
        "markeredgecolor": GREY,
        "zorder": 3,
    }
    axes.plot([x for x, _ in free], [y for _, y in free], "o", **empty)
    axes.plot([where[q][0] for q in out], [where[q][1] for q in out], "kx", markersize=8, zorder=3)
    for qubit, (x, y) in where.items():
        inside = "w" if qubit in used and qubit not in pale else "k"
        axes.text(
            x, y, "" if qubit in out else str(qubit), ha="center", va="center", fontsize=5.5, color=inside, zorder=4
        )
    axes.set(xlim=(left - 0.7, right + 0.7), ylim=(down + 0.7, -0.7), aspect="equal")
    axes.axis("off")
    if norm:
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=axes, shrink=0.7, pad=0.02)
        bar.set_label("error of |y| at a place, rms in percent", fontsize=8)
    return figure


class Gate(NamedTuple):
    """A gate of a circuit's part (0 preparation, 1 Q, 2 measurement) on one or two qubits, and what is written in it;
    a two-qubit gate is a CZ."""

    part: int
    qubits: tuple[int, ...]
    words: str


def circuit_picture(qubits: int, gates: Sequence[Gate], title: str) -> Figure:
    """A circuit in lines of at most FOLD columns, its three parts on coloured ground."""
    free, placed, starts = [0] * qubits, [], []  # the next free column of each qubit
    for part in range(3):
        starts.append(max(free))
        free = [starts[-1]] * qubits
        for gate in (gate for gate in gates if gate.part == part):
            wires = slice(min(gate.qubits), max(gate.qubits) + 1)  # a CZ crosses all between its two
            column = max(free[wires])
            free[wires] = [column + 1] * len(free[wires])
            placed.append((column, gate))
    end = max(free)
    lines, step = -(-end // FOLD), qubits + 0.6
    fold = -(-end // lines)  # lines of like length
    figure = sheet(0.48 * min(end, fold) + 1.2, 0.5 * step * lines + 0.8, title)
    axes = figure.add_subplot()
    for line in range(lines):
        for q in range(qubits):
            y = line * step + q
            axes.plot([-0.6, min(end - line * fold, fold) - 0.4], [y, y], color=GREY, linewidth=0.8, zorder=1)
            axes.text(-0.75, y, f"q{q}", ha="right", va="center", fontsize=8)
    for name, colour, start, stop in zip(
        ("preparation", "Q", "measure"), PARTS, starts, [*starts[1:], end], strict=True
    ):
        for line in range(start // fold, -(-stop // fold)) if stop > start else ():
            x, last = max(start - line * fold, 0), min(stop - line * fold, fold)
            corner = (x - 0.48, line * step - 0.75)
            axes.add_patch(Rectangle(corner, last - x - 0.04, qubits + 0.4, color=colour, alpha=0.13, zorder=0))
            axes.text(corner[0] + 0.05, corner[1] + 0.05, name, fontsize=7, va="top", color=colour)
    for column, gate in placed:
        x, top = column % fold, column // fold * step
        ys = [top + q for q in gate.qubits]
        if len(ys) == 2:
            axes.plot([x, x], ys, "o-", color="k", markersize=5, linewidth=1.2, zorder=3)
            continue
        box = Rectangle((x - 0.42, ys[0] - 0.3), 0.84, 0.6, facecolor="w", edgecolor="k", linewidth=0.8, zorder=3)
        axes.add_patch(box)
        axes.text(x, ys[0], gate.words, ha="center", va="center", fontsize=6, zorder=4)
    axes.set(xlim=(-1.2, min(end, fold) - 0.2), ylim=(lines * step - 0.7, -0.85))
    axes.axis("off")
    return figure
