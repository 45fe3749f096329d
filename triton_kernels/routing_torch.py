"""Top-k routing in plain torch: the CPU path, and CUDA without Triton.

Shape letters: T tokens, E experts.
"""

import torch
from torch import Tensor

from triton_kernels.types import RouteResult

_LOWEST = torch.finfo(torch.float32).min


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


def route(logits: Tensor, allowed: Tensor | None, top_k: int) -> RouteResult:
    """See `routing.Implementation`."""
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


def route_backward(
    logits: Tensor,
    allowed: Tensor | None,
    weights: Tensor,
    grad_weights: Tensor,
    grad_prob: Tensor,
) -> Tensor:
    """See `routing.Implementation`: the softmax Jacobian, twice."""
    prob_TE = _softmax_over(logits.float(), allowed)
    grad_TE = weights * (grad_weights - (grad_weights * weights).sum(1, keepdim=True))
    return grad_TE.add_(prob_TE * (grad_prob - (prob_TE * grad_prob).sum(1, keepdim=True)))
