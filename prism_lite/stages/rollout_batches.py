"""RLVR's rollouts of one step: sampled, rewarded, and with dynamic sampling filtered and replaced.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prism_lite.config import RlvrConfig
from prism_lite.policy.advantages import group_zscore, weighted_sum
from prism_lite.rewards.group_rewards import rewards_of
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from prism_lite.types import Group, Sample


@dataclass(frozen=True, eq=False)
class Draw:
    """The rollouts of one step.

    Attributes:
        groups: all groups that were sampled.
        rewards: by name, float32 [R], of all groups; NaN where a reward has no opinion.
        is_kept_P: bool, which groups are trained on.
        metrics: of dynamic sampling; empty without it.
        ran_out: dynamic sampling ended with fewer groups than asked for.
    """

    groups: list[Group]
    rewards: dict[str, Tensor]
    is_kept_P: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    ran_out: bool = False

    @property
    def kept(self) -> list[Group]:
        return [g for g, kept in zip(self.groups, self.is_kept_P.tolist(), strict=True) if kept]

    @property
    def is_kept_R(self) -> Tensor:
        return self.is_kept_P.repeat_interleave(len(self.groups[0].rollouts))


def draw_groups(context: Context, step: int) -> Draw:
    """Sample `rlvr.prompts_per_step` groups and compute their rewards.

    With dynamic sampling (DAPO, arXiv 2503.14476) groups without spread in accuracy (in the whole
    reward, where accuracy is not among the rewards) teach nothing and are replaced by groups of
    further prompts, no prompt twice, until there are enough, or `rlvr.max_sampled_batches` batches
    were sampled, or no prompt is left. Which prompts come next depends on the step alone, so a
    resumed run draws the same.
    """
    config, task, seed = context.config.rlvr, context.task, context.config.seed
    num_wanted = config.prompts_per_step
    groups: list[Group] = []
    batches: list[dict[str, Tensor]] = []
    is_kept: list[bool] = []
    used_keys: set[str] = set()
    num_batches = config.max_sampled_batches if config.dynamic_sampling else 1
    batch_number = 0
    for batch_number in range(num_batches):
        name = () if batch_number == 0 else ("refill", batch_number)
        samples = batch_at(task.rlvr, step, num_wanted, seed, "rlvr", *name)
        if config.dynamic_sampling:
            samples = _unused(samples, used_keys)
        if samples:
            fresh = sample_groups(
                context.backbone,
                samples,
                group_size=config.group_size,
                sampling=context.config.sampling,
                seed=(seed, "rlvr", step, *name),
            )
            rewards = rewards_of(fresh, context.rewards)
            groups += fresh
            batches.append(rewards)
            is_kept += (
                _has_spread(context, rewards).tolist()
                if config.dynamic_sampling
                else [True] * len(fresh)
            )
        if sum(is_kept) >= num_wanted or len(used_keys) >= len(task.rlvr):
            break
    rewards = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return _chosen(groups, rewards, is_kept, batch_number + 1, config)


def _has_spread(context: Context, rewards: dict[str, Tensor]) -> Tensor:
    """Return which groups differ in accuracy, or in the whole reward without it; bool [P]."""
    value_R = rewards.get("accuracy")
    if value_R is None:
        value_R = weighted_sum(rewards, context.reward_weights)
    group_size = context.config.rlvr.group_size
    zscore_R = group_zscore(value_R, group_size=group_size, counted_R=~value_R.isnan())
    return zscore_R.view(-1, group_size).any(1)  # zeros in a group without spread


def _unused(samples: list[Sample], used_keys: set[str]) -> list[Sample]:
    """Return the samples whose prompt this step has not sampled yet, and add their keys."""
    unused = []
    for sample in samples:
        if sample.key not in used_keys:
            used_keys.add(sample.key)
            unused.append(sample)
    return unused


def _chosen(
    groups: list[Group],
    rewards: dict[str, Tensor],
    is_kept: list[bool],
    num_batches: int,
    config: RlvrConfig,
) -> Draw:
    """Keep the first `prompts_per_step` of the groups with spread."""
    is_usable_P = torch.tensor(is_kept)
    is_kept_P = is_usable_P & (is_usable_P.cumsum(0) <= config.prompts_per_step)
    num_kept = int(is_kept_P.sum())
    metrics: dict[str, float] = {}
    if config.dynamic_sampling:
        metrics = {
            "dynamic_sampling/num_batches": num_batches,
            "dynamic_sampling/num_kept": num_kept,
            "dynamic_sampling/num_filtered": int((~is_usable_P).sum()),
        }
    ran_out = config.dynamic_sampling and num_kept < config.prompts_per_step
    return Draw(groups, rewards, is_kept_P, metrics, ran_out)
