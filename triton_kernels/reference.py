"""Eager versions of `token_logprobs`, `route_topk` and `lora_experts`, written for readers and tests.

Same signatures as the package, any floating dtype (also float64), no argument checks, not optimised for
speed or memory. Results keep the dtype of the input.

Shape letters: T tokens, D width, V vocabulary, E experts, r rank, N output width.
"""

import torch
from torch import Tensor

from triton_kernels.types import IGNORED_ID, Routing


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute each token's log-prob (and each distribution's entropy) from the full logits."""
    ignored_T = token_ids == IGNORED_ID
    ids_T = token_ids.long().masked_fill(ignored_T, 0)
    logprob_TV = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    logprob_T = logprob_TV.gather(1, ids_T[:, None])[:, 0].masked_fill(ignored_T, 0)
    if not return_entropy:
        return logprob_T
    # A token of probability 0 adds nothing; 0 * -inf would add NaN.
    plogp_TV = logprob_TV.exp() * logprob_TV.masked_fill(logprob_TV == -torch.inf, 0)
    return logprob_T, (-plogp_TV.sum(-1)).masked_fill(ignored_T, 0)


def route_topk(logits: Tensor, top_k: int, *, allowed: Tensor | None = None) -> Routing:
    """Compute the softmax over the k largest allowed logits and the balance loss (see `tk.route_topk`)."""
    allowed_TE = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed
    # Rank forbidden experts below an allowed -inf; a stable sort breaks ties by the lower index.
    rank_TE = logits.clamp(min=torch.finfo(logits.dtype).min).masked_fill(~allowed_TE, -torch.inf)
    order_TE = rank_TE.argsort(dim=1, descending=True, stable=True)
    chosen_TE = torch.zeros_like(allowed_TE).scatter(1, order_TE[:, :top_k], True) & allowed_TE
    is_nan_T1 = (logits.isnan() & allowed_TE).any(1, keepdim=True)

    def softmax_over(mask_TE: Tensor) -> Tensor:
        # A token without experts gets zeros. Any allowed NaN makes the whole row NaN.
        empty_T1 = ~mask_TE.any(1, keepdim=True)
        masked_TE = logits.masked_fill(~(mask_TE | empty_T1), -torch.inf)
        share_TE = torch.softmax(masked_TE, dim=1).masked_fill(empty_T1, 0)
        return share_TE.masked_fill(is_nan_T1, torch.nan)

    weights_TE, prob_TE = softmax_over(chosen_TE), softmax_over(allowed_TE)
    per_token = torch.ones_like(logits)
    sent_E = (per_token * chosen_TE / chosen_TE.sum(1, keepdim=True).clamp(min=1)).sum(0)
    even_E = (per_token * allowed_TE / allowed_TE.sum(1, keepdim=True).clamp(min=1)).sum(0)
    num_tokens = even_E.sum().clamp(min=1)
    loss = (sent_E * prob_TE.sum(0) / even_E.masked_fill(even_E == 0, 1)).sum() / num_tokens
    return Routing(weights_TE, (sent_E / num_tokens).detach(), loss)


def lora_experts(x: Tensor, A: Tensor, B: Tensor, weights: Tensor, *, scale: float) -> Tensor:
    """Compute scale * sum_e weights[:, e] * (x @ A_e^T @ B_e^T), one expert at a time."""
    out_TN = torch.zeros(x.shape[0], B.shape[1], dtype=x.dtype, device=x.device)
    for expert in range(A.shape[0]):
        out_TN = out_TN + weights[:, expert, None] * (x @ A[expert].T @ B[expert].T)
    return out_TN * scale
