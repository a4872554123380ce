import math

import numpy as np
import pytest
from scipy import stats

from qrun.evaluation.intervals import over_documents
from qrun.evaluation.resampling import recovery
from qrun.evaluation.trends import (
    common_line,
    crossings,
    mean_interval,
    monotone_trend,
    power_law,
    sharpness,
    widths,
    zero_crossing,
)


def test_mean_interval_is_students():
    values = [1.0, 2.0, 4.0, 5.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert all(math.isnan(v) for v in mean_interval([1.0])) and mean_interval([2.0, 2.0]) == (2.0, 2.0)


def test_falling_rows_are_a_trend_and_shuffled_rows_are_not():
    rng = np.random.default_rng(0)
    falling = 30 - np.arange(6) + rng.normal(0, 0.2, (5, 6))
    assert monotone_trend(falling)["p"] < 1e-4 and monotone_trend(falling)["violations"] == 0
    rising = monotone_trend(falling[:, ::-1])
    assert rising["p"] > 0.9 and rising["violations"] == 5
    assert math.isnan(monotone_trend(falling[:1])["p"])


@pytest.mark.parametrize("where", [3e-4, 4e-4, 2e-3, 9e-3])
def test_a_crossing_under_proportional_damage_is_exact_however_coarse_the_rates(where):
    rates = [1e-4, 1e-3, 1e-2]
    gains = 1 - np.array(rates) / where
    found = zero_crossing(rates, gains)
    assert found["rate"] == pytest.approx(where, rel=1e-12) and found["side"] == "" and math.isnan(found["bound"])
    many = crossings(rates, np.array([[gains, gains + 1, gains - 1, gains + 100]]))
    twice = 2 * where if 2 * where < 1e-2 else math.inf
    assert many.shape == (1, 4) and many[0] == pytest.approx([where, twice, 0.0, math.inf])


def test_the_first_of_several_crossings_counts():
    assert zero_crossing([1.0, 2.0, 3.0, 4.0], np.array([1.0, -1.0, 2.0, -3.0]))["rate"] == pytest.approx(1.5)


def test_no_crossing_is_said_and_not_made_up():
    for gains, side, bound in (
        ([1.0, 0.5], "above", 1e-3), ([-1.0, 2.0], "below", 1e-4), ([1.0], "above", 1e-4), ([-1.0], "below", 1e-4)
    ):  # fmt: skip
        found = zero_crossing([1e-4, 1e-3][: len(gains)], np.array(gains))
        assert (found["side"], found["bound"]) == (side, bound) and math.isnan(found["rate"])


def test_a_power_law_without_noise_is_found_as_it_is():
    x = [1.0, 2.0, 4.0, 8.0, 42.0]
    exponent, factor = power_law(x, np.array([[3 * v**1.5 for v in x], [1e-4 * v**0.5 for v in x]]))
    assert exponent == pytest.approx([1.5, 0.5], rel=1e-9) and factor == pytest.approx([3.0, 1e-4], rel=1e-9)


def test_a_power_law_is_not_bent_by_small_values_that_noise_takes_below_zero():
    """Errors of half a first value, as of a few documents: what is left of the logs above 0 is up to three times it."""
    x, rng = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 42.0]), np.random.default_rng(0)
    y = x**1.4 + rng.normal(0, 1, (4000, 6)) * x**0.7
    assert (y <= 0).mean() > 0.03
    exponent, _ = power_law(x, y)
    assert not np.isnan(exponent).any() and exponent.mean() == pytest.approx(1.4, abs=0.01)


def test_what_falls_below_zero_on_the_whole_has_no_power_law():
    exponent, factor = power_law([1.0, 2.0, 4.0], np.array([[-1.0, -2.0, -4.0], [1.0, 2.0, 4.0]]))
    assert math.isnan(exponent[0]) and math.isnan(factor[0]) and exponent[1] == pytest.approx(1.0)


@pytest.mark.parametrize("decade", [2, 6])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_sharpness_is_the_power_of_the_penalty_however_coarse_the_rates(power, decade):
    rates = np.logspace(-5, -1, 4 * decade + 1)
    gains = np.stack([1 - (rates / 3e-3) ** power, 2 - 2 * (rates / 1.7e-3) ** power])
    found = sharpness(rates.tolist(), gains, [1.0, 2.0])
    assert found["exponent"] == pytest.approx(power, rel=1e-6)
    assert [found[k] for k in ("width", "low", "high")] == pytest.approx([math.log10(9) / power] * 3, rel=1e-5)


def test_sharpness_is_not_moved_by_saturation_and_little_by_noise():
    rates, rng = np.logspace(-5, -1.5, 22), np.random.default_rng(0)
    gains = np.maximum(1 - rates / 1e-3, -3) + rng.normal(0, 0.03, (40, 22))
    found = sharpness(rates.tolist(), gains, [1.0] * 40)
    assert found["exponent"] == pytest.approx(1.0, abs=0.03) and found["low"] < math.log10(9) < found["high"]


