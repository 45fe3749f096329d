"""Figures along the training, against completions and seconds, and the areas under these curves.

A curve's points are the evaluations inside the stages (`eval.every`); without them an arm has no curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prism_lite.files import read_json, read_jsonl
from prism_lite.study.arms import completions_per_step
from prism_lite.study.plan import PlannedRun

_PREFIX = "eval/"
AXES = ("completions", "seconds")


def curve_of(run: PlannedRun, start: PlannedRun, warmup_seconds: float) -> list[dict[str, float]]:
    """Return the points of a finished run: completions and seconds so far, and the figures.

    Args:
        start: the SFT run, whose last evaluation inside is the first point if the run began with it.
        warmup_seconds: spent before the first update of the policy.
    """
    completions, seconds = 0, warmup_seconds
    points = []
    if run.config.sft == start.config.sft:
        last = [figures for line in _lines(start, "sft") if (figures := _figures(line))][-1:]
        # the policy does not change during the warm-up
        times = [0.0, round(warmup_seconds, 1)] if warmup_seconds else [0.0]
        points = [{"completions": 0, "seconds": time} | f for f in last for time in times]
    for stage in ("align", "rlvr"):
        before, lines = completions, _lines(run, stage)
        # what a stage does before its first step (samples of DPO) comes first
        steps_s = sum(line.get("step_time", 0.0) for line in lines)
        seconds += max(0.0, training_seconds(run, stage) - steps_s)
        for line in lines:
            seconds += line.get("step_time", 0.0)
            completions = before + (line["step"] + 1) * completions_per_step(run.config)[stage]
            if figures := _figures(line):
                points.append({"completions": completions, "seconds": round(seconds, 1)} | figures)
    return points


def training_seconds(run: PlannedRun, stage: str) -> float:
    """Return the seconds of a stage of a finished run, without the evaluations inside it."""
    lines = _lines(run, stage)
    spent = read_json(run.folder / "results.json").get("seconds", {}).get(stage, 0.0)
    evaluated = sum(
        max(0.0, line["time_s"] - before["time_s"])
        for before, line in itertools.pairwise(lines)
        if _figures(line)
    )
    return spent - evaluated


def _lines(run: PlannedRun, stage: str) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(run.folder / "metrics.jsonl") if line["stage"] == stage]


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation inside a stage; none of a line with a step's metrics."""
    return {
        key.removeprefix(_PREFIX): round(value, 4)
        for key, value in line.items()
        if key.startswith(_PREFIX)
    }


def add_areas(arms: Mapping[str, dict[str, Any]]) -> None:
    """Add `areas` to each arm with curves: by axis and figure, the mean over the seeds.

    An area is divided by the length of the axis, so that it is a mean height. The axis of seconds
    ends with the slowest run of the study: a curve keeps its last value until there.
    """
    curves = [curve for arm in arms.values() for curve in arm["curves"].values() if curve]
    if not curves:
        return
    names = [name for name in curves[0][0] if name not in AXES]
    for arm in arms.values():
        of_arm = [curve for curve in arm["curves"].values() if curve]
        arm["areas"] = {
            axis: {
                name: float(np.mean([_area(curve, axis, name, end) for curve in of_arm]))
                for name in names
            }
            for axis in AXES
            if of_arm
            for end in [max(curve[-1][axis] for curve in curves)]
        }


def _area(curve: Sequence[Mapping[str, float]], axis: str, name: str, end: float) -> float:
    """Return the mean height of a curve from its first point to `end`."""
    x = [point[axis] for point in curve] + [end]
    y = [point[name] for point in curve]
    return float(np.trapezoid([*y, y[-1]], x) / (end - x[0])) if end > x[0] else y[0]
