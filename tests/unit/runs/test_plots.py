"""The smoothed curves of the plots."""

from __future__ import annotations

import math

import pytest

from prism_lite.runs.plots import smoothed


def test_smoothing_has_no_bias_at_its_start():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    # by hand: (0.5 * 1 * 0.5 + 0.5 * 3) / (0.5 * 0.5 + 0.5)
    assert smoothed([1.0, 3.0], memory=0.5) == pytest.approx([1.0, 1.75 / 0.75])


def test_a_missing_value_is_passed_over():
    values = smoothed([1.0, math.nan, 1.0])
    assert values == pytest.approx([1.0, 1.0, 1.0])