def test_many_curves_at_once_have_the_widths_of_each():
    rates = np.logspace(-5, -1.5, 22)
    power, level = np.array([[0.7], [1.0], [2.0], [4.0]]), np.array([0.5, 1.0, 2.0, -1.0])
    gains = level[:, None] * (1 - (rates / 2e-3) ** power) + np.random.default_rng(0).normal(0, 0.01, (4, 22))
    found = widths(rates.tolist(), gains, level)
    assert found[:3] == pytest.approx(math.log10(9) / power[:3, 0], rel=0.05) and math.isnan(found[3])  # no gain
    for row, one, width in zip(gains[:3], level, found, strict=False):
        assert widths(rates.tolist(), row, np.array(one)) == pytest.approx(width, rel=1e-9)

    def left(p, row, one):  # squares that the best r_c leaves at this power
        seen = row > -one
        lost, scaled = 1 - row[seen] / one, rates[seen] ** p
        return np.square(lost - scaled * (lost @ scaled) / (scaled @ scaled)).sum()

    for row, one, width in zip(gains[:3], level, found, strict=False):
        p = math.log10(9) / width
        assert left(p, row, one) < min(left(q * p, row, one) for q in (0.5, 0.9, 0.999, 1.001, 1.1, 2))


def test_a_curve_that_does_not_end_inside_the_rates_has_no_sharpness():
    flat = sharpness([1e-3, 1e-2], np.array([[0.9, 0.8]]), [1.0])
    assert math.isnan(flat["width"]) and math.isnan(flat["exponent"])
    assert math.isnan(sharpness([1e-3, 1e-2], np.array([[0.95, 0.05]]), [1.0])["width"])  # two points


def test_recovery_is_the_share_of_the_loss_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    weight = rng.integers(50, 200, 40).astype(float)
    original = weight * rng.normal(3.0, 0.2, 40)
    compressed = original + 0.5 * weight
    adapted = original + 0.1 * weight * rng.normal(1, 0.3, 40)
    value = recovery(compressed, adapted, original, weight)
    low, high = over_documents(recovery, (compressed, adapted, original), weight, 999, 0)
    p, q, r = (np.exp(x.sum() / weight.sum()) for x in (compressed, adapted, original))
    assert value == pytest.approx((p - q) / (p - r)) and low < value < high and high - low < 0.2
    assert over_documents(recovery, (compressed, compressed, original), weight, 999, 0) == (0, 0)


# --- a slope that groups share


def test_a_line_through_one_group_has_the_slope_and_intervals_of_the_textbook():
    x, y = [5.9, 6.2, 6.5, 7.0], [0.4, 0.7, 0.6, 1.1]
    line, oracle = common_line(x, ["a"] * 4, y, 8.1, "a"), stats.linregress(x, y)
    assert (line.slope, line.value) == pytest.approx((oracle.slope, oracle.intercept + oracle.slope * 8.1), rel=1e-9)
    reach = stats.t.ppf(0.975, 2)
    assert line.slope_interval.high - line.slope == pytest.approx(reach * oracle.stderr, rel=1e-9)
    spread = math.sqrt(sum((b - oracle.intercept - oracle.slope * a) ** 2 for a, b in zip(x, y, strict=True)) / 2)
    apart = math.sqrt(1 + 1 / 4 + (8.1 - np.mean(x)) ** 2 / (4 * np.var(x)))
    assert line.interval.high - line.value == pytest.approx(reach * spread * apart, rel=1e-9) and line.freedom == 2


def test_groups_share_a_slope_and_keep_their_levels():
    x, groups = [6.0, 6.5, 7.0, 6.0, 7.0], ["a", "a", "a", "b", "b"]
    y = [2 * at + {"a": 1.0, "b": 5.0}[name] for at, name in zip(x, groups, strict=True)]
    found = {name: common_line(x, groups, y, 8.0, name) for name in "ab"}
    assert {name: line.value for name, line in found.items()} == pytest.approx({"a": 17.0, "b": 21.0}, abs=1e-9)
    assert found["a"].slope == pytest.approx(2.0) and found["a"].freedom == 2


def test_a_line_of_as_many_points_as_numbers_has_no_interval_and_of_one_size_there_is_none():
    line = common_line([6.0, 7.0], ["a", "a"], [1.0, 2.0], 8.0, "a")
    assert line.value == pytest.approx(3.0) and np.isnan(line.interval).all() and np.isnan(line.slope_interval).all()
    assert common_line([6.0, 6.0], ["a", "b"], [1.0, 2.0], 8.0, "a") is None
    assert common_line([6.0, 7.0], ["a", "a"], [1.0, 2.0], 8.0, "b") is None


def test_a_new_observation_lies_in_its_interval_as_often_as_said():
    rng, x, groups = np.random.default_rng(0), [6.0, 6.5, 7.0, 6.0, 6.5, 7.0], list("aaabbb")
    held = 0
    for _ in range(1000):
        y = [0.5 * at + (name == "b") + rng.normal(0, 0.2) for at, name in zip(x, groups, strict=True)]
        line = common_line(x, groups, y, 8.1, "b")
        held += line.interval.low < 0.5 * 8.1 + 1 + rng.normal(0, 0.2) < line.interval.high
    assert 930 < held < 970
