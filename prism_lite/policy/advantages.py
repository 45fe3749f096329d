"""Advantages: one number per rollout from its scores or rewards, with zero mean in its group.

Shape letters: R rollouts (rows of one prompt adjacent), P prompts, G = R / P rollouts per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import AlignMode, RewardCombination, RewardScale

SPREAD_FLOOR = 1e-6  # a group whose values differ by less teaches nothing


@dataclass(frozen=True, eq=False)
class Verified:
    """Verdicts of a verifier on R rollouts: the weighted reward, float32, and who is wrong, bool."""

    reward_R: Tensor
    is_wrong_R: Tensor


def group_zscore(
    value_R: Tensor,
    *,
    group_size: int,
    counted_R: Tensor | None = None,
    floor: float = SPREAD_FLOOR,
) -> Tensor:
    """Standardise values within each group.

    Args:
        value_R: float32 [R], finite where counted.
        group_size: G.
        counted_R: bool [R], True for the rollouts that form mean and deviation and get a z-score;
            the others get 0. Default: all.
        floor: smallest deviation that is divided by.

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
    if counted_R is None:
        counted_R = torch.ones_like(value_R, dtype=torch.bool)
    if not value_R[counted_R].isfinite().all():
        raise ValueError("a score or reward is not finite: find the rollout it belongs to first.")
    counted_PG = counted_R.view(-1, group_size)
    value_PG = torch.where(counted_PG, value_R.view(-1, group_size), 0.0)
    count_P1 = counted_PG.sum(1, keepdim=True).clamp(min=1)
    mean_P1 = value_PG.sum(1, keepdim=True) / count_P1
    centred_PG = torch.where(counted_PG, value_PG - mean_P1, 0.0)
    deviation_P1 = (centred_PG.square().sum(1, keepdim=True) / count_P1).sqrt()
    z_PG = torch.where(
        deviation_P1 > SPREAD_FLOOR,
        centred_PG / deviation_P1.clamp(min=max(floor, SPREAD_FLOOR)),
        0.0,
    )
    return z_PG.flatten()


def aligned_advantages(
    perception_R: Tensor,
    reasoning_R: Tensor,
    *,
    group_size: int,
    well_formed_R: Tensor,
    alpha: float = 0.5,
    floors: tuple[float, float] = (SPREAD_FLOOR, SPREAD_FLOOR),
) -> Tensor:
    """Compute A0 = alpha * z_perception + (1 - alpha) * z_reasoning of each rollout.

    Each channel is standardised within the group over its well-formed rollouts only.

    Args:
        perception_R, reasoning_R: float32 [R]; the values of malformed rollouts are ignored.
        group_size: G.
        well_formed_R: bool [R].
        alpha: weight of perception, 0 to 1.
        floors: smallest deviation of each channel that is divided by.

    Returns:
        aligned_R: float32 [R], 0 for a malformed rollout.

    Raises:
        ValueError: see `group_zscore`; or alpha outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}, expected a weight from 0 to 1.")
    z_perception_R, z_reasoning_R = (
        group_zscore(score_R, group_size=group_size, counted_R=well_formed_R, floor=floor)
        for score_R, floor in zip((perception_R, reasoning_R), floors, strict=True)
    )
    return alpha * z_perception_R + (1 - alpha) * z_reasoning_R


def alignment_advantages(
    perception_R: Tensor,
    reasoning_R: Tensor,
    *,
    group_size: int,
    well_formed_R: Tensor,
    alpha: float = 0.5,
    floors: tuple[float, float] = (SPREAD_FLOOR, SPREAD_FLOOR),
    malformed_penalty: float = 1.5,
    mode: AlignMode = "align",
    verified: Verified | None = None,
    weight: float = 1.0,
    wrong_penalty: float = 1.0,
) -> Tensor:
    """Compute the advantage of each rollout from the discriminator's two scores, and verdicts.

    With A = `aligned_advantages`, F = 1 for a malformed rollout, W = 1 for a wrong and well-formed
    one, g = (1 - F)(1 - W), Z the z-score within the group, c = `weight`, pF = `malformed_penalty`, pW
    = `wrong_penalty` and r the verifiable reward, the modes (those of the official code, by name) are

    - align: A - pF F (the paper's; a malformed rollout's penalty is in units of the deviation of
      the well-formed)
    - acc_gate: c A - pW W - pF F
    - gated: c A g - pW W - pF F
    - rlvr: Z(r) + c A g
    - rlvr_v2: Z(r - pW W - pF F) + c A g
    - sign_align: Z((1 - F)(r - pW W) - pF F) + c A (1 - F)(1 - 2 W)

    and then the group is centred.

    Args:
        perception_R, reasoning_R, group_size, well_formed_R, alpha, floors: of `aligned_advantages`.
        verified: the verifier's verdicts; needed by every mode but "align".

    Returns:
        advantage_R: float32 [R], zero mean in every group. Under "align" a group whose rollouts are
        all malformed gives zeros: it does not show which rollout is better.

    Raises:
        ValueError: see `aligned_advantages`.

    Source: METHOD section 3. The official code includes malformed rollouts in the statistics and
    does not centre.
    """
    aligned_R = aligned_advantages(
        perception_R,
        reasoning_R,
        group_size=group_size,
        well_formed_R=well_formed_R,
        alpha=alpha,
        floors=floors,
    )
    if mode == "align":
        advantage_R = torch.where(well_formed_R, aligned_R, -malformed_penalty)
        return center_groups(advantage_R, group_size=group_size)
    assert verified is not None, f"mode {mode} needs the verifier's verdicts"
    malformed_R = (~well_formed_R).float()
    wrong_R = (verified.is_wrong_R & well_formed_R).float()
    penalty_R = wrong_penalty * wrong_R + malformed_penalty * malformed_R
    aligned_R = weight * aligned_R
    gated_R = aligned_R * (1 - malformed_R) * (1 - wrong_R)

    def zscore(value_R: Tensor) -> Tensor:
        return group_zscore(value_R, group_size=group_size, counted_R=~value_R.isnan())

    if mode == "acc_gate":
        advantage_R = aligned_R - penalty_R
    elif mode == "gated":
        advantage_R = gated_R - penalty_R
    elif mode == "rlvr":
        advantage_R = zscore(verified.reward_R) + gated_R
    elif mode == "rlvr_v2":
        advantage_R = zscore(verified.reward_R - penalty_R) + gated_R
    else:
        assert mode == "sign_align"
        reward_R = verified.reward_R - wrong_penalty * wrong_R
        advantage_R = zscore((1 - malformed_R) * reward_R - malformed_penalty * malformed_R)
        advantage_R = advantage_R + aligned_R * (1 - malformed_R) * (1 - 2 * wrong_R)
    return center_groups(advantage_R, group_size=group_size)


def center_groups(advantage_R: Tensor, *, group_size: int) -> Tensor:
    """Subtract each group's mean."""
    advantage_PG = advantage_R.view(-1, group_size)
    return (advantage_PG - advantage_PG.mean(1, keepdim=True)).flatten()


