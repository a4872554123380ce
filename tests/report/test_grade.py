"""Rules from intervals to grades; above all: a wider interval never earns a better grade."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrun.evaluation.intervals import Interval
from qrun.evaluation.questions import binomial_interval
from qrun.report.claims import CLAIMS
from qrun.report.grade import Outcome, together, within
from qrun.report.page import interval as told
from qrun.studies import circuits, controls, dim, frontier, ladder, noise, questions, recover, sites, wall

YES, NO, OPEN, PART, NONE = (
    Outcome.reproduced, Outcome.not_reproduced, Outcome.undecided, Outcome.in_part, Outcome.untestable,
)  # fmt: skip
NAN = math.nan


@pytest.mark.parametrize(
    ("interval", "low", "high", "expected"),
    [
        ((0.1, 0.2), 0.0, math.inf, YES),
        ((-0.1, 0.2), 0.0, math.inf, OPEN),
        ((-0.2, -0.1), 0.0, math.inf, NO),
        ((0.1, 0.2), -math.inf, 0.16, OPEN),
        ((0.1, 0.15), -math.inf, 0.16, YES),
        ((0.17, 0.2), -math.inf, 0.16, NO),
        ((1.5, 5.5), 1.4, 5.6, YES),
        ((1.3, 5.5), 1.4, 5.6, OPEN),
        ((1.5, 5.7), 1.4, 5.6, OPEN),
        ((1.0, 6.0), 1.4, 5.6, OPEN),
        ((0.1, 1.3), 1.4, 5.6, NO),
        ((5.7, 9.0), 1.4, 5.6, NO),
        ((-300.0, 300.0), 73.0, math.inf, OPEN),
        ((-math.inf, math.inf), 0.0, 1.0, OPEN),
        ((NAN, NAN), 0.0, math.inf, NONE),
        ((NAN, 1.0), 0.0, math.inf, NONE),
        ((0.0, NAN), 0.0, math.inf, NONE),
    ],
)
def test_within(interval, low, high, expected):
    assert within(Interval(*interval), low, high) is expected


def test_no_interval_is_not_testable():
    assert within(None, 0.0) is NONE


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], NONE),
        ([NONE], NONE),
        ([YES], YES),
        ([YES, YES], YES),
        ([YES, NONE], YES),
        ([NO], NO),
        ([NO, NO, NONE], NO),
        ([YES, NO], PART),
        ([YES, NO, NONE], PART),
        ([OPEN], OPEN),
        ([YES, OPEN], OPEN),
        ([NO, OPEN], OPEN),
        ([YES, NO, OPEN], OPEN),
        ([NONE, OPEN], OPEN),
    ],
    ids=lambda v: "+".join(o.name for o in v) if isinstance(v, list) else "",
)
def test_together(outcomes, expected):
    assert together(outcomes) is expected and together(reversed(outcomes)) is expected
    assert together(iter(outcomes)) is expected


number = st.floats(-1e3, 1e3, allow_nan=False)
width = st.floats(0, 1e3, allow_nan=False)


@st.composite
def widened(draw):
    """An interval, and one that holds it."""
    low, high = sorted((draw(number), draw(number)))
    return Interval(low, high), Interval(low - draw(width), high + draw(width))


@given(widened(), number, number)
def test_a_wider_interval_is_never_reproduced_nor_refuted_where_the_narrow_one_is_not(pair, a, b):
    narrow, wide = pair
    for margin in ((a, math.inf), (-math.inf, b), (min(a, b), max(a, b))):
        before, after = within(narrow, *margin), within(wide, *margin)
        assert after in (before, OPEN)


@given(st.lists(widened(), max_size=6), number)
def test_nor_over_several_settings(pairs, low):
    before, after = (together(within(pair[i], low) for pair in pairs) for i in (0, 1))
    assert after in (before, OPEN)


@given(st.lists(st.sampled_from([YES, NO, OPEN, NONE]), max_size=6), st.data())
def test_a_setting_less_certain_never_makes_the_whole_more_certain(outcomes, data):
    if outcomes:
        at = data.draw(st.integers(0, len(outcomes) - 1))
        less = [OPEN if i == at and o is not NONE else o for i, o in enumerate(outcomes)]
        assert together(less) in (together(outcomes), OPEN)


# --- each study's grades, from numbers made by hand


def over_both(seeds, documents):
    """An interval that holds both, none where one is missing."""
    return {"both_low": np.min([seeds[0], documents[0]]), "both_high": np.max([seeds[1], documents[1]])}


def grade(study, found, claim):
    """Outcome of a claim; None where the study does not grade it."""
    return {verdict.claim: verdict.outcome for verdict in study.grades(found)}.get(claim)


def dim_numbers(steps=((0.1, 0.3),), gain=(0.05, 0.2), documents=(0.02, 0.3), dims=6):
    trends = [{"sites": f"s{i}", "dims": dims, "step_both_low": low, "step_both_high": high}
              for i, (low, high) in enumerate(steps)]  # fmt: skip
    row = {"sites": "one", "b": 4, "method": "cayley", "seeds": 5, "gain": sum(gain) / 2, "parameters": 288,
           **over_both(gain, documents)}  # fmt: skip
    blocks = pd.DataFrame([{"sites": "one", "b": 4, "entropy_ratio": 0.1}])
    return {"gains": pd.DataFrame([row]), "text": pd.DataFrame([{"base": 32.0}]), "trends": pd.DataFrame(trends),
            "blocks": blocks}  # fmt: skip


def controls_numbers(ahead=((0.1, 0.3),), oft=1e-6):
    names = ("per_thousand", "per_thousand_both_low", "per_thousand_both_high")
    pairs = [{"sites": "s", "b": 4, "oft": oft, **dict(zip(names, (a, a, b), strict=True))} for a, b in ahead]
    return {"pairs": pd.DataFrame(pairs), "gains": pd.DataFrame([{"seeds": 3}])}


def noise_numbers(
    widths=((0.2, 0.4),), percent=(0.01, 0.02), level=30.0, dim=4, sites="one", ratio=(20.0, 50.0), **axes
):
    """One row at the preset; `percent` is the interval over seeds and documents, of the perplexity."""
    ends = [{"sites": sites, "axis": "gates", "b": dim, "width_both_low": low, "width_both_high": high}
            for low, high in widths]  # fmt: skip
    low, high = (level * p / 100 for p in percent)
    preset = {"sites": sites, "sign": "input", "shots": 8192, "b": dim, "seeds": 3, "exact_perplexity": level,
              "preset_perplexity": level + (low + high) / 2, "penalty": (low + high) / 2, "quiet_penalty": 0.0,
              "percent": sum(percent) / 2, "of_gain": 0.1, "both_low": low,
              "both_high": high, "ratio_low": ratio[0], "ratio_high": ratio[1], **axes}  # fmt: skip
    return {"ends": pd.DataFrame(ends), "preset": pd.DataFrame([preset])}


def wall_numbers(paper=(-3.0, -2.0), ours=(0.45, 0.7), b=8, sites="all", noise="heron_r2"):
    """Both ways at one noise; each interval over seeds and over documents."""
    rows = [{"sites": sites, "b": b, "way": way, "noise": noise, "rate": NAN, "seeds": 3, "kept": (low + high) / 2,
             "both_low": low, "both_high": high}
            for way, (low, high) in ((wall.PAPER, paper), (wall.OURS, ours))]  # fmt: skip
    return {"kept": pd.DataFrame(rows)}


def circuits_numbers(seeds=(0.65, 0.8), documents=(0.62, 0.75), **axes):
    """The share of the gain that trained circuits keep."""
    row = {"sites": "all", "b": 8, "what": "circuit", "k": 6, "seeds": 3, "kept": 0.7,
           **over_both(seeds, documents), **axes}  # fmt: skip
    return {"kept": pd.DataFrame([row])}


def recover_numbers(*intervals, compressed=50.0):
    """Home recoveries of the distilled adapter at several ratios; each (low, high) over seeds and documents."""
    rows = [{"what": "adapter, distilled", "text": "home", "ratio": 0.5 + i / 10, "b": 4, "seeds": 3, "original": 30.0,
             "compressed": compressed, "recovery_both_low": low, "recovery_both_high": high}
            for i, (low, high) in enumerate(intervals)]  # fmt: skip
    return {"recovery": pd.DataFrame(rows)}


def questions_numbers(right, changed):
    low, high = binomial_interval(right, changed) if changed else (NAN, NAN)
    row = {"arm": "adapter", "changed": changed, "answered": right, "failed": 20, "flips": changed / 3}
    return {"both_fail": pd.DataFrame([{**row, "chance": 1 / 3, "share_low": low, "share_high": high}])}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0.1, 0.3)], YES),
        ([(0.1, 0.3), (-0.1, 0.3)], OPEN),
        ([(0.1, 0.3), (-0.3, -0.1)], PART),
        ([(-0.3, -0.1)], NO),
        ([(NAN, NAN)], NONE),
        ([(0.0, 0.0)], NO),
    ],
)  # fmt: skip
def test_monotone_asks_every_step_of_every_site_set(steps, expected):
    assert grade(dim, dim_numbers(steps), "monotone") is expected
    assert grade(dim, dim_numbers(steps, dims=2), "monotone") is NONE  # two points are no trend


@pytest.mark.parametrize(
    ("seeds", "documents", "expected"),
    [
        ((0.05, 0.2), (0.02, 0.3), YES),
        ((0.05, 0.2), (-0.02, 0.3), OPEN),
        ((-0.05, 0.2), (0.02, 0.3), OPEN),
        ((-0.2, -0.05), (-0.3, -0.02), NO),
        ((0.05, 0.2), (NAN, NAN), NONE),
        ((NAN, NAN), (0.02, 0.3), NONE),
        ((0.0, 0.0), (0.0, 0.0), NO),
    ],
)
def test_a_gain_is_above_zero_over_seeds_and_over_documents(seeds, documents, expected):
    assert grade(dim, dim_numbers(gain=seeds, documents=documents), "gain") is expected


def test_entanglement_has_no_value_to_compare_with():
    assert grade(dim, dim_numbers(), "schmidt") is Outcome.no_value


@pytest.mark.parametrize(("most", "expected"), [(0.0, YES), (9e-5, YES), (1.1e-4, NO), (1e-3, NO), (0.5, NO)])
def test_oft_is_the_same_map_within_a_ten_thousandth(most, expected):
    assert grade(controls, controls_numbers(oft=most), "oft") is expected


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [([(0.1, 0.3)], YES), ([(0.1, 0.3), (-0.1, 0.3)], OPEN), ([(0.1, 0.3), (-0.3, -0.1)], PART),
     ([(-0.3, -0.1)], NO), ([(0.0, 0.0)], NO)],
)  # fmt: skip
def test_efficiency_asks_all_site_sets(ahead, expected):
    assert grade(controls, controls_numbers(ahead), "efficiency") is expected


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ([(0.2, 0.4)], YES),
        ([(0.2, 0.476)], YES),
        ([(0.2, 0.478)], OPEN),  # half of log10(9) is 0.4771
        ([(0.6, 0.7)], NO),
        ([(0.2, 0.4), (0.9, 1.0)], PART),
        ([(0.2, 0.4), (0.3, 0.8)], OPEN),
        ([(NAN, NAN)], NONE),
        ([(0.4788, 1.0)], NO),
    ],
)
def test_a_transition_ends_within_half_the_decades_of_proportional_damage(widths, expected):
    assert grade(noise, noise_numbers(widths), "transition") is expected


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        ((0.0, 0.159), YES),
        ((0.1, 0.17), OPEN),
        ((0.2, 1.0), NO),
        ((0.17, 0.18), NO),
        ((-5 / 0.3, 5 / 0.3), OPEN),  # penalty 0 [-5, +5] of 30
        ((0.003 / 0.3, 0.005 / 0.3), YES),  # +0.004 [0.003, 0.005] of 30
        ((-1.0, -0.5), YES),  # noise that helps costs nothing
        ((NAN, NAN), NONE),
    ],
)
def test_two_qubit_blocks_cost_at_most_twice_the_papers_share(percent, expected):
    assert grade(noise, noise_numbers(percent=percent), "penalty2") is expected
    assert grade(noise, noise_numbers(percent=percent, sites="all"), "penalty2") is None
    assert grade(noise, noise_numbers(percent=percent, sign="exact"), "penalty2") is None
    assert grade(noise, noise_numbers(percent=percent, shots=0), "penalty2") is None


@pytest.mark.parametrize(
    ("percent", "expected"),
    [((1.5, 5.5), YES), ((1.3, 2.0), OPEN), ((0.1, 1.3), NO), ((5.7, 9.0), NO), ((-16.0, 16.0), OPEN)],
)
def test_three_qubit_blocks_cost_half_to_twice_the_papers_share(percent, expected):
    found = noise_numbers(percent=percent, dim=8)
    assert grade(noise, found, "penalty3_percent") is expected and grade(noise, found, "penalty2") is None


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [((18.0, 69.0), YES), ((17.0, 69.0), OPEN), ((18.0, 71.0), OPEN), ((1.1, 1.3), NO), ((71.0, 90.0), NO),
     ((NAN, NAN), NONE)],
)  # fmt: skip
def test_everywhere_they_multiply_perplexity_by_half_to_twice_35(ratio, expected):
    assert grade(noise, noise_numbers(dim=8, sites="all", ratio=ratio), "penalty3_fold") is expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(-3.0, 3.0)], OPEN),  # 20 % [-300 %, +300 %]
        ([(0.74, 0.9)], YES),
        ([(0.73, 0.9)], YES),
        ([(0.55, 0.65)], NO),
        ([(0.6, 0.72)], NO),
        ([(0.7, 0.8)], OPEN),
        ([(0.74, 0.9), (0.1, 0.3)], PART),
        ([(0.74, 0.9), (0.7, 0.8)], OPEN),
        ([(NAN, NAN)], NONE),
    ],
)
def test_home_recovery_is_73_percent_or_more(intervals, expected):
    assert grade(recover, recover_numbers(*intervals), "recovery") is expected


def test_where_compression_did_no_damage_there_is_nothing_to_recover():
    assert grade(recover, recover_numbers((0.1, 0.2), compressed=31.4), "recovery") is NONE  # 5 % is 31.5
    assert grade(recover, recover_numbers((0.1, 0.2), compressed=31.6), "recovery") is NO


def test_recovery_has_no_grade_without_home_text():
    found = recover_numbers((0.74, 0.9))
    assert recover.grades({"recovery": found["recovery"].assign(text="shifted")}) == []


@pytest.mark.parametrize("column", ["what", "text"])
def test_recovery_goes_by_the_distilled_adapter_on_home_text_alone(column):
    found = recover_numbers((0.74, 0.9), (0.1, 0.2))
    found["recovery"].loc[1, column] = "another"
    assert grade(recover, found, "recovery") is YES


@pytest.mark.parametrize(
    ("right", "changed", "expected"),
    [
        (1, 4, OPEN),  # one hit where chance gives 1.3
        (0, 4, OPEN),
        (3, 10, OPEN),
        (9, 10, YES),
        (0, 30, NO),
        (3, 3, OPEN),  # the exact interval of 3 of 3 begins at 0.29
        (0, 0, NONE),
    ],
)
def test_hits_are_compared_with_chance_by_their_exact_interval(right, changed, expected):
    assert grade(questions, questions_numbers(right, changed), "both_fail") is expected


@pytest.mark.parametrize(
    ("paper", "ours", "expected"),
    [
        ((-3.0, -2.0), (0.45, 0.7), YES),
        ((-3.0, 0.1), (0.45, 0.7), OPEN),
        ((-3.0, -2.0), (0.35, 0.7), OPEN),
        ((-3.0, -2.0), (0.1, 0.3), NO),  # one half refuted refutes the claim
        ((0.5, 0.6), (0.5, 0.6), NO),  # no wall at all
        ((-3.0, 0.1), (0.1, 0.3), NO),
        ((-3.0, -2.0), (NAN, NAN), NONE),
        ((0.1, 0.3), (0.1, 0.3), NO),
        ((-3.0, 0.0), (0.45, 0.7), OPEN),  # nothing is not less than nothing
        ((NAN, NAN), (NAN, NAN), NONE),
    ],
)
def test_the_wall_is_the_estimators_where_the_papers_way_loses_all_and_ours_keeps_two_fifths(paper, ours, expected):
    assert grade(wall, wall_numbers(paper, ours), "wall") is expected
    assert grade(wall, wall_numbers(paper, ours, b=4), "wall") is NONE
    assert grade(wall, wall_numbers(paper, ours, sites="one"), "wall") is NONE


def test_a_wall_of_the_estimator_at_one_noise_of_two_is_one_in_part():
    both = [wall_numbers()["kept"], wall_numbers(ours=(0.1, 0.3), noise="FakeMarrakesh")["kept"]]
    assert grade(wall, {"kept": pd.concat(both)}, "wall") is PART


def test_where_there_is_no_interval_no_reach_is_told():
    facts = wall.grades(wall_numbers((NAN, NAN), (NAN, NAN)))[0].facts
    assert np.isnan([*facts["paper"], *facts["ours"]]).all()


@pytest.mark.parametrize(("paper", "expected"), [((0.1, 0.3), YES), ((0.0, 0.3), OPEN), ((-0.3, -0.1), NO)])
def test_larger_scales_are_reached_where_the_papers_way_keeps_a_gain(paper, expected):
    found = wall_numbers(paper)
    assert grade(wall, found, "scales") is expected
    facts = wall.grades(found)[0].facts
    assert facts["paper"] == [8.0 if expected is YES else 0.0] and facts["ours"] == [8.0]


@pytest.mark.parametrize(
    ("seeds", "documents", "expected"),
    [
        ((0.6, 0.8), (0.62, 0.75), YES),
        ((0.65, 0.8), (0.55, 0.75), OPEN),
        ((0.5, 0.8), (0.62, 0.75), OPEN),
        ((0.3, 0.5), (0.4, 0.59), NO),
        ((NAN, NAN), (0.7, 0.8), NONE),
    ],
)
def test_six_cz_are_enough_where_the_whole_interval_is_three_fifths_or_more(seeds, documents, expected):
    assert grade(circuits, circuits_numbers(seeds, documents), "few_cz") is expected
    for axes in ({"b": 4}, {"sites": "one"}, {"k": 8}, {"what": "cut"}):
        assert grade(circuits, circuits_numbers(seeds, documents, **axes), "few_cz") is NONE


MAKERS = {
    ("few_cz", circuits): lambda a, b: circuits_numbers(a, b),
    ("wall", wall): lambda a, b: wall_numbers(a, b),
    ("scales", wall): lambda a, _: wall_numbers(a),
    ("monotone", dim): lambda a, b: dim_numbers([a, b]),
    ("gain", dim): lambda a, b: dim_numbers(gain=a, documents=b),
    ("efficiency", controls): lambda a, b: controls_numbers([a, b]),
    ("transition", noise): lambda a, b: noise_numbers([a, b]),
    ("penalty2", noise): lambda a, _: noise_numbers(percent=a),
    ("penalty3_percent", noise): lambda a, _: noise_numbers(percent=a, dim=8),
    ("penalty3_fold", noise): lambda a, _: noise_numbers(ratio=a, dim=8, sites="all"),
    ("recovery", recover): lambda a, b: recover_numbers(a, b),
}
near = st.floats(-1, 6, allow_nan=False)


@pytest.mark.parametrize(("claim", "study"), MAKERS, ids=[claim for claim, _ in MAKERS])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_study_grades_wider_intervals_better(claim, study, data):
    narrow, wide = [], []
    for _ in range(2):
        low, high = sorted((data.draw(near), data.draw(near)))
        narrow.append((low, high))
        wide.append((low - data.draw(width), high + data.draw(width)))
    make = MAKERS[claim, study]
    before, after = grade(study, make(*narrow), claim), grade(study, make(*wide), claim)
    assert after in (before, OPEN)


@settings(max_examples=40, deadline=None)
@given(right=st.integers(0, 40), more=st.integers(0, 40), low=width, high=width)
def test_nor_do_questions(right, more, low, high):
    found = questions_numbers(right, right + more)
    before = grade(questions, found, "both_fail")
    row = found["both_fail"]
    wide = {"both_fail": row.assign(share_low=row["share_low"] - low, share_high=row["share_high"] + high)}
    assert grade(questions, wide, "both_fail") in (before, OPEN)


def sites_numbers(low=0.9, high=1.1, b=4, way="line/sqrt/input"):
    row = {"b": b, "way": way, "seeds": 5, "exponent_both_low": low, "exponent_both_high": high}
    return {"ends": pd.DataFrame([row])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [({}, "reproduced"), ({"low": 0.7}, "undecided"), ({"low": 1.3, "high": 1.4}, "not reproduced"),
     ({"b": 8}, "not testable here"), ({"way": "line/calibrated/input"}, "not testable here")],
)  # fmt: skip
def test_the_penalty_is_in_proportion_to_the_sites_at_b_4_by_the_papers_readout(words, expected):
    assert [v.outcome.value for v in sites.grades(sites_numbers(**words))] == [expected]


def frontier_numbers(*pairs):
    rows = [{"method": method, "ahead": (low + high) / 2, "both_low": low, "both_high": high}
            for method, low, high in pairs or [("lora", 0.1, 0.2)]]  # fmt: skip
    return {"pairs": pd.DataFrame(rows), "gains": pd.DataFrame([{"seeds": 3}])}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [([("lora", 0.1, 0.2), ("boft", -0.2, -0.1)], "reproduced"),
     ([("lora", 0.1, 0.2), ("lora", -0.1, 0.1)], "undecided"),
     ([("lora", 0.1, 0.2), ("lora", -0.2, -0.1)], "in part"), ([("boft", 0.1, 0.2)], "not testable here")],
)  # fmt: skip
def test_only_lora_of_equal_parameters_decides_the_frontier(pairs, expected):
    assert [v.outcome.value for v in frontier.grades(frontier_numbers(*pairs))] == [expected]


def ladder_numbers(low=0.1, high=0.3, b=4, sites="one", quantity="gain, cayley"):
    row = {"quantity": quantity, "sites": sites, "b": b, "slope_low": low, "slope_high": high}
    return {"lines": pd.DataFrame([row]), "models": pd.DataFrame([{}] * 5), "gains": pd.DataFrame([{"seeds": 3}])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [({}, "reproduced"), ({"low": 0.0, "high": 0.0}, "reproduced"), ({"low": -0.1}, "undecided"),
     ({"low": -0.2, "high": -0.1}, "not reproduced"), ({"low": math.nan}, "not testable here"),
     ({"b": 8}, "not testable here"), ({"sites": "all"}, "not testable here"),
     ({"quantity": "gain, lora"}, "not testable here")],
)  # fmt: skip
def test_the_slope_of_the_gain_of_one_site_decides_whether_it_falls_with_size(words, expected):
    assert [v.outcome.value for v in ladder.grades(ladder_numbers(**words))] == [expected]


def test_every_verdict_is_about_a_stated_claim():
    found = [
        *dim.grades(dim_numbers()), *controls.grades(controls_numbers()), *recover.grades(recover_numbers((0.7, 0.8))),
        *questions.grades(questions_numbers(1, 4)), *noise.grades(noise_numbers()),
        *noise.grades(noise_numbers(dim=8)), *noise.grades(noise_numbers(dim=8, sites="all")),
        *wall.grades(wall_numbers()), *circuits.grades(circuits_numbers()), *sites.grades(sites_numbers()),
        *frontier.grades(frontier_numbers()), *ladder.grades(ladder_numbers()),
    ]  # fmt: skip
    assert {verdict.claim for verdict in found} == set(CLAIMS) - {"two_questions", "hardware"}


def test_an_interval_is_told_whatever_its_name():
    row = {"of sampled 0.5_low": 0.1, "of sampled 0.5_high": 0.25, "gain_low": math.nan, "gain_high": math.nan}
    assert told(row, "of sampled 0.5", ".0%") == "[10%, 25%]"
    assert told(row, "gain") == told(row, "absent") == "no interval"
