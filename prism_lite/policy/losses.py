"""Policy losses as pure functions of tensors: no model in sight.

`LOSSES` is the table of them. A new loss takes a function here, its entry in the table, its name in
`config.PolicyLoss`, and a test against its paper or a peer. A loss function forms its value at each token
and ends with `_batch_mean`, where the KL term and the entropy bonus are added.

Sources: GRPO arXiv 2402.03300, BNPO as TRL has it, Dr. GRPO 2503.20783, DAPO 2503.14476, GSPO
2507.18071, CISPO 2506.13585, SAPO 2511.20347, dual clip 1912.09729. Equal to TRL 1.16, which has no
gspo_token (tests/parity).

Shape letters: N completion tokens of a pack (rollout after rollout), R its rollouts, K pairs of teacher
and student.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prism_lite.config import KlKind, PolicyLoss, PolicyLossConfig

Metrics = dict[str, float]
_MAX_LOG_RATIO = 20.0  # exp(20) = 5e8, far outside every clip range
# What a mean is over: the tokens of the batch or of the minibatch, the rollouts (each of them the
# mean over its own tokens), or the maximum number of tokens the rollouts could have.
Over = Literal["batch tokens", "minibatch tokens", "rollouts", "token limit"]


@dataclass(frozen=True)
class BatchSize:
    """What a loss divides by: sizes of the complete batch, of which a pack holds a part.

    Attributes:
        num_tokens: counted tokens of this minibatch.
        mean_tokens: counted tokens of the batch / its minibatches.
        mean_rollouts: rollouts of the batch / its minibatches.
        max_completion_tokens: the length limit of a rollout.
    """

    num_tokens: float
    mean_tokens: float
    mean_rollouts: float
    max_completion_tokens: int


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One pack of a minibatch: complete rollouts.

    Attributes:
        policy_logprob_N: float32, with gradient.
        old_logprob_N: float32, of the policy that sampled, without gradient.
        advantage_R: float32.
        rollout_N: int64, the rollout (0 to R - 1) each token belongs to.
        is_counted_R: bool, False for a rollout that is masked (cut at the length limit).
        size: of the batch.
        kl_N: float32, KL to the reference at each token, with gradient; or None.
        kl_weight: of the mean of `kl_N` in the loss.
        entropy_N: float32, entropy of the policy at each token, with gradient; or None.
    """

    policy_logprob_N: Tensor
    old_logprob_N: Tensor
    advantage_R: Tensor
    rollout_N: Tensor
    is_counted_R: Tensor
    size: BatchSize
    kl_N: Tensor | None = None
    kl_weight: float = 0.0
    entropy_N: Tensor | None = None

    @property
    def advantage_N(self) -> Tensor:
        return self.advantage_R[self.rollout_N]

    @property
    def log_ratio_N(self) -> Tensor:
        """Clamped: a token that has become unlikely cannot overflow the ratio."""
        log_ratio_N = self.policy_logprob_N - self.old_logprob_N
        return log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


_SHAPING = 0.1  # gamma of LUFFY


def shaped_teacher_logprob(logprob_N: Tensor) -> Tensor:
    """Return log(p / (p + 0.1)) for tokens that the teacher wrote, float32 [N].

    As the log-ratio of these tokens (the teacher's own probability counts as 1) it gives LUFFY's shaped
    weight (arXiv 2504.14945), which does not vanish where the policy finds a token unlikely.
    """
    return -F.softplus(math.log(_SHAPING) - logprob_N)


LossFunction = Callable[[LossInputs, PolicyLossConfig], tuple[Tensor, Metrics]]


