"""Losses against naive loops and finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch

from prism_lite.config import PolicyLossConfig
from prism_lite.discriminator.losses import bradley_terry_loss, cap_scores, rank_spread_penalty
from prism_lite.policy.losses import BatchSize, LossInputs, dpo_loss, policy_loss, token_kl

CONFIG = PolicyLossConfig(clip_low=0.2, clip_high=0.28, clip_dual=3.0)


def token_loss(policy, old, advantage, config, *, num_tokens):
    """Each token a rollout of its own: one advantage a token."""
    inputs = LossInputs(
        policy_logprob_N=policy,
        old_logprob_N=old,
        advantage_R=advantage,
        rollout_N=torch.arange(len(advantage)),
        is_counted_R=torch.ones(len(advantage), dtype=torch.bool),
        size=BatchSize(num_tokens, num_tokens, len(advantage), max_completion_tokens=1),
    )
    return policy_loss(inputs, config)


def naive_policy_loss(policy, old, advantage, config, num_tokens):
    """Token by token, from the formula; returns loss and the counts of clipped tokens."""
    total, low, high = 0.0, 0, 0
    for new, before, a in zip(policy, old, advantage, strict=True):
        ratio = math.exp(new - before)
        clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
        gain = min(ratio * a, clipped * a)
        if a < 0:
            gain = max(gain, config.clip_dual * a)
        low += ratio < 1 - config.clip_low and a < 0
        high += ratio > 1 + config.clip_high and a > 0
        total -= gain
    return total / num_tokens, low / num_tokens, high / num_tokens


def random_case(seed: int):
    generator = torch.Generator().manual_seed(seed)
    policy = -3 * torch.rand(60, generator=generator, dtype=torch.float64)
    old = policy + 1.2 * torch.randn(60, generator=generator, dtype=torch.float64)
    advantage = torch.randn(60, generator=generator, dtype=torch.float64)
    return policy, old, advantage


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_loss_equals_the_naive_loop(seed):
    policy, old, advantage = random_case(seed)
    loss, metrics = token_loss(policy, old, advantage, CONFIG, num_tokens=75)
    expected, low, high = naive_policy_loss(
        policy.tolist(), old.tolist(), advantage.tolist(), CONFIG, 75
    )
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert low > 0 and high > 0, "the case must reach both clips"
    assert metrics["clip_ratio/low_mean"] == pytest.approx(low)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(high)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(low + high)


def test_policy_loss_gradient_equals_finite_differences():
    policy, old, advantage = random_case(3)
    policy.requires_grad_()

    def loss_of(value):
        return token_loss(value, old, advantage, CONFIG, num_tokens=60)[0]

    assert torch.autograd.gradcheck(loss_of, policy, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected_loss", "has_gradient"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 1.0, -1.28, False),  # above 1 + high, A > 0: clipped
        (0.5, 1.0, -0.5, True),  # moving away from a good token is never clipped
        (0.5, -1.0, 0.8, False),  # below 1 - low, A < 0: clipped
        (1.5, -1.0, 1.5, True),  # a bad token grown likelier: pushed back
        (2.9, -1.0, 2.9, True),
        (5.0, -1.0, 3.0, False),  # dual clip: the loss is bounded by 3 |A|
        (5.0, -2.0, 6.0, False),
    ],
)
def test_each_region_of_the_clip(ratio, advantage, expected_loss, has_gradient):
    policy_N = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    advantage_N = torch.tensor([advantage], dtype=torch.float64)
    loss, _ = token_loss(policy_N, torch.zeros(1), advantage_N, CONFIG, num_tokens=1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-6)
    assert (float(policy_N.grad.abs()) > 0) == has_gradient


def test_with_own_logprobs_the_gradient_is_plain_policy_gradient():
    """Ratio 1 without old log-probs: d loss / d logprob = -A / num_tokens, nothing clipped."""
    policy, _, advantage = random_case(4)
    policy.requires_grad_()
    loss, metrics = token_loss(policy, policy.detach(), advantage, CONFIG, num_tokens=100)
    loss.backward()
    torch.testing.assert_close(policy.grad, -advantage / 100)
    assert float(loss.detach()) == pytest.approx(float(-advantage.sum() / 100))
    assert set(metrics.values()) == {0.0}


def test_parts_of_a_batch_add_up_to_the_batch():
    policy, old, advantage = random_case(5)
    batch_loss, metrics = token_loss(policy, old, advantage, CONFIG, num_tokens=60)
    parts = [
        token_loss(policy[a:b], old[a:b], advantage[a:b], CONFIG, num_tokens=60)
        for a, b in ((0, 13), (13, 50), (50, 60))
    ]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(batch_loss), rel=1e-12)
    for name, value in metrics.items():
        assert sum(metrics_of_part[name] for _, metrics_of_part in parts) == pytest.approx(value)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_token_kl_equals_the_formula(kind):
    policy, reference, _ = random_case(6)
    actual = token_kl(policy, reference, kind).tolist()
    for value, p, q in zip(actual, policy.tolist(), reference.tolist(), strict=True):
        d = p - q
        expected = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[kind]
        assert value == pytest.approx(expected, rel=1e-12)
    assert not token_kl(policy, policy, kind).any()


def test_k1_and_k3_are_unbiased_and_k3_never_negative():
    """Their mean under the policy is the exact KL divergence of two small distributions."""
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    for kind in ("k1", "k3"):
        estimate = token_kl(policy, reference, kind)
        assert float((policy.exp() * estimate).sum()) == pytest.approx(float(exact), rel=1e-12)
    assert bool((token_kl(policy, reference, "k3") >= 0).all())


def test_bradley_terry_equals_the_naive_loop():
    teacher = torch.tensor([0.0, 2.0, -1.0, 30.0], dtype=torch.float64)
    student = torch.tensor([0.0, -1.0, 3.0, -30.0], dtype=torch.float64)
    expected = sum(
        -math.log(1 / (1 + math.exp(-(t - s))))
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    )
    actual = bradley_terry_loss(teacher, student)
    assert float(actual) == pytest.approx(expected / 4, rel=1e-9)
    assert float(bradley_terry_loss(teacher[:1], student[:1])) == pytest.approx(math.log(2))


def test_bradley_terry_pushes_teacher_up_and_student_down_and_stays_finite():
    teacher = torch.tensor([-500.0, 0.0], requires_grad=True)
    student = torch.tensor([500.0, 0.0], requires_grad=True)
    loss = bradley_terry_loss(teacher, student)
    loss.backward()
    assert float(loss) == pytest.approx((1000 + math.log(2)) / 2)
    torch.testing.assert_close(teacher.grad, torch.tensor([-0.5, -0.25]))
    torch.testing.assert_close(student.grad, torch.tensor([0.5, 0.25]))


def test_cap_scores_bounds_keeps_order_and_is_the_identity_near_zero():
    raw = torch.linspace(-80, 80, 101)
    capped = cap_scores(raw, 10.0)
    assert float(capped.abs().max()) <= 10.0
    middle = capped[(raw.abs() < 40)]
    assert bool((middle.diff() > 0).all())
    assert float(cap_scores(torch.tensor(0.01), 10.0)) == pytest.approx(0.01, rel=1e-5)
    assert float(cap_scores(torch.tensor(10.0), 10.0)) == pytest.approx(10 * math.tanh(1))


@pytest.mark.parametrize("raw", [-60.0, -30.0, 30.0, 60.0])
def test_cap_scores_has_a_gradient_at_saturation(raw):
    """METHOD.md section 2: a hard clamp at +-10 has none. 10 tanh(6) is within 2e-4 of the cap."""
    score = torch.tensor(raw, requires_grad=True)
    cap_scores(score, 10.0).backward()
    expected = 1 / math.cosh(raw / 10) ** 2
    # float32 tanh near 1 has an absolute error of one unit in the last place, 6e-8
    assert float(score.grad) == pytest.approx(expected, rel=1e-2, abs=2e-7)
    assert float(score.grad) > 0


def test_rank_spread_penalty_by_hand_and_its_minimum():
    """Two scores: quantiles of 1/4 and 3/4 are -0.67449 and 0.67449."""
    score = torch.tensor([5.0, 3.0], dtype=torch.float64)
    assert float(rank_spread_penalty(score)) == pytest.approx((1 - 0.6744897501960817) ** 2)
    quantiles = torch.special.ndtri((torch.arange(6, dtype=torch.float64) + 0.5) / 6)
    assert float(rank_spread_penalty(quantiles.flip(0) + 40)) == pytest.approx(0, abs=1e-20)
    collapsed = torch.tensor([1.0, 1.1, 1.2], requires_grad=True)
    rank_spread_penalty(collapsed).backward()
    assert collapsed.grad is not None
    assert collapsed.grad[0] > 0 > collapsed.grad[2], "descent must push the scores apart"


def test_dpo_loss_equals_the_formula():
    policy = torch.tensor([[-3.0, -5.0], [-9.0, -2.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-4.0, -4.0], [-8.0, -3.0]], dtype=torch.float64)
    loss_K, reward_K2 = dpo_loss(policy, reference, 0.5)
    margins = [0.5 * ((-3 + 4) - (-5 + 4)), 0.5 * ((-9 + 8) - (-2 + 3))]
    expected = [-math.log(1 / (1 + math.exp(-m))) for m in margins]
    assert loss_K.tolist() == pytest.approx(expected)
    assert (reward_K2[:, 0] - reward_K2[:, 1]).tolist() == pytest.approx(margins)
    loss_K.sum().backward()
    slope = [-0.5 / (1 + math.exp(m)) for m in margins]
    torch.testing.assert_close(policy.grad[:, 0], torch.tensor(slope, dtype=torch.float64))
    torch.testing.assert_close(policy.grad[:, 1], -policy.grad[:, 0])
