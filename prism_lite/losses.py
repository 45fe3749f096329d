"""Losses as pure functions of tensors. Nothing here knows a model.

Shape letters: N completion tokens of all rollouts (rollout after rollout), R rollouts, K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class PolicyLossConfig:
    """Clipping of the ratio: to [1 - low, 1 + high]; `dual` bounds the loss where A < 0."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float = 3.0


def policy_loss(
    policy_logprob_N: Tensor,
    old_logprob_N: Tensor,
    advantage_N: Tensor,
    config: PolicyLossConfig,
    *,
    num_tokens: float,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped policy-gradient loss of GRPO, averaged over tokens.

    L = -sum min(r A, clip(r, 1 - low, 1 + high) A) / num_tokens with r = exp(policy - old log-prob);
    where A < 0 the inner value is at least dual * A (dual-clip PPO, arXiv 1912.09729).

    Args:
        policy_logprob_N: float32, with gradient.
        old_logprob_N: float32, of the policy that sampled, without gradient.
        advantage_N: float32, each rollout's advantage at each of its tokens.
        num_tokens: tokens of the whole batch, of which these N may be a part.

    Returns:
        loss [] (this part's share of the batch loss), and clip_ratio/low_mean, high_mean and
        region_mean as shares of `num_tokens`.
    """
    ratio_N = (policy_logprob_N - old_logprob_N).exp()
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    gain_N = torch.where(
        advantage_N < 0, torch.maximum(gain_N, config.clip_dual * advantage_N), gain_N
    )
    is_low_N = (ratio_N < 1 - config.clip_low) & (advantage_N < 0)
    is_high_N = (ratio_N > 1 + config.clip_high) & (advantage_N > 0)
    low, high = int(is_low_N.sum()), int(is_high_N.sum())
    metrics = {
        "clip_ratio/low_mean": low / num_tokens,
        "clip_ratio/high_mean": high / num_tokens,
        "clip_ratio/region_mean": (low + high) / num_tokens,
    }
    return -gain_N.sum() / num_tokens, metrics


def kl_k3(policy_logprob_N: Tensor, reference_logprob_N: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1, d = reference - policy."""
    difference_N = reference_logprob_N - policy_logprob_N
    return difference_N.exp() - difference_N - 1


def bradley_terry_loss(teacher_score_K: Tensor, student_score_K: Tensor) -> Tensor:
    """Mean of -log sigmoid(teacher - student) over pairs of parts of the same prompt."""
    return F.softplus(student_score_K - teacher_score_K).mean()


def cap_scores(raw: Tensor, cap: float) -> Tensor:
    """Bound scores smoothly to (-cap, cap): cap * tanh(raw / cap). Its gradient never is zero."""
    return cap * torch.tanh(raw / cap)
