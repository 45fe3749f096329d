"""Top-k routing of tokens to experts: softmax over the chosen, load, and the balance loss.

Used in the discriminator between the router's logits and `lora_experts`. Source: the load-balance
loss of Switch Transformers (arXiv 2101.03961, eq. 4), extended to tokens that may use only some of the
experts (`allowed`), so that perception and reasoning tokens are routed within their own group.

Shape letters: T tokens, E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triton_kernels._common import FLOAT_DTYPES, check_tensor, choose_backend, describe
from triton_kernels.types import RouteResult, Routing

_LOWEST = torch.finfo(torch.float32).min


class Implementation(NamedTuple):
    """The routing and its gradient, in plain torch or as kernels.

    Fields:
        route: (logits, allowed, top_k) -> weights and statistics.
        route_backward: (logits, allowed, weights, grad_weights, grad_prob) -> float32 [T, E], the
            gradient of the logits; `grad_prob` [E] belongs to the sums of shares.
    """

    route: Callable[[Tensor, Tensor | None, int], RouteResult]
    route_backward: Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]


def _softmax_over(logits_TE: Tensor, mask_TE: Tensor | None) -> Tensor:
    """Compute the softmax over the experts in the mask; zeros elsewhere and in rows without any."""
    if mask_TE is None:
        return torch.softmax(logits_TE, dim=1)
    empty_T1 = ~mask_TE.any(1, keepdim=True)
    masked_TE = logits_TE.masked_fill(~(mask_TE | empty_T1), -torch.inf)
    return torch.softmax(masked_TE, dim=1).masked_fill_(empty_T1, 0)


def _mean_shares(mask_TE: Tensor) -> Tensor:
    """Sum 1 / (experts in the token's mask) over tokens, for each expert in it: [E]."""
    count_T1 = mask_TE.sum(1, keepdim=True).clamp(min=1)
    return (mask_TE / count_T1).sum(0)


def _route(logits: Tensor, allowed: Tensor | None, top_k: int) -> RouteResult:
    """See `Implementation`."""
    logits_TE = logits.float()
    # An allowed -inf ranks above forbidden and already chosen experts.
    rank_TE = logits_TE.clamp(min=_LOWEST)
    chosen_TE = torch.zeros_like(rank_TE, dtype=torch.bool)
    if allowed is not None:
        rank_TE = rank_TE.masked_fill(~allowed, -torch.inf)
    for _ in range(top_k):
        best_T1 = rank_TE.argmax(1, keepdim=True)  # the first of equals
        chosen_TE.scatter_(1, best_T1, True)
        rank_TE.scatter_(1, best_T1, -torch.inf)
    if allowed is not None:
        chosen_TE &= allowed
    weights_TE, prob_TE = _softmax_over(logits_TE, chosen_TE), _softmax_over(logits_TE, allowed)
    # NaN and +inf are chosen first and make the row's softmax NaN, where it is not masked to 0.
    is_bad_T1 = weights_TE.isnan().any(1, keepdim=True)
    weights_TE = weights_TE.masked_fill(is_bad_T1, torch.nan)
    if allowed is None:
        even_E = torch.full_like(weights_TE[0:1].sum(0), logits.shape[0] / logits.shape[1])
    else:
        even_E = _mean_shares(allowed)
    return RouteResult(weights_TE, torch.stack([_mean_shares(chosen_TE), prob_TE.sum(0), even_E]))


def _route_backward(
    logits: Tensor,
    allowed: Tensor | None,
    weights: Tensor,
    grad_weights: Tensor,
    grad_prob: Tensor,
) -> Tensor:
    """See `Implementation`: the softmax Jacobian, twice."""
    prob_TE = _softmax_over(logits.float(), allowed)
    grad_TE = weights * (grad_weights - (grad_weights * weights).sum(1, keepdim=True))
    return grad_TE.add_(prob_TE * (grad_prob - (prob_TE * grad_prob).sum(1, keepdim=True)))


_TORCH = Implementation(_route, _route_backward)


def _implementation(logits: Tensor) -> Implementation:
    if choose_backend(logits) == "triton":
        from triton_kernels import routing_triton  # the only place that needs Triton

        return Implementation(routing_triton.route, routing_triton.route_backward)
    return _TORCH


def _combine(stats_3E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute load [E], balance_loss [] and d balance_loss / d prob [E]."""
    sent_E, prob_E, even_E = stats_3E
    num_tokens = even_E.sum().clamp(min=1)  # 1 instead of 0: empty sums stay 0
    grad_prob_E = sent_E / (even_E + (even_E == 0)) / num_tokens
    return sent_E / num_tokens, (grad_prob_E * prob_E).sum(), grad_prob_E


class _RouteTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, allowed, top_k: int):
        weights_TE, stats_3E = _implementation(logits).route(logits, allowed, top_k)
        load_E, balance_loss, grad_prob_E = _combine(stats_3E)
        ctx.save_for_backward(logits, allowed, weights_TE, grad_prob_E)
        ctx.mark_non_differentiable(load_E)
        return weights_TE, load_E, balance_loss

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_weights_TE, _, grad_balance = grad_outputs
        logits, allowed, weights_TE, grad_prob_E = ctx.saved_tensors
        grad_TE = _implementation(logits).route_backward(
            logits, allowed, weights_TE, grad_weights_TE, grad_prob_E * grad_balance
        )
        return grad_TE.to(logits.dtype), None, None


def route_topk(logits: Tensor, top_k: int, *, allowed: Tensor | None = None) -> Routing:
    """Send each token to its `top_k` best experts.

    The weights are the softmax over the k largest allowed logits (equal to the renormalised top-k
    of the full softmax); of equal logits the lower index comes first. A token with fewer than k
    allowed experts uses all of them; with none it gets zeros and does not count in load and loss.

    The balance loss is `1/T' * sum_e c_e * P_e / a_e` over the T' tokens that may use an expert:
    c_e is the tokens sent to e (1/k each), P_e the sum of e's softmax share among the allowed
    experts, a_e what an even router would send to e (1/n for each token that allows n experts, e
    among them). Without `allowed` this is Switch's E * sum_e f_e * mean(p_e); with disjoint groups
    it is the mean of the groups' Switch losses weighted by their tokens. An even load in each group
    gives 1. Only P_e has a gradient. Deterministic: no atomics.

    Args:
        logits: [T, E] float32, bfloat16 or float16 (use float32: 16-bit logits flip choices);
            computed in float32. -inf is a legal logit.
        top_k: experts per token, 1..E.
        allowed: bool [T, E], True where the token may use the expert; None: everywhere.

    Returns:
        Routing(weights [T, E], load [E], balance_loss []), all float32. A NaN or +inf among a
        token's allowed logits makes all its weights NaN.

    Raises:
        ValueError: a wrong shape, dtype or device, or `top_k` outside 1..E.
    """
    check_tensor("logits", logits, {"T": None, "E": None}, FLOAT_DTYPES)
    num_tokens, num_experts = logits.shape
    if not (isinstance(top_k, int) and 1 <= top_k <= num_experts):
        raise ValueError(
            f"top_k must be an integer in 1..{num_experts}, the number of experts E of logits "
            f"{describe(logits)}, got {top_k!r}"
        )
    if allowed is not None:
        dims: dict[str, int | None] = {"T": num_tokens, "E": num_experts}
        check_tensor("allowed", allowed, dims, (torch.bool,), like=("logits", logits))
    return Routing(*_RouteTopK.apply(logits, allowed, top_k))
