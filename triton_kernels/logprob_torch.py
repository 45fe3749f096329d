"""Token log-probs in plain torch: the CPU path, and CUDA without Triton.

Walks over vocabulary chunks with a running maximum, as flash attention walks over keys (arXiv
2205.14135; the queries are `hidden`, keys and values are both the head's rows). Extra memory is one
[T, C] chunk of logits (two with entropy) and a few [T, D] tensors.

Shape letters: T tokens, D width, V vocabulary, C vocabulary rows of one chunk.
"""

import torch
from torch import Tensor

from triton_kernels._gemm import gemm_dtype, mm_float32
from triton_kernels.logprob import FP16_SCALE, Sweep

# Start of the running maximum: finite, so that a chunk of -inf logits leaves exp(-inf) = 0, no NaN.
LOWEST = -1e38


def _chunk_rows(num_tokens: int, device: torch.device) -> int:
    """Vocabulary rows per chunk: a chunk of logits should stay in the CPU's cache (8 MiB)."""
    elements = 2**21 if device.type == "cpu" else 2**26
    return max(512, elements // max(num_tokens, 1) // 64 * 64)


class _Chunks:
    """Room for float32 [T, C] chunks, allocated once: fresh pages cost as much as arithmetic."""

    def __init__(self, hidden: Tensor, num_columns: int) -> None:
        self.num_tokens = hidden.shape[0]
        self.flat = torch.empty(
            self.num_tokens * num_columns, dtype=torch.float32, device=hidden.device
        )

    def view(self, num_columns: int) -> Tensor:
        return self.flat[: self.num_tokens * num_columns].view(self.num_tokens, num_columns)


def _logits(hidden_TD: Tensor, rows_CD: Tensor, inv_temperature: float, chunks: _Chunks) -> Tensor:
    logits_TC = mm_float32(hidden_TD, rows_CD.T, out=chunks.view(rows_CD.shape[0]))
    return logits_TC if inv_temperature == 1.0 else logits_TC.mul_(inv_temperature)


def _add_product(total_TD: Tensor, share_TC: Tensor, rows_CD: Tensor) -> None:
    """total += share @ rows, without losing small shares to float16."""
    if rows_CD.dtype == torch.float32:
        total_TD.addmm_(share_TC, rows_CD)
        return
    scale = FP16_SCALE if rows_CD.dtype == torch.float16 else 1.0
    product_TD = mm_float32((share_TC * scale).to(rows_CD.dtype), rows_CD)
    total_TD.add_(product_TD, alpha=1.0 / scale)


def _sweep_once(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    ids: Tensor,
    inv_temperature: float,
    *,
    entropy: bool,
    direction: torch.dtype | None,
) -> Sweep:
    """A vocabulary that fits one chunk: few, fused operations (this is the small models' path)."""
    logit_TV = mm_float32(hidden_TD, weight_VD.T)
    if inv_temperature != 1.0:
        logit_TV.mul_(inv_temperature)
    logprob_TV = torch.log_softmax(logit_TV, dim=1)
    target_T1 = logprob_TV.gather(1, ids[:, None])
    lse_T, entropy_T, direction_TD = target_T1[:, 0], None, None
    if entropy:
        best_T1 = logprob_TV.argmax(1, keepdim=True)  # a column without -inf - -inf
        lse_T = (logit_TV.gather(1, best_T1) - logprob_TV.gather(1, best_T1))[:, 0]
        share_TV = torch.exp(logprob_TV, out=logit_TV)
        entropy_T = -logprob_TV.clamp_(min=-128.0).mul_(share_TV).sum(1)
    else:
        share_TV = logprob_TV.exp_() if direction else logprob_TV
    if direction:
        # sum_v (1[v = y] - p_v) W[v], with 1 - p_y summed from the others: no cancellation.
        share_TV.scatter_(1, ids[:, None], 0.0)
        share_TV.scatter_(1, ids[:, None], -share_TV.sum(1, keepdim=True))
        nothing = share_TV.new_empty(())
        direction_TD = torch.addmm(nothing, share_TV, weight_VD, beta=0, alpha=-inv_temperature)
        direction_TD = direction_TD.to(direction)
    return Sweep(target_T1[:, 0], lse_T, entropy_T, direction_TD)


def sweep(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    inv_temperature: float,
    *,
    entropy: bool,
    direction: torch.dtype | None,
) -> Sweep:
    """See `logprob.Implementation`."""
    num_tokens, vocabulary = hidden.shape[0], weight.shape[0]
    dtype = gemm_dtype(weight)
    hidden_TD = hidden.to(dtype)
    step = min(_chunk_rows(num_tokens, hidden.device), vocabulary)
    if step == vocabulary and dtype == torch.float32:
        rows_VD = weight.to(dtype)
        return _sweep_once(
            hidden_TD, rows_VD, ids, inv_temperature, entropy=entropy, direction=direction
        )
    zeros_T = torch.zeros(num_tokens, dtype=torch.float32, device=hidden.device)
    max_T, target_T = zeros_T + LOWEST, zeros_T
    own_T, rest_T, weighted_T = zeros_T, zeros_T, zeros_T  # sums of exp(logit - max_T)
    mean_TD = (
        torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if direction else None
    )
    logit_chunks = _Chunks(hidden, step)
    share_chunks = _Chunks(hidden, step) if entropy else None

    for start in range(0, vocabulary, step):
        rows_CD = weight[start : start + step].to(dtype)
        size = rows_CD.shape[0]
        logit_TC = _logits(hidden_TD, rows_CD, inv_temperature, logit_chunks)
        local_T1 = (ids - start)[:, None]
        is_here_T = ((local_T1 >= 0) & (local_T1 < size))[:, 0]
        local_T1 = local_T1.clamp(0, size - 1)
        target_T = torch.where(is_here_T, logit_TC.gather(1, local_T1)[:, 0], target_T)

        new_max_T = torch.maximum(max_T, logit_TC.amax(1))
        decay_T = torch.exp(max_T - new_max_T)
        logit_TC.sub_(new_max_T[:, None])
        if share_chunks is None:
            share_TC = logit_TC.exp_()
        else:
            share_TC = torch.exp(logit_TC, out=share_chunks.view(size))
            # exp(-128) is 0 in float32; the clamp keeps 0 * -inf = NaN out of the sum.
            part_T = logit_TC.clamp_(min=-128.0).mul_(share_TC).sum(1)
            weighted_T = decay_T * (weighted_T + (max_T - new_max_T) * (own_T + rest_T)) + part_T
        # The target's own share is kept apart: 1 - p would cancel for a confident token.
        share_T1 = share_TC.gather(1, local_T1)
        share_TC.scatter_(1, local_T1, share_T1.masked_fill(is_here_T[:, None], 0.0))
        own_T = own_T * decay_T + torch.where(is_here_T, share_T1[:, 0], 0.0)
        rest_T = rest_T * decay_T + share_TC.sum(1)
        if mean_TD is not None:
            mean_TD.mul_(decay_T[:, None])
            _add_product(mean_TD, share_TC, rows_CD)
        max_T = new_max_T

    sum_T = own_T + rest_T
    log_sum_T = sum_T.log()
    direction_TD = None
    if mean_TD is not None:  # (rest * W[y] - sum over the others) / sum
        direction_TD = weight[ids].float().mul_(rest_T[:, None]).sub_(mean_TD)
        direction_TD = direction_TD.mul_((inv_temperature / sum_T)[:, None]).to(direction)
    return Sweep(
        logprob=(target_T - max_T) - log_sum_T,
        lse=max_T + log_sum_T,
        entropy=log_sum_T - weighted_T / sum_T if entropy else None,
        direction=direction_TD,
    )


def entropy_direction(
    hidden: Tensor, weight: Tensor, lse: Tensor, entropy: Tensor, inv_temperature: float
) -> Tensor:
    """See `logprob.Implementation`: -1/temperature * sum_v p_v (log p_v + H) W[v], second pass."""
    vocabulary = weight.shape[0]
    dtype = gemm_dtype(weight)
    hidden_TD = hidden.to(dtype)
    step = min(_chunk_rows(hidden.shape[0], hidden.device), vocabulary)
    logit_chunks, share_chunks = _Chunks(hidden, step), _Chunks(hidden, step)
    total_TD = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, vocabulary, step):
        rows_CD = weight[start : start + step].to(dtype)
        logprob_TC = _logits(hidden_TD, rows_CD, inv_temperature, logit_chunks).sub_(lse[:, None])
        share_TC = torch.exp(logprob_TC, out=share_chunks.view(rows_CD.shape[0]))
        logprob_TC.clamp_(min=-128.0).add_(entropy[:, None]).mul_(share_TC)
        _add_product(total_TD, logprob_TC, rows_CD)
    return total_TD.mul_(-inv_temperature)
