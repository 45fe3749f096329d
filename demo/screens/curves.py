"""From metrics.jsonl to the frames that the plots draw, thinned so that no curve is slow or flat.

Pure functions. A frame has typed columns (step: float, value: float, curve: text); without a point there
is no frame but None, because a Gradio plot that first meets an empty frame stays broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from demo.runs.folder import STAGE_TITLES, TRAINED_STAGES

MAX_POINTS = 500
# Okabe and Ito's colours: told apart with every kind of colour vision, and by lightness.
BLUE, ORANGE, GREEN, GREY, PURPLE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#AA5593", "#56B4E9",
)  # fmt: skip
STAGE_COLORS = {
    STAGE_TITLES["sft"]: BLUE,
    STAGE_TITLES["warmup"]: GREY,
    STAGE_TITLES["align"]: ORANGE,
    STAGE_TITLES["rlvr"]: GREEN,
}
CHANCE = "0.5 = fooled"


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        id: names the component.
        title: what is drawn, with its unit.
        stages: whose metrics; several stages are laid end to end and coloured by stage.
        curves: curve name -> metric name.
        colors: curve name -> colour.
        chance: whether the 0.5 line belongs in it.
        help: one sentence for a person who has not met the number.
    """

    id: str
    title: str
    stages: tuple[str, ...]
    curves: Mapping[str, str]
    colors: Mapping[str, str]
    help: str
    chance: bool = False


PANELS = (
    Panel(
        "sft_loss",
        "SFT loss (nats per token)",
        ("sft",),
        {"loss": "loss"},
        {"loss": BLUE},
        "Mean negative log-probability of the demonstrations' tokens; it falls and then levels off.",
    ),
    Panel(
        "pair_accuracy",
        "Pair accuracy in alignment",
        ("align",),
        {
            "perception": "disc/pair_accuracy_perception",
            "reasoning": "disc/pair_accuracy_reasoning",
        },
        {"perception": BLUE, "reasoning": ORANGE, CHANCE: GREY},
        "Share of pairs where the discriminator scores the teacher above the student; at 0.5 it is "
        "fooled.",
        chance=True,
    ),
    Panel(
        "scores",
        "Discriminator scores in alignment",
        ("align",),
        {
            "teacher, perception": "disc/score_teacher_perception",
            "student, perception": "disc/score_student_perception",
            "teacher, reasoning": "disc/score_teacher_reasoning",
            "student, reasoning": "disc/score_student_reasoning",
        },
        {
            "teacher, perception": BLUE,
            "student, perception": SKY,
            "teacher, reasoning": ORANGE,
            "student, reasoning": PURPLE,
        },
        "Mean logit per part; alignment closes the gap between teacher and student.",
    ),
    Panel(
        "rewards",
        "Mean reward in RLVR",
        ("rlvr",),
        {"accuracy": "rewards/accuracy/mean", "format": "rewards/format/mean"},
        {"accuracy": GREEN, "format": GREY},
        "Share of rollouts with the right answer, and with all three parts in order.",
    ),
    Panel(
        "malformed",
        "Malformed share of rollouts",
        ("align", "rlvr"),
        {"": "malformed_rate"},
        STAGE_COLORS,
        "Share of completions that are not caption, think and answer in this order, each once.",
    ),
    Panel(
        "entropy",
        "Entropy of the policy (nats per token)",
        ("align", "rlvr"),
        {"": "entropy"},
        STAGE_COLORS,
        "How undecided the policy is about the next token; a fall to 0 means that it has stopped to "
        "explore.",
    ),
    Panel(
        "length",
        "Mean completion length (tokens)",
        ("align", "rlvr"),
        {"": "completions/mean_length"},
        STAGE_COLORS,
        "A sudden fall or climb is the first sign of a reward that is being gamed.",
    ),
    Panel(
        "peak",
        "Peak memory (GiB)",
        TRAINED_STAGES,
        {"": "mem/peak_gib"},
        STAGE_COLORS,
        "Most memory held: by the GPU's allocator in this stage, or on a CPU by the process so far.",
    ),
)  # fmt: skip


def panel_frame(panel: Panel, metrics: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    """The points of a panel, each curve thinned to MAX_POINTS; None where nothing was measured."""
    points: list[tuple[float, float, str]] = []
    offset = 0
    for stage in panel.stages:
        lines = [line for line in metrics if line["stage"] == stage]
        for name, key in panel.curves.items():
            curve = [(float(line["step"]), float(line[key])) for line in lines if key in line]
            title = name or STAGE_TITLES[stage]
            points += [(offset + x, y, title) for x, y in thin(curve)]
        offset += 1 + max((int(line["step"]) for line in lines), default=-1)
    if not points:
        return None
    if panel.chance:
        ends = {min(x for x, _, _ in points), max(x for x, _, _ in points)}
        points += [(x, 0.5, CHANCE) for x in sorted(ends)]
    frame = pd.DataFrame(points, columns=["step", "value", "curve"])
    return frame.astype({"step": float, "value": float, "curve": str})


def thin(
    points: Sequence[tuple[float, float]], max_points: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """At most `max_points` of a curve: its ends, and the lowest and highest of each stretch between.

    A mean or every n-th point would lose the spikes, which are what a person looks for.
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
