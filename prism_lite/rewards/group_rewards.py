"""Rewards of sampled groups: the reward functions called with what a Sample knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.config import RlvrConfig
from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.rewards.boxes import iou_reward
from prism_lite.rewards.judge import judge_reward
from prism_lite.rewards.ocr import ocr_reward
from prism_lite.types import Group


def group_accuracy(group: Group) -> list[float]:
    """Accuracy of each rollout of a group; one cut at the length limit is not right.

    Raises:
        ValueError: the row has no answer to verify; names it.
    """
    sample, texts = group.sample, [rollout.text for rollout in group.rollouts]
    if sample.answer is None or not sample.answer.strip():
        raise ValueError(
            f"{sample.source or sample.id}: no answer to verify. RLVR and evaluation need a gold "
            "answer in every row."
        )
    choices: Sequence[str] | None = sample.choices or None
    marks = accuracy_reward(
        [sample.question] * len(texts),
        list(texts),
        answer=[(sample.answer, *sample.accepted)] * len(texts),
        choices=[choices for _ in texts],
    )
    result = []
    for mark, rollout in zip(marks, group.rollouts, strict=True):
        assert mark is not None  # there is a gold answer
        result.append(mark if rollout.is_well_formed else 0.0)
    return result


def further_rewards(groups: Sequence[Group], config: RlvrConfig) -> dict[str, Tensor]:
    """Those of ocr, boxes and judge that have a weight, by name, float32 [R]; 0 where malformed.

    Raises:
        ValueError: a gold answer holds no box, where boxes are rewarded.
        RuntimeError: the judge gave no verdict.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    samples = [group.sample for group in groups for _ in group.rollouts]
    questions, texts = [sample.question for sample in samples], [r.text for r in rollouts]
    answers = [sample.answer for sample in samples]
    marks: dict[str, list[float | None]] = {}
    if "ocr" in config.rewards:
        marks["ocr"] = ocr_reward(questions, list(texts), answer=answers)
    if "boxes" in config.rewards:
        marks["boxes"] = iou_reward(questions, list(texts), boxes=answers)
    if "judge" in config.rewards:
        accepted: list[str | Sequence[str] | None] = [
            (s.answer, *s.accepted) if s.answer else None for s in samples
        ]
        choices: list[Sequence[str] | None] = [sample.choices or None for sample in samples]
        marks["judge"] = judge_reward(
            questions, list(texts), answer=accepted, choices=choices, settings=config.judge
        )
    is_well_formed_R = torch.tensor([rollout.is_well_formed for rollout in rollouts])
    return {name: torch.tensor(values) * is_well_formed_R for name, values in marks.items()}


def verifiable_rewards(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Each reward by name, float32 [R], rollout after rollout.

    Format is that of alignment: a triple whose completion was cut at the length limit is malformed.

    Raises:
        ValueError: see `group_accuracy`.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    accuracy = [mark for group in groups for mark in group_accuracy(group)]
    return {
        "accuracy": torch.tensor(accuracy),
        "format": torch.tensor([float(rollout.is_well_formed) for rollout in rollouts]),
    }


def reward_weights(config: RlvrConfig) -> dict[str, float]:
    """Weight of each reward, by name; accuracy and format always, the others where they have one."""
    return {"accuracy": 0.0, "format": 0.0} | dict(config.rewards)
