"""`route_topk` against float64, hand-computed numbers, ties, groups, edges."""

import math

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.oracle import U32, assert_close
from triton_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def two_groups(num_tokens: int, num_experts: int) -> Tensor:
    """The first half of the experts for two tokens of three, the second half for the third."""
    is_first_token = torch.arange(num_tokens) % 3 != 2
    is_first_expert = torch.arange(num_experts) < (num_experts + 1) // 2
    return is_first_token[:, None] == is_first_expert[None, :]


def check_against_reference(
    logits: Tensor, top_k: int, allowed: Tensor | None, generator: torch.Generator
) -> None:
    """Weights, load, balance loss and the gradient through weights and loss together.

    Bounds: a softmax share errs by at most (E + 8) * 2u of itself (u = 2^-24; exp takes 2 ulp and
    its argument at most |z| u); the statistics sum T of them; the Jacobian multiplies by shares
    (<= 1) and sums E terms. Logits are below 12 in absolute value.
    """
    num_tokens, num_experts = logits.shape
    logits = logits.detach().requires_grad_()
    exact_logits = logits.detach().double().cpu().requires_grad_()
    exact = reference.route_topk(
        exact_logits, top_k, allowed=None if allowed is None else allowed.cpu()
    )
    ours = tk.route_topk(logits, top_k, allowed=allowed)
    share = 2 * (num_experts + 8 + 12) * U32
    sums = 8 * max(num_tokens, 1) ** 0.5 * U32 + 16 * U32
    assert ours.weights.dtype == ours.load.dtype == ours.balance_loss.dtype == torch.float32
    assert not ours.load.requires_grad
    assert_close("weights", ours.weights, exact.weights, share)
    assert_close("load", ours.load, exact.load, sums)
    loss_bound = (2 * share + 3 * sums) * num_experts
    assert_close("balance_loss", ours.balance_loss, exact.balance_loss, loss_bound)

    factor = torch.randn(logits.shape, generator=generator).double()
    (exact.weights * factor).sum().add(exact.balance_loss * 7.0).backward()
    factor = factor.float().to(logits.device)
    (ours.weights * factor).sum().add(ours.balance_loss * 7.0).backward()
    assert exact_logits.grad is not None and logits.grad is not None
    assert logits.grad.dtype == logits.dtype
    largest = factor.abs().max().double() if factor.numel() else torch.tensor(0.0)
    balance = 7.0 * num_experts / max(num_tokens, 1)
    bound = 6 * (share + sums) * (largest + balance).cpu()
    bound = bound + torch.finfo(logits.dtype).eps * exact_logits.grad.abs()
    bound = bound + torch.finfo(logits.dtype).smallest_normal
    assert_close("gradient", logits.grad, exact_logits.grad, bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_groups", [False, True], ids=["all", "groups"])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"),
    [(1, 1, 1), (5, 2, 1), (70, 3, 2), (130, 6, 2), (200, 8, 2), (33, 8, 8), (40, 20, 3)],
)
def test_values_and_gradients(
    num_tokens, num_experts, top_k, has_groups, dtype, device, generator
) -> None:
    logits = torch.randn(num_tokens, num_experts, generator=generator) * 2
    allowed = two_groups(num_tokens, num_experts).to(device) if has_groups else None
    check_against_reference(logits.to(device, dtype), top_k, allowed, generator)


def test_hand_computed(device) -> None:
    """log-probabilities as logits, so that every share can be read off."""
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], device=device)
    routing = tk.route_topk(shares.log(), 2)
    expected = torch.tensor([[0.625, 0.375, 0.0], [1 / 9, 0.0, 8 / 9]])
    assert_close("weights", routing.weights, expected, 1e-6)
    assert_close("load", routing.load, torch.tensor([0.5, 0.25, 0.25]), 1e-6)
    # Switch: E * sum_e f_e * mean share = 3 * (0.5 * 0.3 + 0.25 * 0.2 + 0.25 * 0.5)
    assert_close("balance_loss", routing.balance_loss, torch.tensor(0.975), 1e-6)


def test_equal_logits_go_to_the_lower_index(device) -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0]], device=device)
    weights = tk.route_topk(logits, 2).weights
    assert weights.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]]


def test_an_even_load_in_each_group_gives_one(device) -> None:
    """Groups of different sizes (4 and 2 experts) and token counts (8 and 4)."""
    allowed = torch.zeros(12, 6, dtype=torch.bool)
    allowed[:8, :4], allowed[8:, 4:] = True, True
    logits = torch.zeros(12, 6)
    for token in range(8):
        logits[token, token % 4] = 1e-6  # even, but not by ties alone
    for token in range(8, 12):
        logits[token, 4 + token % 2] = 1e-6
    routing = tk.route_topk(logits.to(device), 1, allowed=allowed.to(device))
    assert_close("balance_loss", routing.balance_loss, torch.tensor(1.0), 1e-5)
    expected = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 2.0]) / 12
    assert_close("load", routing.load, expected, 1e-6)