def policy_loss(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, Metrics]:
    """Compute the policy's loss: policy gradient, KL term and entropy bonus.

    Args:
        inputs: a pack of complete rollouts; packs of a minibatch add up to its loss.
        config: which loss, and its numbers.

    Returns:
        loss [], this pack's share, and its share of the metrics: clip_ratio/low_mean, high_mean and
        region_mean (of tokens; gspo: of rollouts), cispo_clip_ratio, kl, entropy; those that the
        loss has.
    """
    loss, metrics = LOSSES[config.name](inputs, config)
    with torch.no_grad():
        for name, value_N in (("kl", inputs.kl_N), ("entropy", inputs.entropy_N)):
            if value_N is not None:
                metrics[name] = float(_mean(value_N, inputs, "batch tokens"))
    return loss, metrics


def clipped(inputs: LossInputs, config: PolicyLossConfig, *, over: Over) -> tuple[Tensor, Metrics]:
    """Compute the clipped loss with a ratio per token: grpo, bnpo, dr_grpo and dapo."""
    loss_N, metrics = _clip(inputs.log_ratio_N, inputs, config, share_of="batch tokens")
    return _batch_mean(loss_N, inputs, config, over=over), metrics


def gspo(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, Metrics]:
    """Compute the clipped loss with one ratio per rollout, the geometric mean over its tokens."""
    log_ratio_N = _rollout_mean(inputs.log_ratio_N, inputs)[inputs.rollout_N]
    loss_N, metrics = _clip(log_ratio_N, inputs, config, share_of="rollouts")
    return _batch_mean(loss_N, inputs, config, over="rollouts"), metrics


def gspo_token(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, Metrics]:
    """Compute gspo's value with a gradient through each token's own log-prob.

    The paper defines it for advantages that differ between tokens; here all tokens of a rollout have the
    same one, so that the gradient equals gspo's.
    """
    rollout_log_ratio_R = _rollout_mean(inputs.log_ratio_N.detach(), inputs)
    zero_N = inputs.policy_logprob_N - inputs.policy_logprob_N.detach()  # its gradient is 1
    log_ratio_N = rollout_log_ratio_R[inputs.rollout_N] + zero_N
    loss_N, metrics = _clip(log_ratio_N, inputs, config, share_of="batch tokens")
    return _batch_mean(loss_N, inputs, config, over="rollouts"), metrics


def cispo(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, Metrics]:
    """Compute -min(r, 1 + high) A log-prob, the weight without gradient; over the batch's tokens."""
    ratio_N = inputs.log_ratio_N.exp()
    weight_N = ratio_N.clamp(max=1 + config.clip_high).detach()
    loss_N = -weight_N * inputs.advantage_N * inputs.policy_logprob_N
    is_clipped_N = (ratio_N > 1 + config.clip_high) & (inputs.advantage_N > 0)
    metrics = {"cispo_clip_ratio": float(_mean(is_clipped_N.float(), inputs, "batch tokens"))}
    return _batch_mean(loss_N, inputs, config, over="batch tokens"), metrics


def sapo(inputs: LossInputs, config: PolicyLossConfig) -> tuple[Tensor, Metrics]:
    """Compute -4 / t sigmoid(t (r - 1)) A, with temperature t by the sign of A; averaged over rollouts."""
    ratio_N, advantage_N = inputs.log_ratio_N.exp(), inputs.advantage_N
    temperature_N = torch.where(
        advantage_N > 0, config.sapo_temperature_positive, config.sapo_temperature_negative
    )
    gate_N = torch.sigmoid(temperature_N * (ratio_N - 1)) * 4 / temperature_N
    return _batch_mean(-gate_N * advantage_N, inputs, config, over="rollouts"), {}


LOSSES: dict[PolicyLoss, LossFunction] = {
    "grpo": partial(clipped, over="rollouts"),
    "bnpo": partial(clipped, over="minibatch tokens"),
    "dr_grpo": partial(clipped, over="token limit"),
    "dapo": partial(clipped, over="batch tokens"),
    "gspo": gspo,
    "gspo_token": gspo_token,
    "cispo": cispo,
    "sapo": sapo,
}


