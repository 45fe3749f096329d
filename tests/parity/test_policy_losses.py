"""Each policy loss and its gradient against TRL's own `GRPOTrainer._compute_loss`.

TRL's method runs on a stub trainer whose model is stubbed by given log-probs, so nothing but its
arithmetic is compared. What TRL lacks is compared with a loop written from the paper's formula.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from prism_lite.config import PolicyLoss, PolicyLossConfig
from prism_lite.policy.losses import LOSSES, BatchSize, LossInputs, policy_loss, token_kl
from prism_lite.rewards.overlong import overlong_reward

MAX_TOKENS = 9
LENGTHS = (9, 3, 1, 7, 5, 9, 2, 4)
IS_COUNTED = (False, True, True, True, True, False, True, True)


class Case:
    """Random log-probs of eight rollouts, padded [B, T] as TRL wants them and flat as we do."""

    def __init__(self, seed: int, *, masked: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(scale: float) -> Tensor:
            shape = (len(LENGTHS), MAX_TOKENS)
            return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

        self.policy_BT = -2 - draw(0.8).abs()
        self.old_BT = self.policy_BT + draw(0.5)
        self.reference_BT = self.policy_BT + draw(0.5)
        self.entropy_BT = draw(1.0).abs()
        self.advantage_B = draw(1.0)[:, 0]
        self.is_counted_B = torch.tensor(IS_COUNTED if masked else [True] * len(LENGTHS))
        self.is_token_BT = torch.arange(MAX_TOKENS) < torch.tensor(LENGTHS)[:, None]
        self.mask_BT = (self.is_token_BT & self.is_counted_B[:, None]).int()

    def flat(self, value_BT: Tensor) -> Tensor:
        return value_BT[self.is_token_BT]


def trl_loss(
    case: Case, loss_type: str, *, level: str, config: PolicyLossConfig, kl_weight: float = 0.0
):
    """TRL's loss, its gradients (to log-probs and entropies) and its metrics."""
    policy_BT = case.policy_BT.clone().requires_grad_()
    entropy_BT = case.entropy_BT.clone().requires_grad_()
    trainer: Any = SimpleNamespace(
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=config.clip_low,
        # TRL's CISPO takes the bound itself
        epsilon_high=config.clip_high + (1 if loss_type == "cispo" else 0),
        beta=kl_weight,
        max_completion_length=MAX_TOKENS,
        args=SimpleNamespace(
            delta=config.clip_dual,
            use_bias_correction_kl=False,
            sapo_temperature_pos=config.sapo_temperature_positive,
            sapo_temperature_neg=config.sapo_temperature_negative,
            steps_per_generation=1,
        ),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            reduce=lambda value, reduction: value,
            gather=lambda value: value,
        ),
        _entropy_bonus_enabled=config.entropy_weight > 0,
        use_adaptive_entropy=False,
        entropy_coef=config.entropy_weight,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy_BT, entropy_BT, None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": torch.zeros(len(LENGTHS), MAX_TOKENS, dtype=torch.long),
        "completion_mask": case.mask_BT,
        "advantages": case.advantage_B,
        "old_per_token_logps": case.old_BT,
        "ref_per_token_logps": case.reference_BT,
        "num_items_in_batch": case.mask_BT.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    gradient_N = case.flat(policy_BT.grad)
    entropy_gradient = entropy_BT.grad
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return loss.detach(), gradient_N, entropy_gradient, metrics


def our_loss(
    case: Case,
    config: PolicyLossConfig,
    *,
    splits: tuple[int, ...] = (),
    kl_weight: float = 0.0,
):
    """Our loss in packs of complete rollouts that begin at `splits`, and its gradients."""
    policy_N = case.flat(case.policy_BT).requires_grad_()
    entropy_N = case.flat(case.entropy_BT).requires_grad_()
    old_N, reference_N = case.flat(case.old_BT), case.flat(case.reference_BT)
    rollout_N = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    num_tokens = int(case.mask_BT.sum())
    size = BatchSize(num_tokens, num_tokens, len(LENGTHS), MAX_TOKENS)
    total, metrics = torch.zeros((), dtype=torch.float64), defaultdict(float)
    for first, stop in zip((0, *splits), (*splits, len(LENGTHS)), strict=True):
        here_N = (rollout_N >= first) & (rollout_N < stop)
        kl_N = token_kl(policy_N[here_N], reference_N[here_N], "k3")
        inputs = LossInputs(
            policy_logprob_N=policy_N[here_N],
            old_logprob_N=old_N[here_N],
            advantage_R=case.advantage_B[first:stop],
            rollout_N=rollout_N[here_N] - first,
            is_counted_R=case.is_counted_B[first:stop],
            size=size,
            kl_N=kl_N if kl_weight > 0 else None,
            kl_weight=kl_weight,
            entropy_N=entropy_N[here_N] if config.entropy_weight > 0 else None,
        )
        loss, pack_metrics = policy_loss(inputs, config)
        loss.backward()
        total += loss.detach()
        for name, value in pack_metrics.items():
            metrics[name] += value
    return total, policy_N.grad, entropy_N.grad, dict(metrics)


