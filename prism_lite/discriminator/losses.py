"""The discriminator's loss terms and the cap of its scores.

Shape letters: K pairs of parts, G rollouts of one group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def bradley_terry_loss(
    teacher_score_K: Tensor, student_score_K: Tensor, is_tie_K: Tensor | None = None
) -> Tensor:
    """Return the mean of -log sigmoid(teacher - student) over pairs of parts of the same prompt.

    Args:
        teacher_score_K, student_score_K: float32 [K].
        is_tie_K: bool, pairs of equal texts, which are left out; 0 if all are.
    """
    loss_K = F.softplus(student_score_K - teacher_score_K)
    if is_tie_K is None:
        return loss_K.mean()
    return (loss_K * ~is_tie_K).sum() / (~is_tie_K).sum().clamp(min=1)


def rank_spread_penalty(score_G: Tensor) -> Tensor:
    """Compute the squared Wasserstein-2 distance of centred scores to unit Gaussian quantiles.

    Bradley-Terry on a group is minimised by scores that collapse together, but the policy's z-scores
    need their spread: this term preserves it.

    Args:
        score_G: float32 [G], at least two scores.

    Source: GRGC as METHOD section 6 states it.
    """
    count = len(score_G)
    assert count > 1
    sorted_G = (score_G - score_G.mean()).sort().values
    share_G = (torch.arange(count, device=score_G.device, dtype=score_G.dtype) + 0.5) / count
    return (sorted_G - torch.special.ndtri(share_G)).square().mean()


def cap_scores(raw: Tensor, cap: float) -> Tensor:
    """Bound scores smoothly to (-cap, cap): cap * tanh(raw / cap).

    The gradient is 1 - tanh^2: 7 % at two caps, and exactly zero in float32 from about nine caps on,
    where tanh rounds to 1.
    """
    return cap * torch.tanh(raw / cap)
