"""Convert metrics.jsonl to the data frames of the plots, thinned so that they stay fast.

A frame has the columns step (float, counted from 1 as the training prints it), value (float) and curve
(text). Without any point the result is None: a Gradio plot that first gets an empty frame stays broken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from demo.runs.folder import STAGE_TITLES
from prism_lite.types import POLICY_STAGES, STAGES

MAX_POINTS = 500
# The palette of Okabe and Ito: distinguishable with every kind of color vision, and by lightness.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
PURPLE, SKY, YELLOW, PINK = "#AA5593", "#56B4E9", "#E69F00", "#CC79A7"
_STAGE_COLORS = {"sft": BLUE, "warmup": GRAY, "control": PURPLE, "align": ORANGE, "rlvr": GREEN}
_GAME_STAGES = ("align", "rlvr")
CHANCE = "0.5 = fooled"


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        id: part of the component's elem_id.
        title: what is plotted, with its unit.
        stages: the stages plotted, one after another.
        curves: curve name -> (metric name, color); or one metric, which gets a curve for each stage. A
            star in it means the name of a reward.
        help: a sentence for a user who sees the number for the first time.
        has_chance: whether to add the line at 0.5.
        control: curves of RLVR alone, as `curves`; they begin where alignment begins, beside it.
    """

    id: str
    title: str
    stages: tuple[str, ...]
    curves: Mapping[str, tuple[str, str]] | str
    help: str
    has_chance: bool = False
    control: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def _control_curve(metric: str) -> dict[str, tuple[str, str]]:
    return {STAGE_TITLES["control"]: (metric, _STAGE_COLORS["control"])}


PANELS = (
    Panel(
        "sft_loss", "SFT loss (nats per token)", ("sft",), "loss",
        "Mean negative log-probability of the demonstrations' tokens; it falls and then levels off.",
    ),
    Panel(
        "pair_accuracy", "Pair accuracy of the discriminator", _GAME_STAGES,
        {
            "perception": ("disc/pair_accuracy_perception", BLUE),
            "reasoning": ("disc/pair_accuracy_reasoning", ORANGE),
        },
        "Share of pairs in which the discriminator scores the teacher above the student; at 0.5 it is "
        "fooled. Alignment, then RLVR where the game is kept on.",
        has_chance=True,
    ),
    Panel(
        "scores", "Discriminator scores", _GAME_STAGES,
        {
            "teacher, perception": ("disc/score_teacher_perception", BLUE),
            "student, perception": ("disc/score_student_perception", SKY),
            "teacher, reasoning": ("disc/score_teacher_reasoning", ORANGE),
            "student, reasoning": ("disc/score_student_reasoning", PURPLE),
        },
        "Mean logit of each part; the game closes the gap between teacher and student.",
    ),
    Panel(
        "rewards", "Mean rewards", _GAME_STAGES, "rewards/*/mean",
        "Mean of each reward over the rollouts of a step, before weighting. RLVR alone begins beside "
        "alignment.",
        control={"accuracy, RLVR alone": ("rewards/accuracy/mean", PINK)},
    ),
    Panel(
        "malformed", "Malformed share of rollouts", _GAME_STAGES, "malformed_rate",
        "Share of completions that are not caption, think and answer in this order, once each.",
        control=_control_curve("malformed_rate"),
    ),
    Panel(
        "entropy", "Entropy of the policy (nats per token)", _GAME_STAGES, "entropy",
        "How uncertain the policy is about the next token; near 0 it no longer explores.",
        control=_control_curve("entropy"),
    ),
    Panel(
        "length", "Mean completion length (tokens)", _GAME_STAGES, "completions/mean_length",
        "A sudden drop or rise is the first sign that the policy is gaming a reward.",
        control=_control_curve("completions/mean_length"),
    ),
    Panel(
        "peak", "Peak memory (GiB)", STAGES, "mem/peak_gib",
        "On a GPU, the most memory the allocator held in this stage; on a CPU, the most the process has "
        "held so far.",
        control=_control_curve("mem/peak_gib"),
    ),
    Panel(
        "evaluation", "Held-out figures during training", POLICY_STAGES,
        {
            "accuracy": ("eval/accuracy", GREEN),
            "transfer": ("eval/transfer_accuracy", PURPLE),
            "captions": ("eval/caption_accuracy", BLUE),
            "thinks": ("eval/think_validity", ORANGE),
            "format": ("eval/format_rate", SKY),
        },
        "Rates on a few held-out prompts, the same every time; the setting eval.every switches them on.",
        control={
            "transfer, RLVR alone": ("eval/transfer_accuracy", PINK),
            "captions, RLVR alone": ("eval/caption_accuracy", YELLOW),
        },
    ),
)  # fmt: skip


