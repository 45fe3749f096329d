"""Intervals against SciPy, a normal approximation and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prism_lite.study.statistics import (
    bootstrap95,
    conclusion,
    mean_of_seeds,
    paired_differences,
    student95,
)


def test_students_interval_by_hand_and_by_scipy():
    low, high = student95([0.5, 0.6, 0.7])  # deviation 0.1, t 4.302653 with two degrees
    assert (low, high) == pytest.approx((0.6 - 0.2484138, 0.6 + 0.2484138), abs=1e-6)
    values = [0.41, 0.44, 0.37, 0.52, 0.40]
    expected = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert student95(values) == pytest.approx(list(expected))
    assert student95([0.5, 0.5, 0.5]) == [0.5, 0.5]
    assert student95([0.5]) is None


def test_one_seed_has_no_interval():
    assert bootstrap95(np.random.default_rng(0).random((1, 50))) is None
    item = mean_of_seeds(np.array([[0.0, 1.0]]))
    assert item == {"mean": 0.5, "bootstrap95": None, "student95": None}


def test_the_bootstrap_without_spread_between_seeds_is_that_of_the_prompts():
    """The same rates in every seed: only prompts vary, and SciPy's percentile bootstrap knows them."""
    rate_P = np.random.default_rng(1).random(200)
    low, high = bootstrap95(np.tile(rate_P, (4, 1)))
    expected = stats.bootstrap(
        (rate_P,), np.mean, method="percentile", n_resamples=20_000, random_state=2
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_the_bootstrap_without_spread_between_prompts_is_that_of_the_seeds():
    """Two seeds of 0 and 1: a resample has mean 0, 0.5 or 1, the ends with probability 1/4 each."""
    assert bootstrap95(np.array([[0.0] * 30, [1.0] * 30])) == pytest.approx([0.0, 1.0])
    rate_S = np.random.default_rng(5).random(15)
    expected = stats.bootstrap(
        (rate_S,), np.mean, method="percentile", n_resamples=20_000, random_state=2
    ).confidence_interval
    found = bootstrap95(np.repeat(rate_S[:, None], 40, 1))
    assert found == pytest.approx([expected.low, expected.high], abs=0.02)


def test_the_crossed_bootstrap_adds_both_variances():
    """Independent effects of 12 seeds and 300 prompts, against the normal interval of their sum."""
    rng = np.random.default_rng(3)
    rate_SP = rng.normal(0, 0.1, (12, 1)) + rng.normal(0, 1.0, (1, 300))
    low, high = bootstrap95(rate_SP)
    variance = rate_SP.mean(1).var() / 12 + rate_SP.mean(0).var() / 300
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.08)


def test_differences_are_paired_by_seed_and_prompt():
    rng = np.random.default_rng(4)
    common_SP = rng.random((4, 100))
    theirs = {"accuracy": common_SP}
    ours = {
        "accuracy": common_SP + 0.05 + rng.normal(0, 0.01, (4, 100)),
        "caption_accuracy": common_SP,
    }
    items = paired_differences(
        {"none": theirs, "game-on": ours}, "game-on", ["accuracy", "caption_accuracy"]
    )
    (item,) = items  # captions were not measured in both
    ours_S, theirs_S = ours["accuracy"].mean(1), theirs["accuracy"].mean(1)
    expected = stats.ttest_rel(ours_S, theirs_S).confidence_interval(0.95)
    assert item["student95"] == pytest.approx([expected.low, expected.high])
    assert item["by_seed"] == pytest.approx((ours_S - theirs_S).tolist())
    assert item["conclusion"] == "higher"
    assert 0.045 < item["bootstrap95"][0] < item["mean"] < item["bootstrap95"][1] < 0.055


@pytest.mark.parametrize(
    ("bootstrap", "student", "expected"),
    [
        ([0.01, 0.03], [0.002, 0.04], "higher"),
        ([-0.03, -0.01], [-0.04, -0.002], "lower"),
        ([0.01, 0.03], [-0.01, 0.05], "no evidence of a difference"),
        ([-0.01, 0.03], [0.0, 0.02], "no evidence of a difference"),
        (None, None, "one seed, no interval: no conclusion"),
    ],
)
def test_conclusions_need_both_intervals(bootstrap, student, expected):
    assert conclusion({"bootstrap95": bootstrap, "student95": student}) == expected