def reward_advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    group_size: int,
    scale: RewardScale = "group",
    combine: RewardCombination = "sum_then_normalize",
) -> Tensor:
    """Compute RLVR's advantage of each rollout from its rewards.

    sum_then_normalize: the weighted sum minus the group's mean, divided by the group's deviation
    (GRPO, arXiv 2402.03300), the batch's, or nothing (Dr. GRPO, 2503.20783), depending on `scale`.
    normalize_then_sum: each reward standardised in its group, then the weighted sum divided by the
    batch's deviation (GDPO, 2601.05242): a reward with little spread keeps its influence.

    NaN means that a reward function returned None, as in TRL's GRPOTrainer: the others are
    summed; a rollout without any reward is left out of the statistics and gets advantage 0.

    Args:
        rewards: by name, each float32 [R].
        weights: by the same names.
        group_size: G.

    Returns:
        advantage_R: float32 [R], zero mean in every group.

    Raises:
        ValueError: see `group_zscore`.
    """
    assert rewards.keys() == weights.keys()
    reward_R = weighted_sum(rewards, weights)
    is_scored_R = ~reward_R.isnan()
    if combine == "normalize_then_sum":
        zscores = {
            name: group_zscore(value_R, group_size=group_size, counted_R=~value_R.isnan())
            for name, value_R in rewards.items()
        }
        zscore_R = weighted_sum(zscores, weights)
        return _divided_by_spread(zscore_R, zscore_R[is_scored_R])
    # also checks the values
    zscore_R = group_zscore(reward_R, group_size=group_size, counted_R=is_scored_R)
    if scale == "group":
        return zscore_R
    centred_R = center_groups(fill_unscored(reward_R, group_size=group_size), group_size=group_size)
    # a group without spread gets exact zeros, not rounding errors
    centred_R = torch.where(zscore_R == 0, 0.0, centred_R)
    return centred_R if scale == "none" else _divided_by_spread(centred_R, reward_R[is_scored_R])


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight * value over the names, [R]; NaN counts 0, and only NaN gives NaN."""
    first, *others = (
        weights[name] * torch.where(value_R.isnan(), 0.0, value_R)
        for name, value_R in values.items()
    )
    is_scored_R = ~torch.stack([*values.values()]).isnan().all(0)
    return torch.where(is_scored_R, sum(others, start=first), torch.nan)


def fill_unscored(reward_R: Tensor, *, group_size: int) -> Tensor:
    """Replace NaN by the mean of the group's other rewards, or by 0 where it has none."""
    reward_PG = reward_R.view(-1, group_size)
    mean_P1 = reward_PG.nanmean(1, keepdim=True).nan_to_num()
    return torch.where(reward_PG.isnan(), mean_P1, reward_PG).flatten()


def _divided_by_spread(value_R: Tensor, batch_R: Tensor) -> Tensor:
    """Divide by the standard deviation of `batch_R`; zeros if it has none."""
    deviation = float(batch_R.std(correction=0))
    return value_R / deviation if deviation > SPREAD_FLOOR else torch.zeros_like(value_R)
