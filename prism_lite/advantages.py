"""Advantages: from scores or rewards of a group to one number per rollout, zero mean in the group.

Shape letters: R rollouts (rows of one prompt adjacent), P prompts, G = R / P rollouts per prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD_FLOOR = 1e-6  # a group whose values differ by less teaches nothing


def group_zscore(value_R: Tensor, *, group_size: int, counted_R: Tensor | None = None) -> Tensor:
    """Standardise values within each group.

    Args:
        value_R: float32 [R], finite where counted.
        group_size: G.
        counted_R: bool [R], True for the rollouts that form mean and deviation and get a z-score;
            the others get 0. Default: all.

    Returns:
        z_R: float32 [R]. A group without spread, or with fewer than two counted rollouts, gives
        zeros. The deviation is the population's (divided by the count).

    Raises:
        ValueError: R is not a multiple of `group_size`, or a counted value is not finite.
    """
    num_rollouts = value_R.shape[0]
    if num_rollouts % group_size:
        raise ValueError(
            f"{num_rollouts} rollouts cannot form groups of {group_size}: the last prompt lacks "
            f"{-num_rollouts % group_size}."
        )
    counted_R = torch.ones_like(value_R, dtype=torch.bool) if counted_R is None else counted_R
    if not value_R[counted_R].isfinite().all():
        raise ValueError("a score or reward is not finite: find the rollout it belongs to first.")
    counted_PG = counted_R.view(-1, group_size)
    value_PG = torch.where(counted_PG, value_R.view(-1, group_size), 0.0)
    count_P1 = counted_PG.sum(1, keepdim=True).clamp(min=1)
    mean_P1 = value_PG.sum(1, keepdim=True) / count_P1
    centred_PG = torch.where(counted_PG, value_PG - mean_P1, 0.0)
    deviation_P1 = (centred_PG.square().sum(1, keepdim=True) / count_P1).sqrt()
    z_PG = torch.where(
        deviation_P1 > SPREAD_FLOOR, centred_PG / deviation_P1.clamp(min=SPREAD_FLOOR), 0.0
    )
    return z_PG.flatten()


def alignment_advantages(
    perception_R: Tensor,
    reasoning_R: Tensor,
    *,
    group_size: int,
    well_formed_R: Tensor,
    alpha: float = 0.5,
    malformed_penalty: float = 1.5,
) -> Tensor:
    """Advantage of each rollout from the discriminator's two scores.

    Each channel is standardised within the group over its well-formed rollouts only,
    A = alpha * z_perception + (1 - alpha) * z_reasoning; a malformed rollout gets
    -malformed_penalty and takes no part in the statistics; then the group is centred.

    Args:
        perception_R, reasoning_R: float32 [R]; what a malformed rollout holds is not looked at.
        group_size: G.
        well_formed_R: bool [R].
        alpha: weight of perception, 0 to 1.
        malformed_penalty: subtracted, in units of the deviation of the well-formed.

    Returns:
        advantage_R: float32 [R], zero mean in every group. A group that is malformed throughout
        gives zeros: it does not say which rollout is better.

    Raises:
        ValueError: see `group_zscore`; or alpha outside 0 to 1.

    Source: METHOD section 3. The official code lets malformed rollouts into the statistics.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}, expected a weight from 0 to 1.")
    z_perception_R = group_zscore(perception_R, group_size=group_size, counted_R=well_formed_R)
    z_reasoning_R = group_zscore(reasoning_R, group_size=group_size, counted_R=well_formed_R)
    advantage_R = alpha * z_perception_R + (1 - alpha) * z_reasoning_R
    advantage_R = torch.where(well_formed_R, advantage_R, -malformed_penalty)
    return center_groups(advantage_R, group_size=group_size)


def center_groups(advantage_R: Tensor, *, group_size: int) -> Tensor:
    """Subtract each group's mean."""
    advantage_PG = advantage_R.view(-1, group_size)
    return (advantage_PG - advantage_PG.mean(1, keepdim=True)).flatten()


def reward_advantages(reward_R: Tensor, *, group_size: int) -> Tensor:
    """GRPO's advantage: the reward standardised within its group (arXiv 2402.03300)."""
    return group_zscore(reward_R, group_size=group_size)
