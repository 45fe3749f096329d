"""The rollouts of one RLVR step and their rewards, with dynamic sampling.

Shape letters: P prompts, R rollouts of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prism_lite.parts import parse
from prism_lite.policy.advantages import group_zscore, weighted_sum
from prism_lite.rewards.group_rewards import rewards_of
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import samples_at
from prism_lite.stages.context import Context
from prism_lite.types import Group, Rollout, Sample


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The rollouts of one step.

    Attributes:
        groups: all that were sampled, with the teacher's completion where it is a rollout.
        rewards: by name, float32 [R], of all of them; NaN where a reward returned None.
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
    def sampled(self) -> list[Group]:
        """The groups with the policy's own rollouts only."""
        return [
            Group(g.sample, tuple(r for r in g.rollouts if not r.is_teacher)) for g in self.groups
        ]

    @property
    def kept(self) -> list[Group]:
        return [g for g, kept in zip(self.groups, self.is_kept_P.tolist(), strict=True) if kept]

    @property
    def is_kept_R(self) -> Tensor:
        return self.is_kept_P.repeat_interleave(len(self.groups[0].rollouts))


def sample_batch(context: Context, step: int) -> RolloutBatch:
    """Sample `rlvr.prompts_per_step` groups and their rewards.

    With dynamic sampling (DAPO, arXiv 2503.14476) groups without spread carry no signal and are
    replaced by groups of further prompts, no prompt twice, until there are enough, or
    `rlvr.max_sampled_batches` batches were sampled, or no prompt is left. The order of the prompts
    depends on the step alone, so a resumed run draws the same.
    """
    config, task, seed = context.config.rlvr, context.task, context.config.seed
    groups: list[Group] = []
    batch_rewards: list[dict[str, Tensor]] = []
    may_keep: list[bool] = []
    sampled_keys: set[str] = set()
    num_batches = 0
    while num_batches < (config.max_sampled_batches if config.dynamic_sampling else 1):
        name = () if num_batches == 0 else ("refill", num_batches)
        num_batches += 1
        samples = samples_at(task.rlvr, step, config.prompts_per_step, seed, "rlvr", *name)
        if config.dynamic_sampling:
            samples = _new_prompts(samples, sampled_keys)
        context.run.batch = [*(context.run.batch if num_batches > 1 else ()), *samples]
        if samples:
            sampled = sample_groups(
                context.backbone,
                samples,
                group_size=config.group_size - config.teacher_rollout,
                sampling=context.config.sampling,
                seed=(seed, "rlvr", step, *name),
            )
            if config.teacher_rollout:
                sampled = [_with_teacher(context, group) for group in sampled]
            rewards = rewards_of(sampled, context.rewards)
            groups += sampled
            batch_rewards.append(rewards)
            may_keep += (
                _has_spread(context, rewards) if config.dynamic_sampling else [True] * len(sampled)
            )
        if sum(may_keep) >= config.prompts_per_step or len(sampled_keys) >= len(task.rlvr):
            break
    rewards = {name: torch.cat([r[name] for r in batch_rewards]) for name in batch_rewards[0]}
    # the first `prompts_per_step` of the groups that may be kept
    may_keep_P = torch.tensor(may_keep)
    is_kept_P = may_keep_P & (may_keep_P.cumsum(0) <= config.prompts_per_step)
    if not config.dynamic_sampling:
        return RolloutBatch(groups, rewards, is_kept_P)
    num_kept = int(is_kept_P.sum())
    metrics: dict[str, float] = {
        "dynamic_sampling/num_batches": num_batches,
        "dynamic_sampling/num_kept": num_kept,
        "dynamic_sampling/num_filtered": int((~may_keep_P).sum()),
    }
    return RolloutBatch(groups, rewards, is_kept_P, metrics, num_kept < config.prompts_per_step)


def _with_teacher(context: Context, group: Group) -> Group:
    """Add the teacher's completion to the rollouts of a group."""
    text = group.sample.teacher_parts.render()
    token_ids = context.backbone.tokenize(text)
    zero_C = torch.zeros(len(token_ids))  # no distribution is known that it was drawn from
    teacher = Rollout(
        tuple(token_ids.tolist()), text, parse(text), "end", zero_C, zero_C, is_teacher=True
    )
    return Group(group.sample, (*group.rollouts, teacher))


def _has_spread(context: Context, rewards: dict[str, Tensor]) -> list[bool]:
    """Check each group for spread in accuracy, or in the total reward if accuracy is not rewarded."""
    value_R = rewards.get("accuracy")
    if value_R is None:
        value_R = weighted_sum(rewards, context.reward_weights)
    group_size = context.config.rlvr.group_size
    zscore_R = group_zscore(value_R, group_size=group_size, counted_R=~value_R.isnan())
    return zscore_R.view(-1, group_size).any(1).tolist()  # only zeros in a group without spread


def _new_prompts(samples: list[Sample], sampled_keys: set[str]) -> list[Sample]:
    """Return the samples whose prompt this step has not sampled yet, and mark them as sampled."""
    by_key = {sample.key: sample for sample in samples if sample.key not in sampled_keys}
    sampled_keys |= by_key.keys()
    return list(by_key.values())
