"""Drawing tokens from logits: truncation, and one draw per row by a given uniform number.

Shape letters: R rows, V vocabulary, B blocks of the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prism_lite.config import SamplingConfig

BLOCK = 512  # tokens of the vocabulary; the draw selects a block, then a token in it
LOWEST = -200.0  # log-weight below which a float32 weight is exactly zero


class Drawn(NamedTuple):
    """One token per row.

    Fields:
        token_R: int64.
        logprob_R: float32, natural log, of the drawn token under the distribution it was drawn from.
        entropy_R: float32, nats, of that distribution.
    """

    token_R: Tensor
    logprob_R: Tensor
    entropy_R: Tensor


def draw_tokens(logits_RV: Tensor, uniform_R: Tensor, sampling: SamplingConfig) -> Drawn:
    """Draw one token per row by inverting the distribution function at a given uniform number.

    The distribution is softmax(logits / temperature), truncated by top_k, top_p and min_p in this order
    (as transformers does) and normalised again; log-prob and entropy are of that distribution. Greedy
    rows (temperature 0) take the likeliest token and report the full distribution at temperature 1.

    Args:
        logits_RV: -inf at tokens that must not be drawn.
        uniform_R: float64 in [0, 1).
    """
    logits_RV = logits_RV.float()
    if sampling.temperature > 0:
        if sampling.temperature != 1:  # a pass over the vocabulary
            logits_RV = logits_RV / sampling.temperature
        logits_RV = truncate(logits_RV, sampling)
    log_weight_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)).clamp_(min=LOWEST)
    weight_RV = log_weight_RV.exp()
    block_RB = _block_sums(weight_RV)
    cumulative_RB = block_RB.cumsum(-1)
    total_R1 = cumulative_RB[:, -1:]
    if sampling.temperature == 0:
        token_R = logits_RV.argmax(-1)
    else:
        token_R = _select(weight_RV, block_RB, cumulative_RB, uniform_R)
    log_total_R = total_R1[:, 0].log()
    mean_R = weight_RV.mul_(log_weight_RV).sum(-1) / total_R1[:, 0]  # in place: a row of V less
    logprob_R = log_weight_RV.gather(-1, token_R[:, None])[:, 0] - log_total_R
    return Drawn(token_R, logprob_R.float(), (log_total_R - mean_R).float())


def truncate(logits_RV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Set logits to -inf outside the top_k, the top_p nucleus and min_p times the likeliest."""
    no_ids: Any = None  # the warpers take the tokens so far and do not look at them
    warpers: list[Any] = []
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    for warper in warpers:
        logits_RV = warper(no_ids, logits_RV)
    return logits_RV


def _block_sums(weight_RV: Tensor) -> Tensor:
    """Sum blocks of neighbouring tokens, float64 [R, B], so that no float64 [R, V] is needed."""
    num_in_full_blocks = weight_RV.shape[1] // BLOCK * BLOCK
    full, rest = weight_RV[:, :num_in_full_blocks], weight_RV[:, num_in_full_blocks:]
    if not num_in_full_blocks:
        return rest.sum(-1, keepdim=True).double()
    sums = full.unflatten(1, (-1, BLOCK)).sum(-1)
    if rest.shape[1]:
        sums = torch.cat([sums, rest.sum(-1, keepdim=True)], 1)
    return sums.double()


def _select(
    weight_RV: Tensor, block_RB: Tensor, cumulative_RB: Tensor, uniform_R: Tensor
) -> Tensor:
    """Return the token of each row at whose weight the cumulative weight passes `uniform_R` of all."""
    threshold_R1 = uniform_R[:, None] * cumulative_RB[:, -1:]
    if block_RB.shape[1] == 1:  # the same token as below, without looking for its block
        return _invert(weight_RV.double().cumsum(-1), threshold_R1)[:, 0]
    block_R1 = _invert(cumulative_RB, threshold_R1)
    before_R1 = (cumulative_RB - block_RB).gather(-1, block_R1)
    inside_R1 = (threshold_R1 - before_R1).clamp(min=0)  # rounding must not go below
    cumulative_inside = _block(weight_RV, block_R1).double().cumsum(-1)
    return (block_R1 * BLOCK + _invert(cumulative_inside, inside_R1))[:, 0]


def _block(weight_RV: Tensor, block_R1: Tensor) -> Tensor:
    """Return the weights of one block per row, [R, BLOCK], zero beyond the vocabulary."""
    index = block_R1 * BLOCK + torch.arange(BLOCK, device=weight_RV.device)
    last = weight_RV.shape[1] - 1
    return weight_RV.gather(-1, index.clamp(max=last)) * (index <= last)


def _invert(cumulative_RB: Tensor, threshold_R1: Tensor) -> Tensor:
    """Return the first index whose cumulative weight exceeds the threshold, never one of weight zero.

    Rounding may put the threshold at the very end: then the last index with any weight.
    """
    first_R1 = torch.searchsorted(cumulative_RB, threshold_R1, right=True)
    last_R1 = (cumulative_RB < cumulative_RB[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(first_R1, last_R1)
