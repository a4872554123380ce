"""Curves for MLflow's charts: which runs, which steps, which metrics."""

import numpy as np
import pandas as pd
import pytest

from qrun import studies
from qrun.report.curves import AXES, COLOURS, curves, milli_decades


def test_rates_are_milli_decades_above_a_millionth():
    assert [round(milli_decades(rate)) for rate in (1e-6, 1e-3, 2e-2, 1.78e-3)] == [0, 3000, 4301, 3250]


def test_every_study_with_an_axis_is_one():
    assert set(AXES) < set(studies.STUDIES) and "questions" not in AXES


def test_a_noise_study_is_a_curve_per_dimension_and_axis_with_the_share_of_the_gain():
    rows = [
        {"sites": "all", "sign": "input", "shots": 8192, "b": b, "axis": axis, "rate": rate,
         "relative": 1.0 - gain / 28, "gain": gain, "penalty": 0.5 - gain, "kept": gain / 0.5}
        for b in (4, 8) for axis in ("gates", "readout", "preset")
        for rate, gain in (((np.nan, 0.1),) if axis == "preset" else ((1e-2, -0.4), (1e-3, 0.2)))
    ]  # fmt: skip
    found = list(curves("noise", {"relative": pd.DataFrame(rows)}))
    assert [curve.name for curve in found] == ["b=4 gates", "b=4 readout", "b=8 gates", "b=8 readout"]
    assert found[2].params == {"b": 8, "axis": "gates"} and len({curve.colour for curve in found}) == 4
    steps = found[2].rows
    assert [step for step, _ in steps] == [3000, 4000]  # rising, whatever the table's order
    assert steps[0][1] == pytest.approx(
        {"gain": 0.2, "penalty": 0.3, "relative_perplexity": 1 - 0.2 / 28, "gain_kept": 0.4}
    )


def test_a_study_of_dimensions_is_a_curve_per_method_without_what_is_missing():
    rows = pd.DataFrame({
        "sites": "all", "method": ["cayley", "cayley", "lora"], "b": [2, 64, 2], "gain": [0.1, 0.9, 0.3],
        "perplexity": 28.0, "document_low": [0.0, np.nan, 0.1], "document_high": [0.2, np.nan, 0.4],
    })  # fmt: skip
    first, second = curves("dim", {"gains": rows})
    assert (first.name, second.name, first.colour) == ("cayley", "lora", COLOURS[0])
    assert first.rows[1] == (64, {"gain": 0.9, "perplexity": 28.0})  # no interval there
    assert list(curves("questions", {"gains": rows})) == [] == list(curves("wall", {"gains": rows}))
