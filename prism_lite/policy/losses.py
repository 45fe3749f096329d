"""Losses as pure functions of tensors. Nothing here knows a model.

Shape letters: N completion tokens of a pack (rollout after rollout), R its rollouts, K pairs of teacher
and student, G students of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prism_lite.config import KlKind, PolicyLoss


@dataclass(frozen=True)
class PolicyLossConfig:
    """Which policy loss, by TRL's names, and its numbers (see `RlvrConfig`)."""

    kind: PolicyLoss = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float | None = 3.0
    sapo_temperature_positive: float = 1.0
    sapo_temperature_negative: float = 1.05
    max_completion_tokens: int | None = None  # dr_grpo divides by it
    kl_weight: float = 0.0
    kl_kind: KlKind = "k3"
    entropy_weight: float = 0.0


@dataclass(frozen=True)
class BatchSize:
    """What a loss divides by: the whole batch, of which a pack holds a part.

    Attributes:
        num_tokens: counted tokens of this minibatch.
        mean_tokens: counted tokens of the batch / its minibatches.
        mean_rollouts: rollouts of the batch / its minibatches.
    """

    num_tokens: float
    mean_tokens: float
    mean_rollouts: float


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One pack of a minibatch: whole rollouts.

    Attributes:
        policy_logprob_N: float32, with gradient.
        old_logprob_N: float32, of the policy that sampled, without gradient.
        advantage_R: float32.
        rollout_N: int64, the rollout (0 to R - 1) each token belongs to.
        is_counted_R: bool, False for a rollout that is masked (cut at the length limit).
        size: of the batch.
        kl_N: float32, KL to the reference at each token, with gradient; or None.
        entropy_N: float32, entropy of the policy at each token, with gradient; or None.
    """

    policy_logprob_N: Tensor
    old_logprob_N: Tensor
    advantage_R: Tensor
    rollout_N: Tensor
    is_counted_R: Tensor
    size: BatchSize
    kl_N: Tensor | None = None
    entropy_N: Tensor | None = None


def policy_loss(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, dict[str, float]]:
    """The policy's loss: clipped (or weighted) policy gradient, KL term and entropy bonus.

    With r the ratio exp(policy - old log-prob) and A the advantage, at each token:

    - grpo, bnpo, dr_grpo, dapo: -min(r A, clip(r, 1 - low, 1 + high) A), where A < 0 at most
      -dual A. They differ in what they divide by: each rollout's length and the rollouts; the
      tokens of the minibatch; the rollouts and the length limit; the tokens of the batch.
    - gspo: the same with r the geometric mean over the rollout's tokens, a mean over rollouts.
      gspo_token: equal in value; its gradient flows through each token's own log-prob, so that
      advantages may differ from token to token.
    - cispo: -min(r, 1 + high) A log-prob, the weight without gradient; the tokens of the batch.
    - sapo: -4 / t sigmoid(t (r - 1)) A, with temperature t by the sign of A; as grpo.

    Args:
        inputs: a pack of whole rollouts; packs of a minibatch add up to its loss.
        config: the loss and its numbers.

    Returns:
        loss [], this pack's share, and its share of the metrics: clip_ratio/low_mean, high_mean and
        region_mean (of tokens; gspo: of rollouts), cispo_clip_ratio, kl, entropy; those that the
        loss has.

    Source: GRPO arXiv 2402.03300, BNPO as TRL has it, Dr. GRPO 2503.20783, DAPO 2503.14476, GSPO
    2507.18071, CISPO 2506.13585, SAPO 2511.20347, dual clip 1912.09729. Equal to TRL 1.16, which
    has no gspo_token (tests/parity).
    """
    ratio_N = _ratio(inputs, config)
    advantage_N = inputs.advantage_R[inputs.rollout_N]
    if config.kind == "cispo":
        weight_N = ratio_N.clamp(max=1 + config.clip_high).detach()
        loss_N = -weight_N * advantage_N * inputs.policy_logprob_N
    elif config.kind == "sapo":
        loss_N = -_soft_gate(ratio_N, advantage_N, config) * advantage_N
    else:
        loss_N = -_clipped_gain(ratio_N, advantage_N, config)
    loss = _aggregate(loss_N, inputs, config)
    metrics = _clip_metrics(ratio_N.detach(), advantage_N, inputs, config)
    if inputs.kl_N is not None:
        loss = loss + config.kl_weight * _aggregate(inputs.kl_N, inputs, config)
        metrics["kl"] = (
            float(_counted(inputs.kl_N.detach(), inputs).sum()) / inputs.size.mean_tokens
        )
    if inputs.entropy_N is not None:
        entropy = _counted(inputs.entropy_N, inputs).sum() / inputs.size.mean_tokens
        loss = loss - config.entropy_weight * entropy
        metrics["entropy"] = float(entropy.detach())
    return loss, metrics


def _ratio(inputs: LossInputs, config: PolicyLossConfig) -> Tensor:
    log_ratio_N = inputs.policy_logprob_N - inputs.old_logprob_N
    if config.kind == "gspo":
        log_ratio_N = _rollout_mean(log_ratio_N, inputs)[inputs.rollout_N]
    elif config.kind == "gspo_token":
        of_rollout_N = _rollout_mean(log_ratio_N.detach(), inputs)[inputs.rollout_N]
        log_ratio_N = of_rollout_N + (inputs.policy_logprob_N - inputs.policy_logprob_N.detach())
    return log_ratio_N.exp()


def _clipped_gain(ratio_N: Tensor, advantage_N: Tensor, config: PolicyLossConfig) -> Tensor:
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    if config.clip_dual is not None:
        bounded_N = torch.maximum(gain_N, config.clip_dual * advantage_N)
        gain_N = torch.where(advantage_N < 0, bounded_N, gain_N)
    return gain_N


def _soft_gate(ratio_N: Tensor, advantage_N: Tensor, config: PolicyLossConfig) -> Tensor:
    temperature_N = torch.where(
        advantage_N > 0, config.sapo_temperature_positive, config.sapo_temperature_negative
    )
    return torch.sigmoid(temperature_N * (ratio_N - 1)) * 4 / temperature_N


def _aggregate(value_N: Tensor, inputs: LossInputs, config: PolicyLossConfig) -> Tensor:
    """This pack's share of the mean over the batch, in the loss's sense of a mean."""
    size = inputs.size
    if config.kind in ("dapo", "cispo"):
        return _counted(value_N, inputs).sum() / size.mean_tokens
    if config.kind == "bnpo":
        return _counted(value_N, inputs).sum() / size.num_tokens
    if config.kind == "dr_grpo":
        assert config.max_completion_tokens is not None
        total = _counted(value_N, inputs).sum()
        return total / (size.mean_rollouts * config.max_completion_tokens)
    mean_R = _rollout_mean(value_N, inputs)
    return torch.where(inputs.is_counted_R, mean_R, 0.0).sum() / size.mean_rollouts


def _rollout_mean(value_N: Tensor, inputs: LossInputs) -> Tensor:
    """Mean over the tokens of each rollout, [R]."""
    zero_R = torch.zeros_like(inputs.advantage_R, dtype=value_N.dtype)
    length_R = zero_R.index_add(0, inputs.rollout_N, torch.ones_like(value_N))
    return zero_R.index_add(0, inputs.rollout_N, value_N) / length_R


def _counted(value_N: Tensor, inputs: LossInputs) -> Tensor:
    return torch.where(inputs.is_counted_R[inputs.rollout_N], value_N, 0.0)


@torch.no_grad()
def _clip_metrics(
    ratio_N: Tensor, advantage_N: Tensor, inputs: LossInputs, config: PolicyLossConfig
) -> dict[str, float]:
    def share(is_clipped_N: Tensor) -> float:
        value_N = _counted(is_clipped_N.float(), inputs)
        if config.kind == "gspo":
            return float(_rollout_mean(value_N, inputs).sum()) / inputs.size.mean_rollouts
        return float(value_N.sum()) / inputs.size.mean_tokens

    high = share((ratio_N > 1 + config.clip_high) & (advantage_N > 0))
    if config.kind == "cispo":
        return {"cispo_clip_ratio": high}
    if config.kind == "sapo":
        return {}
    low = share((ratio_N < 1 - config.clip_low) & (advantage_N < 0))
    return {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }


def token_kl(policy_logprob_N: Tensor, reference_logprob_N: Tensor, kind: KlKind) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token.

    With d = policy - reference log-prob: k1 d (unbiased; as a loss its gradient is zero on
    average, as a reward it is right), abs |d|, k2 d^2 / 2, k3 exp(-d) + d - 1 (unbiased, never
    negative). The exact one over the vocabulary ("full") is `full_kl.vocabulary_kl`.

    Source: John Schulman, "Approximating KL divergence", 2020.
    """
    difference_N = policy_logprob_N - reference_logprob_N
    if kind == "k1":
        return difference_N
    if kind == "abs":
        return difference_N.abs()
    if kind == "k2":
        return 0.5 * difference_N.square()
    assert kind == "k3"
    return torch.exp(-difference_N) + difference_N - 1


def dpo_loss(policy_K2: Tensor, reference_K2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation of the teacher over the student (arXiv 2305.18290).

    Args:
        policy_K2: float32 [K, 2], log-probs of whole completions, teacher first; with gradient.
        reference_K2: the same under the reference, without.
        beta: how far the policy may go from the reference.

    Returns:
        loss_K: -log sigmoid(reward of the teacher - of the student). reward_K2: beta * (policy -
        reference), detached.
    """
    reward_K2 = beta * (policy_K2 - reference_K2)
    return F.softplus(reward_K2[:, 1] - reward_K2[:, 0]), reward_K2.detach()
