"""Rewards of sampled groups: the reward functions called with the texts and columns of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prism_lite.processes import share_work
from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.rewards.load import Reward
from prism_lite.rewards.user_functions import call_user_function, trl_arguments
from prism_lite.types import Group


def rewards_of(groups: Sequence[Group], rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """Compute each reward by name, float32 [R], rollout after rollout; NaN where there is none.

    A rollout whose accuracy is undecided has no reward at all: its others alone would rank it below
    the right ones.

    Accuracy, format, ocr, boxes and judge are 0 for a rollout that is malformed or was truncated at
    the length limit, as in alignment. A user's function judges such texts itself. Of several processes
    each calls the functions with its share of the groups.

    Raises:
        ValueError: a gold answer holds no box, where boxes are rewarded; or a user's function failed.
        RuntimeError: the judge gave no verdict.
    """
    shares = share_work(groups, lambda shared: [_rewards_of(shared, rewards)] if shared else [])
    return {name: torch.cat([values[name] for values in shares]) for name in shares[0]}


def _rewards_of(groups: Sequence[Group], rewards: Sequence[Reward]) -> dict[str, Tensor]:
    is_well_formed_R = torch.tensor([r.is_well_formed for group in groups for r in group.rollouts])
    values: dict[str, Tensor] = {}
    for reward in rewards:
        if reward.file is not None:
            values[reward.name] = torch.tensor(call_user_function(reward, groups))
            continue
        columns = {"sizes": _picture_sizes(groups)} if reward.name == "boxes" else {}
        numbers = reward.function(**trl_arguments(groups), **columns)
        value_R = torch.tensor([math.nan if value is None else value for value in numbers])
        values[reward.name] = value_R if reward.name == "overlong" else value_R * is_well_formed_R
    is_undecided_R = undecided_rollouts(groups, values)
    return {name: value_R.masked_fill(is_undecided_R, math.nan) for name, value_R in values.items()}


def _picture_sizes(groups: Sequence[Group]) -> list[tuple[int, int] | None]:
    """Return width and height of the picture of each rollout, None where there is not exactly one."""
    sizes = [g.sample.pictures[0].size if len(g.sample.pictures) == 1 else None for g in groups]
    return [size for group, size in zip(groups, sizes, strict=True) for _ in group.rollouts]


def undecided_rollouts(groups: Sequence[Group], rewards: Mapping[str, Tensor]) -> Tensor:
    """Return which rollouts of rows with a gold answer have no accuracy, bool [R]."""
    has_answer_R = torch.tensor([bool(g.sample.answer) for g in groups for _ in g.rollouts])
    accuracy_R = rewards.get("accuracy", torch.zeros(len(has_answer_R)))
    return accuracy_R.isnan() & has_answer_R


def accuracy_of(groups: Sequence[Group], rewards: Mapping[str, Tensor]) -> Tensor:
    """Return the accuracy of each rollout, float32 [R], whether or not it is among the rewards.

    Raises:
        ValueError: as `group_accuracy`.
    """
    accuracy_R = rewards.get("accuracy")
    if accuracy_R is not None:
        return accuracy_R
    shares = share_work(groups, lambda shared: [group_accuracy(group) for group in shared])
    return torch.tensor([value for of_group in shares for value in of_group])


def group_accuracy(group: Group) -> list[float]:
    """Return the accuracy of each rollout of a group, as `group_verdicts`; undecided ones count 0.

    Raises:
        ValueError: as `group_verdicts`.
    """
    return [value or 0.0 for value in group_verdicts(group)]


def group_verdicts(group: Group) -> list[float | None]:
    """Return 1 for a right rollout, 0 for a wrong or truncated one, None for an undecided one.

    Raises:
        ValueError: the row has no answer to verify; names it.
    """
    sample = group.sample
    if sample.answer is None or not sample.answer.strip():
        raise ValueError(
            f"{sample.source or sample.id}: no answer to verify. RLVR and evaluation need a gold "
            "answer in every row."
        )
    accuracy = accuracy_reward(**trl_arguments([group]))
    pairs = zip(accuracy, group.rollouts, strict=True)
    return [value if rollout.is_well_formed else 0.0 for value, rollout in pairs]
