"""Held-out figures of a policy, each with a 95 % confidence interval.

Shape letters: P prompts, G sampled completions per prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prism_lite.config import RunConfig
from prism_lite.data.task import TaskData
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts
from prism_lite.rewards.group_rewards import group_verdicts
from prism_lite.sampling.many_prompts import rows_without_training, sample_in_pieces
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Group, Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured, and the sampled held-out completions that it measured it on.

    Attributes:
        figures: accuracy, format_rate, caption_accuracy, think_validity (the last two if the task
            verifies them) and transfer_accuracy (if it has a transfer set) of the sampled completions,
            undecided_rate (if above 0: the verifier could not compare these, they count as not right),
            the same prefixed with `greedy_`, greedy_caption_accuracy_familiar, mean_tokens, and `ci95`
            with [low, high] for each rate. The unit of the intervals is the prompt.
        groups: the completions of the held-out prompts, sampled at temperature 1.
        rates: each rate of `figures`, prompt by prompt.
    """

    figures: dict[str, Any]
    groups: list[Group]
    rates: dict[str, list[float]]


def evaluated_samples(task: TaskData, config: RunConfig) -> Sequence[Sample]:
    """Return the held-out prompts: all of them, or the first `eval.num_prompts`."""
    return task.heldout[: config.eval.num_prompts or None]


def evaluate(
    backbone: Backbone,
    task: TaskData,
    config: RunConfig,
    *,
    with_progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda pieces, _: pieces,
    stage: str = "",
) -> Evaluation:
    """Sample the held-out prompts at temperature 1 and greedily, under the active role.

    Args:
        with_progress: yields the pieces of the work and shows them (`RunFolder.with_progress`).
        stage: of the policy, for the progress line.
    """

    def sample(samples: Sequence[Sample], name: str, *, greedy: bool) -> list[Group]:
        temperature = 0.0 if greedy else 1.0
        return sample_in_pieces(
            backbone,
            samples[: config.eval.num_prompts or None],
            group_size=1 if greedy else config.eval.num_samples,
            sampling=dataclasses.replace(config.sampling, temperature=temperature),
            description=f"evaluating {stage}, {name}",
            seed=(config.seed, "evaluate"),
            with_progress=with_progress,
        )

    groups = sample(task.heldout, "sampled", greedy=False)
    rates = _rates(groups, task)
    greedy_rates = _rates(sample(task.heldout, "greedy", greedy=True), task)
    if task.transfer:
        for greedy, of_mode in ((False, rates), (True, greedy_rates)):
            transferred = sample(task.transfer, "transfer", greedy=greedy)
            of_mode["transfer_accuracy"] = _rates(transferred, task)["accuracy"]
    rates |= {f"greedy_{name}": values for name, values in greedy_rates.items()}
    if task.familiar and task.verify is not None:
        familiar = _rates(sample(task.familiar, "writers of the training", greedy=True), task)
        rates["greedy_caption_accuracy_familiar"] = familiar["caption_accuracy"]
    lengths = [len(r.token_ids) for group in groups for r in group.rollouts]
    figures = {
        **_means(rates),
        "mean_tokens": sum(lengths) / len(lengths),
        "ci95": {name: interval95(values) for name, values in rates.items()},
    }
    return Evaluation(figures, groups, rates)


def subset_inside(samples: Sequence[Sample], config: RunConfig) -> list[Sample]:
    """Return `eval.num_inside` evenly spaced rows of those that are evaluated, or all if fewer."""
    return spaced(samples[: config.eval.num_prompts or None], config.eval.num_inside)


def evaluate_inside(backbone: Backbone, task: TaskData, config: RunConfig) -> dict[str, float]:
    """Sample the subset of the held-out prompts at temperature 1, with the same numbers every time.

    Returns:
        The rates of `Evaluation.figures` that are not greedy, over `subset_inside`.
    """

    def rates_on(samples: Sequence[Sample]) -> dict[str, list[float]]:
        max_rows = rows_without_training(backbone, config.eval.num_samples, config.sampling)
        groups = sample_groups(
            backbone,
            subset_inside(samples, config),
            group_size=config.eval.num_samples,
            sampling=dataclasses.replace(config.sampling, temperature=1.0, max_rows=max_rows),
            seed=(config.seed, "evaluate", "inside"),
        )
        return _rates(groups, task)

    rates = rates_on(task.heldout)
    if task.transfer:
        rates["transfer_accuracy"] = rates_on(task.transfer)["accuracy"]
    return _means(rates)


def spaced(items: Sequence[T], num: int) -> list[T]:
    """Return `num` evenly spaced items, or all if there are fewer."""
    num = min(num, len(items))
    return [items[i * len(items) // num] for i in range(num)]


def _means(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in rates.items()}


def _rates(groups: Sequence[Group], task: TaskData) -> dict[str, list[float]]:
    """Return, for each figure, the mean over the completions of every prompt."""
    rates: dict[str, list[float]] = {}
    for group in groups:
        figures: dict[str, list[float]] = {
            "format_rate": [float(rollout.is_well_formed) for rollout in group.rollouts]
        }
        if group.sample.answer is not None:
            decided = group_verdicts(group)
            figures["accuracy"] = [value or 0.0 for value in decided]  # undecided is not right
            figures["undecided_rate"] = [float(value is None) for value in decided]
        if task.verify is not None:
            verdicts = [
                task.verify(group.sample, rollout.parts)
                if isinstance(rollout.parts, Parts)
                else None
                for rollout in group.rollouts
            ]
            figures["caption_accuracy"] = [float(v is not None and v.caption) for v in verdicts]
            figures["think_validity"] = [float(v is not None and v.think) for v in verdicts]
        for name, values in figures.items():
            rates.setdefault(name, []).append(sum(values) / len(values))
    if not any(rates.get("undecided_rate", ())):
        rates.pop("undecided_rate", None)
    return rates


def interval95(values: Sequence[float]) -> list[float]:
    """Compute the 95 % interval of the mean of rates, one per prompt, clipped to [0, 1].

    The normal approximation; if all prompts have the same rate, so that the deviation is 0, the
    Wilson interval of that rate.
    """
    num, z = len(values), 1.96
    if num < 2:
        return [0.0, 1.0]
    mean = sum(values) / num
    variance = sum((value - mean) ** 2 for value in values) / (num - 1)
    if variance == 0:
        centre = (mean + z**2 / (2 * num)) / (1 + z**2 / num)
        spread = math.sqrt(mean * (1 - mean) / num + z**2 / (4 * num**2))
        half = z * spread / (1 + z**2 / num)
    else:
        centre, half = mean, z * math.sqrt(variance / num)
    return [max(0.0, centre - half), min(1.0, centre + half)]
