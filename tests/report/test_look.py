"""Colours as people see them, and what a heat map shows."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from qrun.report.curves import COLOURS
from qrun.report.figures import KIND_COLOURS
from qrun.report.look import Map, ends_of, heat_maps, of_dim, share_axis, widest
from qrun.report.pictures import PARTS

SEEN = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "everybody": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, seen):
    """CIELAB (D65) of a colour as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SEEN[seen]) @ linear, 0, 1) / XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(colours, seen):
    """The smallest CIE76 distance of two colours."""
    return min(float(np.linalg.norm(lab(a, seen) - lab(b, seen))) for a, b in combinations(colours, 2))


def test_distances_are_those_of_cielab():
    assert lab("w", "everybody") == pytest.approx([100, 0, 0], abs=0.1)
    assert lab("r", "everybody") == pytest.approx([53.2, 80.1, 67.2], abs=0.2)
    assert apart(["#0072B2", "#9467bd"], "protanopes") < 10  # blue and purple of another palette


DIMS = [of_dim(2**n)["color"] for n in range(1, 7)]


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("colours", [COLOURS, DIMS, list(KIND_COLOURS.values()), PARTS],
                         ids=["series", "b", "methods", "parts"])  # fmt: skip
def test_colours_are_told_apart(colours, seen):
    assert apart([*colours, "w"], seen) >= 10


def test_each_b_has_a_marker_of_its_own_and_a_paler_colour_than_the_one_before():
    assert len({of_dim(2**n)["marker"] for n in range(1, 7)}) == 6
    light = [lab(colour, "everybody")[0] for colour in DIMS]
    assert light == sorted(light)


def grid():
    return pd.DataFrame([[0.95, 0.4, -0.2], [0.6, -2.0, -45.0], [math.nan] * 3], [2, 4, 8], [1e-3, 1e-2, 1e-1])


def shown(ends):
    """Texts of a map, and its line's corners."""
    figure = heat_maps([[Map("a way", grid(), ends)]], "title", ["rate"])
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts], axes.lines[0].get_xydata().tolist()


def test_a_map_tells_shares_and_the_rate_where_the_gain_of_each_b_ends():
    texts, line = shown({2: math.sqrt(1e-3), 4: "below"})
    assert texts == ["not measured", "95%", "40%", "-20%", "60%", "-200%", "< -1,000%"]
    assert np.array(line[:4]) == pytest.approx(np.array([[1.5, -0.5], [1.5, 0.5], [-0.5, 0.5], [-0.5, 1.5]]))
    assert np.isnan(line[4][0])  # b = 8 has no end
    assert shown({2: "above"})[1][0] == [2.5, -0.5]


def test_ends_are_rates_or_sides():
    rows = pd.DataFrame({"b": [4, 8, 16], "rate": [2e-3, math.nan, math.nan], "side": ["", "below", "above"]})
    assert ends_of(rows, "rate", "side") == {4: 2e-3, 8: "below", 16: "above"}


def test_a_band_holds_what_there_is_of_both_intervals():
    rows = pd.DataFrame({"seed_low": [0.1, math.nan], "seed_high": [0.5, math.nan], "document_low": [0.2, 0.3],
                         "document_high": [0.6, 0.4]})  # fmt: skip
    low, high = widest(rows)
    assert low.tolist() == [0.1, 0.3] and high.tolist() == [0.6, 0.4]


@pytest.mark.parametrize(("lowest", "bottom"), [(math.nan, -0.25), (0.3, -0.25), (-2.0, -2.8)])
def test_an_axis_of_shares_has_limits_also_where_there_is_no_gain(lowest, bottom):
    axes = Figure().subplots()
    share_axis(axes, lowest)
    assert axes.get_ylim() == pytest.approx((bottom, 1.6))
