"""RLVR's rollouts of one step: sampled, rewarded, and with dynamic sampling filtered and refilled.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prism_lite.config import RlvrConfig
from prism_lite.policy.advantages import SPREAD_FLOOR, soft_overlong, weighted_sum
from prism_lite.rewards.group_rewards import further_rewards, reward_weights, verifiable_rewards
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from prism_lite.types import Group, Sample


@dataclass(frozen=True, eq=False)
class Draw:
    """What a step sampled.

    Attributes:
        groups: all that were sampled.
        rewards: by name, float32 [R], of all of them.
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
    """Sample `rlvr.prompts_per_step` groups and their rewards.

    With dynamic sampling (DAPO, arXiv 2503.14476) groups whose rollouts are all right or all wrong
    teach nothing and are replaced by groups of further prompts, no prompt twice, until there are
    enough, or `rlvr.max_sampled_batches` batches were sampled, or no prompt is left. Which prompts
    come next depends on the step alone, so a resumed run draws the same.
    """
    config, task, seed = context.config.rlvr, context.task, context.config.seed
    num_wanted = config.prompts_per_step
    groups: list[Group] = []
    found: list[dict[str, Tensor]] = []
    is_kept: list[bool] = []
    seen: set[str] = set()
    num_batches = config.max_sampled_batches if config.dynamic_sampling else 1
    batch_number = 0
    for batch_number in range(num_batches):
        name = () if batch_number == 0 else ("refill", batch_number)
        samples = batch_at(task.rlvr, step, num_wanted, seed, "rlvr", *name)
        if config.dynamic_sampling:
            samples = _not_seen(samples, seen)
        if samples:
            fresh = sample_groups(
                context.backbone,
                samples,
                group_size=config.group_size,
                sampling=context.config.sampling,
                seed=(seed, "rlvr", step, *name),
            )
            rewards = _rewards(fresh, config, context.config.sampling.max_completion_tokens)
            groups += fresh
            found.append(rewards)
            spread_P = _judged_by(rewards, config).view(-1, config.group_size).std(1, correction=0)
            is_kept += (
                (spread_P > SPREAD_FLOOR).tolist()
                if config.dynamic_sampling
                else [True] * len(fresh)
            )
        if sum(is_kept) >= num_wanted or len(seen) >= len(task.rlvr):
            break
    rewards = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return _chosen(groups, rewards, is_kept, batch_number + 1, config)


def _judged_by(rewards: dict[str, Tensor], config: RlvrConfig) -> Tensor:
    """What dynamic sampling looks at: accuracy; the whole reward where accuracy has no weight."""
    if config.accuracy_weight > 0:
        return rewards["accuracy"]
    return weighted_sum(rewards, reward_weights(config))


def _not_seen(samples: list[Sample], seen: set[str]) -> list[Sample]:
    """Those whose prompt this step has not sampled yet; they count as seen from now on."""
    fresh = []
    for sample in samples:
        if sample.key not in seen:
            seen.add(sample.key)
            fresh.append(sample)
    return fresh


def _rewards(groups: list[Group], config: RlvrConfig, max_tokens: int) -> dict[str, Tensor]:
    rewards = verifiable_rewards(groups) | further_rewards(groups, config)
    if config.overlong_weight > 0:
        lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
        buffer_tokens = max(1, round(config.overlong_buffer * max_tokens))
        rewards["overlong"] = soft_overlong(
            lengths, max_tokens=max_tokens, buffer_tokens=buffer_tokens
        )
    return rewards


def _chosen(
    groups: list[Group],
    rewards: dict[str, Tensor],
    is_kept: list[bool],
    num_batches: int,
    config: RlvrConfig,
) -> Draw:
    """The first `prompts_per_step` of the groups that may stay."""
    may_stay_P = torch.tensor(is_kept)
    is_kept_P = may_stay_P & (may_stay_P.cumsum(0) <= config.prompts_per_step)
    num_kept = int(is_kept_P.sum())
    metrics: dict[str, float] = {}
    if config.dynamic_sampling:
        metrics = {
            "dynamic_sampling/num_batches": num_batches,
            "dynamic_sampling/num_kept": num_kept,
            "dynamic_sampling/num_filtered": int((~may_stay_P).sum()),
        }
    ran_out = config.dynamic_sampling and num_kept < config.prompts_per_step
    return Draw(groups, rewards, is_kept_P, metrics, ran_out)
