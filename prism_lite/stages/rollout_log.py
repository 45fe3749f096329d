"""Metrics (TRL's names) and records of a batch of rollouts.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prism_lite.parts import Parts
from prism_lite.policy.advantages import SPREAD_FLOOR, fill_unscored
from prism_lite.rewards.group_rewards import undecided_rollouts
from prism_lite.types import Group


def rollout_metrics(groups: Sequence[Group], *, generated_s: float) -> dict[str, float]:
    """Compute lengths, malformed rate, entropy and speed of sampling.

    Lengths of completions that ended by themselves are left out if there are none. The entropy, in
    nats per token, is that of the distributions that the tokens were drawn from.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    terminated = [len(rollout.token_ids) for rollout in rollouts if rollout.finish == "end"]
    entropy = sum(float(rollout.sampling_entropy_C.sum()) for rollout in rollouts)
    metrics = {
        "num_tokens": sum(lengths),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": (len(rollouts) - len(terminated)) / len(rollouts),
    }
    if terminated:
        metrics |= {
            "completions/mean_terminated_length": sum(terminated) / len(terminated),
            "completions/min_terminated_length": min(terminated),
            "completions/max_terminated_length": max(terminated),
        }
    return metrics | {
        "malformed_rate": sum(not r.is_well_formed for r in rollouts) / len(rollouts),
        "entropy": entropy / sum(lengths),
        "gen_tokens_per_s": sum(lengths) / generated_s,
    }


def reward_metrics(
    reward_R: Tensor, rewards: Mapping[str, Tensor], *, group_size: int
) -> dict[str, float]:
    """Compute the mean and the spread of the total reward, and of each reward over the batch.

    reward_std is the mean deviation within groups, frac_reward_zero_std the share of groups without
    any. Deviations are the population's. Rollouts without a reward (NaN) do not count; a reward
    that no rollout has is left out.
    """
    is_scored_PG = ~reward_R.isnan().view(-1, group_size)
    num_scored_P = is_scored_PG.sum(1)
    # filled in with the mean of its group a rollout adds no square, only to the count
    filled_PG = fill_unscored(reward_R, group_size=group_size).view(-1, group_size)
    deviation_P = filled_PG.std(1, correction=0) * (group_size / num_scored_P).sqrt()
    deviation_P = deviation_P[num_scored_P > 0]
    metrics = {}
    if len(deviation_P):
        metrics = {
            "reward": float(reward_R[is_scored_PG.flatten()].mean()),
            "reward_std": float(deviation_P.mean()),
            "frac_reward_zero_std": float((deviation_P < SPREAD_FLOOR).float().mean()),
        }
    scored = {name: value_R[~value_R.isnan()] for name, value_R in rewards.items()}
    scored = {name: value_R for name, value_R in scored.items() if len(value_R)}
    metrics |= {f"rewards/{name}/mean": float(value_R.mean()) for name, value_R in scored.items()}
    return metrics | {
        f"rewards/{name}/std": float(value_R.std(correction=0)) for name, value_R in scored.items()
    }


def undecided_metrics(groups: Sequence[Group], rewards: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the share of the policy's rollouts whose answer the verifier could not compare.

    Returns:
        `rewards/accuracy/undecided`; nothing where accuracy is not rewarded.
    """
    if "accuracy" not in rewards:
        return {}
    is_own = [not rollout.is_teacher for group in groups for rollout in group.rollouts]
    undecided = undecided_rollouts(groups, rewards).tolist()
    num_undecided = sum(u and own for u, own in zip(undecided, is_own, strict=True))
    return {"rewards/accuracy/undecided": num_undecided / sum(is_own)}


def rollout_records(
    groups: Sequence[Group],
    advantage_R: Tensor,
    scores: Mapping[str, Tensor],
    rewards: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Return one JSON-able record per rollout; only well-formed rollouts have scores.

    A reward that is NaN (its function returned None) is left out.
    """
    records = []
    for group in groups:
        for rollout in group.rollouts:
            row = len(records)
            record: dict[str, Any] = {
                "prompt_id": group.sample.id,
                "picture_ids": [picture.id for picture in group.sample.pictures],
                "question": group.sample.question,
                "completion": rollout.text,
                "finish_reason": rollout.finish,
                "advantage": round(float(advantage_R[row]), 6),
                "rewards": {
                    name: float(value_R[row])
                    for name, value_R in rewards.items()
                    if not value_R[row].isnan()
                },
            }
            if rollout.is_teacher:
                record["is_teacher"] = True
            if isinstance(rollout.parts, Parts):
                record["parts"] = dataclasses.asdict(rollout.parts)
            else:
                record["malformed"] = rollout.parts.reason
            if rollout.is_well_formed and scores:
                record["scores"] = {n: round(float(v[row]), 6) for n, v in scores.items()}
            records.append(record)
    return records