def test_every_loss_is_compared_with_a_peer_or_its_paper():
    assert set(LOSSES) == set(get_args(PolicyLoss)) == {*PEERS, "gspo_token"}


PEERS = {  # our name: TRL's loss_type and importance_sampling_level
    "grpo": ("grpo", "token"),
    "bnpo": ("bnpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
    "gspo": ("grpo", "sequence"),
    "cispo": ("cispo", "token"),
    "sapo": ("sapo", "token"),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_loss_gradient_and_metrics_equal_trl(name, masked, seed):
    case = Case(seed, masked=masked)
    config = PolicyLossConfig(
        name=name, clip_low=0.2, clip_high=0.28, clip_dual=2.0, entropy_weight=0.03
    )
    loss_type, level = PEERS[name]
    expected, gradient_N, entropy_gradient_BT, peer_metrics = trl_loss(
        case, loss_type, level=level, config=config, kl_weight=0.07
    )
    for splits in ((), (2, 3, 7)):
        loss, our_gradient_N, our_entropy_N, metrics = our_loss(
            case, config, splits=splits, kl_weight=0.07
        )
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(our_gradient_N, gradient_N, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            our_entropy_N, case.flat(entropy_gradient_BT), rtol=1e-9, atol=1e-12
        )
        for key in ("kl", "entropy"):
            assert metrics[key] == pytest.approx(peer_metrics[key], rel=1e-6)
        shared = [key for key in metrics if "clip_ratio" in key]
        assert len(shared) == {"sapo": 0, "cispo": 1}.get(name, 3)
        if name == "gspo" and masked:
            continue  # TRL's share is over all rollouts, masked ones included; ours over counted
        for key in shared:
            assert metrics[key] == pytest.approx(peer_metrics[key], rel=1e-6), key
    if name not in ("sapo", "gspo"):
        assert any(peer_metrics[key] > 0 for key in shared), "the case must reach a clip"


@pytest.mark.parametrize("name", ["grpo", "gspo", "dapo"])
def test_no_dual_clip_equals_trl_without_delta(name):
    case = Case(5)
    config = PolicyLossConfig(name=name, clip_low=3e-4, clip_high=4e-4, clip_dual=None)
    loss_type, level = PEERS[name]
    expected, gradient_N, _, peer_metrics = trl_loss(case, loss_type, level=level, config=config)
    loss, our_gradient_N, _, metrics = our_loss(case, config, splits=(4,))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(our_gradient_N, gradient_N, rtol=1e-9, atol=1e-12)
    assert metrics["clip_ratio/region_mean"] > 0.2
    for key in metrics:
        assert metrics[key] == pytest.approx(peer_metrics[key], rel=1e-6)


def naive_gspo_token(policy, old, advantage, low, high):
    """Equation (13) and (14) of arXiv 2507.18071, rollout by rollout and token by token."""
    total = 0.0
    for policy_C, old_C, a in zip(policy, old, advantage, strict=True):
        length = len(policy_C)
        ratio = math.exp(sum(p - o for p, o in zip(policy_C, old_C, strict=True)) / length)
        clipped = min(max(ratio, 1 - low), 1 + high)
        total += sum(min(ratio * a, clipped * a) for _ in range(length)) / length
    return -total / len(policy)


@pytest.mark.parametrize("seed", [0, 1])
def test_gspo_token_equals_the_paper_and_with_one_advantage_a_rollout_gspo(seed):
    case = Case(seed)
    numbers = {"clip_low": 0.05, "clip_high": 0.1, "clip_dual": None}
    token = our_loss(case, PolicyLossConfig(name="gspo_token", **numbers), splits=(3,))
    sequence = our_loss(case, PolicyLossConfig(name="gspo", **numbers))
    rows = [
        (case.policy_BT[b, :length].tolist(), case.old_BT[b, :length].tolist())
        for b, length in enumerate(LENGTHS)
    ]
    expected = naive_gspo_token(*zip(*rows, strict=True), case.advantage_B.tolist(), 0.05, 0.1)
    assert float(token[0]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(token[0], sequence[0])
    torch.testing.assert_close(token[1], sequence[1], rtol=1e-9, atol=1e-12)
    assert token[1].abs().max() > 0


@pytest.mark.parametrize("buffer", [20, 50])
def test_soft_overlong_equals_trl(buffer):
    peer = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=buffer)
    completion_ids = [[0] * n for n in (1, 49, 50, 51, 79, 80, 81, 90, 99, 100)]
    rewards = overlong_reward(
        [], [], completion_ids=completion_ids, max_tokens=100, buffer_tokens=buffer
    )
    assert rewards == pytest.approx(peer(completion_ids=completion_ids), abs=1e-7)
    assert rewards[-1] == -1.0
