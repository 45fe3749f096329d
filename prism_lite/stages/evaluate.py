"""Held-out figures of a policy, each with a 95 % interval.

Shape letters: P prompts, G sampled completions per prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.data.task import TaskData
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts
from prism_lite.rewards.group_rewards import group_accuracy
from prism_lite.sampling.rollouts import sample_in_pieces
from prism_lite.types import Group, Sample


def evaluated_samples(task: TaskData, config: RunConfig) -> Sequence[Sample]:
    """The held-out prompts that count: all, or the first `eval.num_prompts`."""
    return task.heldout[: config.eval.num_prompts or None]


def evaluate(
    backbone: Backbone,
    task: TaskData,
    config: RunConfig,
    *,
    with_progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda pieces, _: pieces,
    stage: str = "",
) -> dict[str, Any]:
    """Sample the held-out prompts at temperature 1 and greedily, under the active role.

    Args:
        with_progress: yields the pieces of the work and shows them (`RunFolder.with_progress`).
        stage: whose policy it is, for that line.

    Returns:
        accuracy, format_rate, caption_accuracy, think_validity (the last two where the task verifies
        them) of the sampled completions, the same with `greedy_` before it, mean_tokens, and `ci95`
        with [low, high] for each rate. The unit of the intervals is the prompt.
    """
    sampled = dataclasses.replace(config.sampling, temperature=1.0)
    greedy = dataclasses.replace(config.sampling, temperature=0.0)
    settings = {
        "seed": (config.seed, "evaluate"),
        "with_progress": with_progress,
    }
    samples = evaluated_samples(task, config)
    groups = sample_in_pieces(
        backbone,
        samples,
        group_size=config.eval.num_samples,
        sampling=sampled,
        description=f"evaluating {stage}, sampled",
        **settings,
    )
    rates = _rates(groups, task)
    greedy_groups = sample_in_pieces(
        backbone,
        samples,
        group_size=1,
        sampling=greedy,
        description=f"evaluating {stage}, greedy",
        **settings,
    )
    rates |= {f"greedy_{name}": values for name, values in _rates(greedy_groups, task).items()}
    lengths = [len(r.token_ids) for group in groups for r in group.rollouts]
    return {
        **{name: sum(values) / len(values) for name, values in rates.items()},
        "mean_tokens": sum(lengths) / len(lengths),
        "ci95": {name: interval95(values) for name, values in rates.items()},
    }


def _rates(groups: Sequence[Group], task: TaskData) -> dict[str, list[float]]:
    """For each figure, the mean over every prompt's completions."""
    rates: dict[str, list[float]] = {}
    for group in groups:
        marks: dict[str, list[float]] = {
            "format_rate": [float(rollout.is_well_formed) for rollout in group.rollouts]
        }
        if group.sample.answer is not None:
            marks["accuracy"] = group_accuracy(group)
        if task.verify is not None:
            verdicts = [
                task.verify(group.sample, rollout.parts)
                if isinstance(rollout.parts, Parts)
                else None
                for rollout in group.rollouts
            ]
            marks["caption_accuracy"] = [float(v is not None and v.caption) for v in verdicts]
            marks["think_validity"] = [float(v is not None and v.think) for v in verdicts]
        for name, values in marks.items():
            rates.setdefault(name, []).append(sum(values) / len(values))
    return rates


def interval95(values: Sequence[float]) -> list[float]:
    """95 % interval of the mean of rates, one per prompt, cut to [0, 1].

    The normal approximation; where all prompts have the same rate, whose deviation says nothing, the
    Wilson interval of that rate.
    """
    num, z = len(values), 1.96
    if num < 2:
        return [0.0, 1.0]
    mean = sum(values) / num
    variance = sum((value - mean) ** 2 for value in values) / max(1, num - 1)
    if variance == 0:
        centre = (mean + z**2 / (2 * num)) / (1 + z**2 / num)
        spread = math.sqrt(mean * (1 - mean) / num + z**2 / (4 * num**2))
        half = z * spread / (1 + z**2 / num)
        return [max(0.0, centre - half), min(1.0, centre + half)]
    half = z * math.sqrt(variance / num)
    return [max(0.0, mean - half), min(1.0, mean + half)]
