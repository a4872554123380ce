"""Intervals over seeds and documents together hold the truth as often as they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qrun.evaluation.intervals import mean_error, perplexity_difference
from qrun.evaluation.resampling import over_seeds_and_documents, units_needed
from qrun.evaluation.trends import mean_interval

spec = importlib.util.spec_from_file_location(
    "intervals_script", Path(__file__).parents[2] / "scripts" / "intervals.py"
)
simulated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated)


@pytest.mark.slow
@pytest.mark.parametrize("case", simulated.CASES)
def test_an_interval_over_both_holds_the_truth_whichever_of_the_two_spreads_more(case):
    """Of 200 studies, nominally 190; 182 is 2.6 standard errors below. One over seeds alone, or over documents alone,
    does not where the other spreads."""
    held = simulated.coverage(200, 41, 5, case)
    assert held["over seeds and documents"] >= 0.91, held
    assert min(held["t over seeds"], held["BCa over documents"]) < held["over seeds and documents"]


def test_where_seeds_alone_differ_the_interval_is_nearly_students():
    rng, weight = np.random.default_rng(1), np.full(40, 100.0)
    levels = 3 + 0.01 * rng.standard_normal(5)
    first, second = np.full(40, 310.0), np.outer(levels, weight)
    found = over_seeds_and_documents(perplexity_difference, (first, second), weight, 9999, 0)
    expected = mean_interval((np.exp(3.1) - np.exp(levels)).tolist())
    assert found == pytest.approx(expected, rel=0.15)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.15)


def test_one_seed_and_few_documents_have_no_interval_over_both():
    weight = np.full(30, 10.0)
    words = (perplexity_difference, (weight * 3, np.array([weight * 2.9])), weight)
    assert over_seeds_and_documents(*words, 99, 0) is None
    few = np.full(19, 10.0)
    assert over_seeds_and_documents(perplexity_difference, (few * 3, np.array([few, few])), few, 99, 0) is None


def test_the_standard_error_of_a_ratio_agrees_with_resampling():
    rng = np.random.default_rng(2)
    weight = 400 * np.exp(0.6 * rng.standard_normal(200))
    sums = weight * (0.02 + 0.05 * rng.standard_normal(200))
    mean, error = mean_error(sums, weight)
    drawn = rng.multinomial(200, np.full(200, 1 / 200), 4000)
    assert mean == pytest.approx(sums.sum() / weight.sum())
    assert error == pytest.approx(((drawn @ sums) / (drawn @ weight)).std(), rel=0.08)


def test_one_document_has_no_standard_error():
    mean, error = mean_error(np.array([3.0]), np.array([10.0]))
    assert mean == 0.3 and np.isnan(error)


def test_the_units_of_a_study_give_its_power():
    assert units_needed(0.5, 1.0) == 32  # Cohen's table, normal approximation: (1.96 + 0.84)^2 / 0.5^2
    assert (units_needed(0.01, 0.02), units_needed(0.001, 0.02)) == (32, 3140)
