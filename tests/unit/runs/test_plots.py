"""The curves of the plots: smoothed, with the evaluations around a stage, shares on the same axes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import matplotlib
import pytest

from prism_lite.runs import plots
from prism_lite.runs.plots import smoothed, stage_figure


def test_smoothing_has_no_bias_at_its_start():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    # by hand: (0.5 * 1 * 0.5 + 0.5 * 3) / (0.5 * 0.5 + 0.5)
    assert smoothed([1.0, 3.0], memory=0.5) == pytest.approx([1.0, 1.75 / 0.75])


def test_a_missing_value_is_passed_over():
    values = smoothed([1.0, math.nan, 1.0])
    assert values == pytest.approx([1.0, 1.0, 1.0])


def folder(results: dict) -> SimpleNamespace:
    config = SimpleNamespace(rlvr=SimpleNamespace(start="sft"))
    return SimpleNamespace(config=config, results=lambda: results)


def test_the_evaluations_before_and_after_a_stage_are_its_first_and_last_point():
    steps = [{"step": 0, "reward": 0.5}, {"step": 1, "reward": 0.7}]
    evaluated = {"sft": {"accuracy": 0.4, "mean_tokens": 9.0}, "rlvr": {"accuracy": 0.8}}
    results = {"stages": evaluated, "drift": {"rlvr": {"kl_to_start": 0.02}}}
    points = plots._points_of_evaluations(folder(results), "rlvr", steps)
    assert [p for p in points if "eval/accuracy" in p] == [
        {"step": -1, "eval/accuracy": 0.4},
        {"step": 1, "eval/accuracy": 0.8},
    ]
    drift = [(p["step"], p["drift/kl_to_start"]) for p in points if "drift/kl_to_start" in p]
    assert drift == [(-1, 0.0), (1, 0.02)]
    inside = [*steps, {"step": 1, "eval/accuracy": 0.75}]
    points = plots._points_of_evaluations(folder(results), "rlvr", inside)
    assert not any("eval/accuracy" in point for point in points), (
        "the curve inside is of other rows"
    )


def test_shares_have_the_same_axes_in_every_run_and_raw_curves_are_faint():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [{"step": i, "reward": 0.5 + 0.01 * i, "grad_norm": float(i)} for i in range(30)]
    lines += [{"step": 9, "eval/accuracy": 0.6}, {"step": 29, "eval/accuracy": 0.7}]
    figure = stage_figure("rlvr", lines, [("eval/accuracy",), ("reward",), ("grad_norm",)], plt)
    held_out, reward, grad_norm = figure.axes[:3]
    assert held_out.get_ylim() == reward.get_ylim() == (-0.02, 1.02)
    assert grad_norm.get_ylim()[1] > 20
    assert list(held_out.lines[0].get_xdata()) == [10, 30] and held_out.lines[0].get_marker() == "o"
    raw, average = reward.lines
    assert raw.get_alpha() < 0.5 and list(raw.get_ydata()) == [
        line["reward"] for line in lines[:30]
    ]
    assert list(average.get_ydata()) == pytest.approx(smoothed([0.5 + 0.01 * i for i in range(30)]))
    plt.close(figure)