def _clip(
    log_ratio_N: Tensor, inputs: LossInputs, config: PolicyLossConfig, *, share_of: Over
) -> tuple[Tensor, Metrics]:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A), where A < 0 at most -dual A, and what it clips.

    Args:
        share_of: what the clip ratios are a share of.
    """
    ratio_N, advantage_N = log_ratio_N.exp(), inputs.advantage_N
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    if config.clip_dual is not None:
        bounded_N = torch.maximum(gain_N, config.clip_dual * advantage_N)
        gain_N = torch.where(advantage_N < 0, bounded_N, gain_N)
    is_low_N = (ratio_N < 1 - config.clip_low) & (advantage_N < 0)
    is_high_N = (ratio_N > 1 + config.clip_high) & (advantage_N > 0)
    low, high = (float(_mean(v.float(), inputs, share_of)) for v in (is_low_N, is_high_N))
    return -gain_N, {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }


def _batch_mean(
    loss_N: Tensor, inputs: LossInputs, config: PolicyLossConfig, *, over: Over
) -> Tensor:
    """Return this pack's share of the batch's loss: its mean, the KL term and the entropy bonus.

    The KL is averaged as the loss is, the entropy always over the batch's tokens.
    """
    loss = _mean(loss_N, inputs, over)
    if inputs.kl_N is not None:
        loss = loss + inputs.kl_weight * _mean(inputs.kl_N, inputs, over)
    if inputs.entropy_N is not None:
        loss = loss - config.entropy_weight * _mean(inputs.entropy_N, inputs, "batch tokens")
    return loss


def _mean(value_N: Tensor, inputs: LossInputs, over: Over) -> Tensor:
    """Return this pack's share of a mean over the batch; masked rollouts count as 0."""
    size = inputs.size
    if over == "rollouts":
        mean_R = _rollout_mean(value_N, inputs)
        return torch.where(inputs.is_counted_R, mean_R, 0.0).sum() / size.mean_rollouts
    divisor = {
        "batch tokens": size.mean_tokens,
        "minibatch tokens": size.num_tokens,
        "token limit": size.mean_rollouts * size.max_completion_tokens,
    }[over]
    return torch.where(inputs.is_counted_R[inputs.rollout_N], value_N, 0.0).sum() / divisor


def _rollout_mean(value_N: Tensor, inputs: LossInputs) -> Tensor:
    """Return the mean over the tokens of each rollout, [R]."""
    zero_R = torch.zeros_like(inputs.advantage_R, dtype=value_N.dtype)
    length_R = zero_R.index_add(0, inputs.rollout_N, torch.ones_like(value_N))
    return zero_R.index_add(0, inputs.rollout_N, value_N) / length_R


def token_kl(policy_logprob_N: Tensor, reference_logprob_N: Tensor, kind: KlKind) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token.

    With d = policy - reference log-prob: k1 d (unbiased; as a loss its gradient is zero on
    average, as a reward it is right), k2 d^2 / 2, k3 exp(-d) + d - 1 (unbiased, never negative).

    Source: John Schulman, "Approximating KL divergence", 2020.
    """
    difference_N = policy_logprob_N - reference_logprob_N
    if kind == "k1":
        return difference_N
    if kind == "k2":
        return 0.5 * difference_N.square()
    assert kind == "k3"
    return torch.exp(-difference_N) + difference_N - 1


def dpo_loss(policy_K2: Tensor, reference_K2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Compute direct preference optimisation of the teacher over the student (arXiv 2305.18290).

    Args:
        policy_K2: float32 [K, 2], log-probs of complete completions, teacher first; with gradient.
        reference_K2: the same under the reference, without.
        beta: how far the policy may go from the reference.

    Returns:
        loss_K: -log sigmoid(reward of the teacher - of the student). reward_K2: beta * (policy -
        reference), detached.
    """
    reward_K2 = beta * (policy_K2 - reference_K2)
    return F.softplus(reward_K2[:, 1] - reward_K2[:, 0]), reward_K2.detach()