def reward_colors(names: Iterable[str]) -> dict[str, str]:
    """Return a color for each reward; accuracy and format always have the same."""
    fixed = {"accuracy": GREEN, "format": SKY}
    others = itertools.cycle((ORANGE, PURPLE, BLUE, YELLOW, PINK, GRAY))
    return {name: fixed.get(name) or next(others) for name in names}


def panel_colors(panel: Panel) -> dict[str, str]:
    """Return the color of each curve that a panel can have; of rewards, those that every recipe has."""
    if not isinstance(panel.curves, str):
        colors = {name: color for name, (_, color) in panel.curves.items()}
    elif "*" in panel.curves:
        colors = reward_colors(["accuracy", "format"])
    else:
        colors = {STAGE_TITLES[stage]: _STAGE_COLORS[stage] for stage in panel.stages}
    colors |= {name: color for name, (_, color) in panel.control.items()}
    return colors | ({CHANCE: GRAY} if panel.has_chance else {})


def panel_plot(
    panel: Panel, metrics: Sequence[Mapping[str, Any]]
) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """Return the frame of a panel (None if nothing was measured) and the colors of its curves."""
    points: list[tuple[float, float, str]] = []
    colors: dict[str, str] = {}
    offset, align_offset = 0, 0
    for stage in (*panel.stages, "control"):
        lines = [line for line in metrics if line["stage"] == stage]
        if stage == "align":
            align_offset = offset
        start = align_offset if stage == "control" else offset
        for name, (key, color) in _curves(panel, stage, lines).items():
            curve = [(line["step"] + 1.0, float(line[key])) for line in lines if key in line]
            points += [(start + x, y, name) for x, y in thin(curve)]
            colors[name] = color
        offset += 1 + max((int(line["step"]) for line in lines), default=-1)
    if not points:
        return None, colors
    if panel.has_chance:
        ends = {min(x for x, _, _ in points), max(x for x, _, _ in points)}
        points += [(x, 0.5, CHANCE) for x in sorted(ends)]
        colors[CHANCE] = GRAY
    frame = pd.DataFrame(points, columns=["step", "value", "curve"])
    return frame.astype({"step": float, "value": float, "curve": str}), colors


def _curves(
    panel: Panel, stage: str, lines: Sequence[Mapping[str, Any]]
) -> Mapping[str, tuple[str, str]]:
    if stage == "control":
        return panel.control if lines else {}
    if not isinstance(panel.curves, str):
        return panel.curves
    start, star, end = panel.curves.partition("*")
    if not star:
        return {STAGE_TITLES[stage]: (panel.curves, _STAGE_COLORS[stage])}
    keys = [key for line in lines for key in line if key.startswith(start) and key.endswith(end)]
    names = dict.fromkeys(key.removeprefix(start).removesuffix(end) for key in keys)
    return {name: (start + name + end, color) for name, color in reward_colors(names).items()}


def thin(
    points: Sequence[tuple[float, float]], max_points: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """Return at most `max_points` of a curve: its ends, and the extremes of each stretch between.

    Means, or every n-th point, would lose the spikes.
    """
    if len(points) <= max_points:
        return list(points)
    inner = points[1:-1]
    num_stretches = (max_points - 2) // 2
    kept = [points[0]]
    for i in range(num_stretches):
        start = i * len(inner) // num_stretches
        stretch = inner[start : (i + 1) * len(inner) // num_stretches]
        low, high = min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]
