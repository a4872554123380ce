"""Curves for MLflow's charts: which runs, which steps, which metrics."""

import numpy as np
import pandas as pd
import pytest

from qrun import studies
from qrun.evaluation.results import Results
from qrun.evaluation.trainings import trainings
from qrun.report.curves import AXES, COLOURS, curves, milli_decades, with_trainings
from qrun.report.figures import convergence


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


FULL = {"flat": (3, 60), "cap": (3, 90), "cosine": (15, 15), "passing": (3, 50)}  # from and until which step


class Kept:
    """A store with the histories of a few runs, validated every 15 steps."""

    def history(self, run_id, metric):
        if run_id not in FULL:
            return {}
        begin, end = FULL[run_id]
        if metric == "validation/nats":
            return {step: 3.0 - step / 1000 for step in range(0, 106, 15)}
        return {step: min(step / begin, 1.0, 1 - (step - end) / 100) for step in range(1, 106)}


def trained(run, **axes):
    at_cap = float(run == "cap")
    return {"kind": "train", "key": f"key of {run}", "run_id": run, "method": "cayley", "sites": "one", "b": 4,
            "seed": 0, "steps": 105, "best_step": 105, "lr": 0.1, "at_cap": at_cap, **axes}  # fmt: skip


@pytest.mark.parametrize(
    ("run", "plateau"), [("flat", [60]), ("cap", []), ("cosine", []), ("passing", []), ("gone", None)]
)
def test_the_plateau_is_the_validated_step_behind_which_the_rate_fell(run, plateau):
    results = Results(pd.DataFrame([trained(run), {"kind": "measure", "key": "m"}]), {"m": {"nats": [1.0]}})
    found = with_trainings(results, Kept()).units
    assert found["m"] == {"nats": [1.0]} and results.units.keys() == {"m"}
    if plateau is None:
        assert found.keys() == {"m"}
        return
    own = found[f"key of {run}"]
    assert own["plateau"] == plateau and own["step"] == list(range(0, 106, 15)) and own["nats"][1] == 2.985
    rows = trainings(with_trainings(results, Kept()))["curves"]
    assert rows["step"].tolist() == own["step"] and rows[rows["plateau"]]["step"].tolist() == plateau
    assert set(rows["method"]) == {"cayley"} and set(rows["seed"]) == {0} and "steps" not in rows


def test_a_line_is_drawn_per_seed_at_b_4_or_the_nearest_that_a_method_has():
    rows = [trained("flat", key=f"{b}{seed}", b=b, seed=seed) for b in (2, 4, 8) for seed in range(2)]
    rows += [trained("cap", key=f"lora{b}", b=b, method="lora") for b in (8, 16)]
    rows.append(trained("flat", key="all", sites="all"))
    curves = trainings(with_trainings(Results(pd.DataFrame(rows), {}), Kept()))["curves"]
    curves.loc[curves["b"] != 4, "nats"] += curves["b"]
    (figure,) = convergence("nano", curves).values()
    one, whole = figure.axes
    assert (one.get_title("left"), whole.get_title("left")) == ("one site", "all sites")
    drawn = [(line.get_color(), line.get_ydata()[0], line.get_markevery(), line.get_markerfacecolor())
             for line in one.lines]  # fmt: skip
    own = [(COLOURS[0], 3.0, [7], COLOURS[0]), (COLOURS[0], 3.0, [4], "w")]
    assert drawn == [*own, *own, (COLOURS[1], 11.0, [7], COLOURS[1]), (COLOURS[1], 11.0, [], "w")]
    assert len(whole.lines) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cayley", "lora"]
