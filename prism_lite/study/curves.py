"""Figures along the training, against completions and seconds, and the areas under these curves.

A curve's points are the evaluations inside the stages (`eval.every`); without them an arm has no curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prism_lite.files import read_jsonl
from prism_lite.study.plan import PlannedRun

_PREFIX = "eval/"
AXES = ("completions", "seconds")


def curve_of(run: PlannedRun, warmup_seconds: float) -> list[dict[str, float]]:
    """Return the points of a finished run: completions and seconds so far, and the figures.

    Args:
        warmup_seconds: spent before the first update of the policy.
    """
    config, points = run.config, []
    per_step = {
        "align": config.align.prompts_per_step
        * {"adversarial": config.align.group_size, "dpo": 2}.get(config.align.method, 1),
        "rlvr": config.rlvr.prompts_per_step * config.rlvr.group_size,
    }
    completions, seconds = 0, warmup_seconds
    lines = read_jsonl(run.folder / "metrics.jsonl")
    for stage in ("align", "rlvr"):
        before = completions
        for line in (line for line in lines if line["stage"] == stage):
            seconds += line.get("step_time", 0.0)
            completions = before + (line["step"] + 1) * per_step[stage]
            figures = {
                key.removeprefix(_PREFIX): round(value, 4)
                for key, value in line.items()
                if key.startswith(_PREFIX)
            }
            if figures:
                points.append({"completions": completions, "seconds": round(seconds, 1)} | figures)
    return points


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