def test_groups_are_the_token_weighted_mean_of_their_own_losses(device, generator) -> None:
    logits = torch.randn(30, 6, generator=generator).to(device)
    allowed = torch.zeros(30, 6, dtype=torch.bool, device=device)
    allowed[:20, :4], allowed[20:, 4:] = True, True
    both = tk.route_topk(logits, 2, allowed=allowed)
    first, second = tk.route_topk(logits[:20, :4], 2), tk.route_topk(logits[20:, 4:], 2)
    mean = (first.balance_loss * 20 + second.balance_loss * 10) / 30
    assert_close("balance_loss", both.balance_loss, mean, 1e-6)
    assert_close("weights", both.weights[:20, :4], first.weights, 1e-6)
    assert not both.weights[:20, 4:].any() and not both.weights[20:, :4].any()


def test_few_or_no_allowed_experts(device, generator) -> None:
    """Fewer than k: all of them. None: zeros, and the token counts nowhere."""
    logits = torch.randn(4, 5, generator=generator).to(device)
    allowed = torch.ones(4, 5, dtype=torch.bool, device=device)
    allowed[1], allowed[3] = False, False
    allowed[3, 2] = True
    check_against_reference(logits, 3, allowed, generator)
    routing = tk.route_topk(logits, 3, allowed=allowed)
    assert routing.weights[1].tolist() == [0.0] * 5
    assert routing.weights[3].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert_close("load", routing.load.sum(), torch.tensor(1.0), 1e-6)
    nobody = tk.route_topk(logits, 3, allowed=torch.zeros_like(allowed))
    assert not nobody.weights.any() and not nobody.load.any() and nobody.balance_loss == 0


def test_minus_infinity_is_a_legal_logit(device, generator) -> None:
    """An allowed -inf ranks above a forbidden expert, counts as chosen, and weighs nothing."""
    low = -math.inf
    logits = torch.tensor([[low, 1.0, 5.0, low], [0.0, low, 5.0, 6.0]], device=device)
    allowed = torch.tensor([[True, True, False, False], [False, True, True, False]], device=device)
    routing = tk.route_topk(logits, 2, allowed=allowed)
    assert routing.weights.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    assert routing.load.tolist() == [0.25, 0.5, 0.25, 0.0]
    check_against_reference(logits, 2, allowed, generator)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_logit_spoils_its_row_and_the_loss(bad, device, generator) -> None:
    logits = torch.randn(3, 4, generator=generator)
    logits[1, 3] = bad
    logits = logits.to(device).requires_grad_()
    routing = tk.route_topk(logits, 2)
    assert routing.weights[1].isnan().all() and routing.weights[[0, 2]].isfinite().all()
    assert routing.balance_loss.isnan()
    routing.weights.sum().backward()
    assert logits.grad is not None and logits.grad[1].isnan().all()
    assert logits.grad[[0, 2]].isfinite().all()
    # Where the expert is forbidden its logit is not read.
    allowed = torch.ones(3, 4, dtype=torch.bool, device=device)
    allowed[:, 3] = False
    assert tk.route_topk(logits.detach(), 2, allowed=allowed).weights.isfinite().all()
    nothing = torch.full((1, 4), -math.inf, device=device)
    assert tk.route_topk(nothing, 2).weights.isnan().all()


def test_strides(device, generator) -> None:
    logits = torch.randn(6, 50, generator=generator).to(device).T
    allowed = two_groups(50, 6).T.contiguous().T.to(device)
    assert not logits.is_contiguous() and not allowed.is_contiguous()
    check_against_reference(logits, 2, allowed, generator)
    leaf = logits.detach().requires_grad_()
    tk.route_topk(leaf, 2).weights.sum().backward()  # the gradient arrives with strides of 0
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-6  # the weights sum to 1


def test_no_tokens(device) -> None:
    logits = torch.empty(0, 4, device=device, requires_grad=True)
    routing = tk.route_topk(logits, 2)
    assert routing.weights.shape == (0, 4) and routing.load.tolist() == [0.0] * 4
    assert routing.balance_loss == 0
    (routing.weights.sum() + routing.balance_loss).backward()
    assert logits.grad is not None and logits.grad.shape == (0, 4)


def test_two_runs_agree_to_the_bit(device, generator) -> None:
    logits = torch.randn(300, 8, generator=generator).to(device)
    first, second = tk.route_topk(logits, 2), tk.route_topk(logits, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
