"""The game of alignment: at each shown step the teacher, a sample of the policy, and who wins.

The discriminators of earlier steps are not stored. What training writes is shown as it was: the samples
with their scores (rollouts/) and the pair accuracies (metrics.jsonl). The tokens' shares are computed
afterwards, by `Model.play`, with the discriminator at the end of alignment; `demo/game.jsonl` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.runs import folder, samples
from prism_lite.parts import Parts, parse

MAX_STEPS = 16
CHANNELS = ("perception", "reasoning")

Step = Mapping[str, Any]


def shown_steps(path: Path) -> list[int]:
    """Return at most MAX_STEPS of the alignment steps with rollouts, evenly spaced with both ends."""
    steps = folder.rollout_steps(path, "align")
    if len(steps) <= MAX_STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def logged_step(path: Path, step: int) -> dict[str, Any] | None:
    """Return the first completion of a step's first prompt, and the teacher's, as training wrote them.

    None where the discriminator scored nothing: alignment without a game.
    """
    records = folder.read_rollouts(path, "align", step)
    if not any("scores" in record for record in records):
        return None
    record = records[0]
    row = {key: record[key] for key in ("completion", "finish_reason", "advantage")}
    row["logged"] = {
        name: record["scores"][f"{name}_score"] for name in CHANNELS if "scores" in record
    }
    sample = samples.sample_by_id(path, record["prompt_id"])
    teacher = {"completion": sample.teacher if sample else None}
    return {
        "step": step,
        "prompt_id": record["prompt_id"],
        "question": record["question"],
        "teacher": teacher,
        "sample": row,
    }


def steps_of(path: Path) -> list[Step]:
    """Return the steps to show: with the tokens' shares if they were computed, else as they were logged."""
    played = folder.read_lines(path / "demo" / "game.jsonl")
    if played:
        return list(played)
    logged = (logged_step(path, step) for step in shown_steps(path))
    return [step for step in logged if step is not None]


def has_shares(steps: list[Step]) -> bool:
    """Return whether the tokens' shares were computed."""
    return any("tokens" in step["teacher"] for step in steps)


def pair_accuracies(path: Path) -> dict[str, dict[int, float]]:
    """Return, for each channel, the share of a step's pairs in which the teacher scored higher."""
    metrics = folder.read_metrics(path, "align")
    return {
        name: {m["step"]: m[key] for m in metrics if m.get(key) is not None}
        for name, key in ((name, f"disc/pair_accuracy_{name}") for name in CHANNELS)
    }


def completions_to_score(step: Step) -> list[Parts]:
    """Return the parts of the teacher and, if it is well-formed, of the sample; [] without a teacher."""
    teacher = parse(step["teacher"]["completion"] or "")
    if not isinstance(teacher, Parts):
        return []
    sample = parse(step["sample"]["completion"])
    is_scored = isinstance(sample, Parts) and step["sample"]["finish_reason"] == "end"
    return [teacher, sample] if isinstance(sample, Parts) and is_scored else [teacher]
