"""Token log-probs in plain torch: the CPU path, and CUDA without Triton.

Iterates over vocabulary chunks with a running maximum, as flash attention iterates over keys (arXiv
2205.14135; the queries are `hidden`, keys and values are both the head's rows). Extra memory is one
[T, C] chunk of logits (two with entropy) and a few [T, D] tensors.

Shape letters: T tokens, D width, V vocabulary, C vocabulary rows of one chunk.
"""

import torch
from torch import Tensor

from triton_kernels._common import gemm_dtype, mm_float32
from triton_kernels.types import FP16_SCALE, Sweep

# Start of the running maximum: finite, so that a chunk of -inf logits leaves exp(-inf) = 0, no NaN.
LOWEST = -1e38
# float32 elements of a chunk: 24 MiB on the CPU, 256 MiB elsewhere.
_CPU_ELEMENTS, _ELEMENTS = 6 * 2**20, 2**26


def _chunk_rows(num_tokens: int, width: int, device: torch.device) -> int:
    """Compute the vocabulary rows per chunk.

    On the CPU the chunk's logits and its rows of the head fit into a cache of 32 MiB, from which the
    second product reads them: 0.83 of the naive time instead of 0.95 at T = 128, D = 2560.
    """
    if device.type == "cpu":
        most = _CPU_ELEMENTS // (num_tokens + width + 1)
    else:
        most = _ELEMENTS // (num_tokens + 1)
    return max(512, most // 64 * 64)


class _Chunks:
    """Memory of float32 [T, C] chunks, allocated once: new pages cost as much as arithmetic."""

    def __init__(self, hidden: Tensor) -> None:
        self.num_tokens = hidden.shape[0]
        self.flat = hidden.new_empty(0, dtype=torch.float32)

    def view(self, num_columns: int) -> Tensor:
        size = self.num_tokens * num_columns
        if self.flat.numel() < size:  # the first chunk is the largest
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(self.num_tokens, num_columns)


def _logits(hidden_TD: Tensor, rows_CD: Tensor, inv_temperature: float, chunks: _Chunks) -> Tensor:
    # (The library allocates the result of 16-bit products itself.)
    out_TC = chunks.view(rows_CD.shape[0]) if rows_CD.dtype == torch.float32 else None
    logits_TC = mm_float32(hidden_TD, rows_CD.T, out=out_TC)
    return logits_TC if inv_temperature == 1.0 else logits_TC.mul_(inv_temperature)


def _add_product(total_TD: Tensor, share_TC: Tensor, rows_CD: Tensor) -> None:
    """Add share @ rows to the total without losing small shares in float16."""
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
    """Compute the results of a vocabulary that fits into one chunk, as small models have it."""
    logit_TV = mm_float32(hidden_TD, weight_VD.T)
    if inv_temperature != 1.0:
        logit_TV.mul_(inv_temperature)
    logprob_TV = torch.log_softmax(logit_TV, dim=1)
    target_T1 = logprob_TV.gather(1, ids[:, None])
    lse_T, entropy_T, direction_TD = target_T1[:, 0], None, None
    if entropy:
        best_T1 = logprob_TV.argmax(1, keepdim=True)  # a column where this is not -inf - -inf
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


class _Running:
    """The softmax of T tokens over the rows seen so far, relative to their largest logit."""

    def __init__(self, hidden: Tensor, *, direction: bool) -> None:
        zeros_T = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        self.top_T = zeros_T + LOWEST
        self.target_T = zeros_T  # logit of the token
        # Sums of exp(logit - top): the token's own, all others, and weighted by (logit - top).
        self.own_T, self.rest_T, self.weighted_T = zeros_T, zeros_T, zeros_T
        # Sum of exp(logit - top) * row over the other tokens.
        self.mean_TD = zeros_T[:, None].repeat(1, hidden.shape[1]) if direction else None

    def add(
        self, logit_TC: Tensor, rows_CD: Tensor, local_T: Tensor, share_TC: Tensor | None
    ) -> None:
        """Add a chunk; overwrite `logit_TC`.

        Args:
            logit_TC: the chunk's logits.
            rows_CD: its rows of the head.
            local_T: the tokens' ids minus the chunk's first row: outside 0..C-1 if in another chunk.
            share_TC: memory for the shares; given if the entropy is requested.
        """
        is_here_T = (local_T >= 0) & (local_T < logit_TC.shape[1])
        local_T1 = local_T.clamp(0, logit_TC.shape[1] - 1)[:, None]
        target_T = logit_TC.gather(1, local_T1)[:, 0]
        self.target_T = torch.where(is_here_T, target_T, self.target_T)
        top_T = torch.maximum(self.top_T, logit_TC.amax(1))
        rise_T, self.top_T = self.top_T - top_T, top_T
        decay_T = rise_T.exp()
        logit_TC.sub_(top_T[:, None])
        if share_TC is None:
            share_TC = logit_TC.exp_()
        else:
            torch.exp(logit_TC, out=share_TC)
            # exp(-128) is 0 in float32; the clamp keeps 0 * -inf = NaN out of the sum.
            part_T = logit_TC.clamp_(min=-128.0).mul_(share_TC).sum(1)
            shifted_T = self.weighted_T + rise_T * (self.own_T + self.rest_T)
            self.weighted_T = decay_T * shifted_T + part_T
        # The target's own share is summed separately: 1 - p would cancel for a confident token.
        share_T1 = share_TC.gather(1, local_T1)
        share_TC.scatter_(1, local_T1, share_T1.masked_fill(is_here_T[:, None], 0.0))
        self.own_T = self.own_T * decay_T + torch.where(is_here_T, share_T1[:, 0], 0.0)
        self.rest_T = self.rest_T * decay_T + share_TC.sum(1)
        if self.mean_TD is not None:
            self.mean_TD.mul_(decay_T[:, None])
            _add_product(self.mean_TD, share_TC, rows_CD)

    def result(
        self, weight: Tensor, ids: Tensor, inv_temperature: float, direction: torch.dtype | None
    ) -> Sweep:
        sum_T = self.own_T + self.rest_T
        log_sum_T = sum_T.log()
        direction_TD = None
        if self.mean_TD is not None:  # (rest * W[y] - sum over the others) / sum
            direction_TD = weight[ids].float().mul_(self.rest_T[:, None]).sub_(self.mean_TD)
            direction_TD = direction_TD.mul_((inv_temperature / sum_T)[:, None]).to(direction)
        return Sweep(
            logprob=(self.target_T - self.top_T) - log_sum_T,
            lse=self.top_T + log_sum_T,
            entropy=log_sum_T - self.weighted_T / sum_T,
            direction=direction_TD,
        )


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
    dtype = gemm_dtype(weight)
    hidden_TD = hidden.to(dtype)
    step = min(_chunk_rows(hidden.shape[0], hidden.shape[1], hidden.device), weight.shape[0])
    if step == weight.shape[0] and dtype == torch.float32:
        rows_VD = weight.to(dtype)
        return _sweep_once(
            hidden_TD, rows_VD, ids, inv_temperature, entropy=entropy, direction=direction
        )
    running = _Running(hidden, direction=direction is not None)
    logit_chunks = _Chunks(hidden)
    share_chunks = _Chunks(hidden) if entropy else None
    for start in range(0, weight.shape[0], step):
        rows_CD = weight[start : start + step].to(dtype)
        logit_TC = _logits(hidden_TD, rows_CD, inv_temperature, logit_chunks)
        share_TC = None if share_chunks is None else share_chunks.view(rows_CD.shape[0])
        running.add(logit_TC, rows_CD, ids - start, share_TC)
    result = running.result(weight, ids, inv_temperature, direction)
    return result if entropy else result._replace(entropy=None)


def entropy_direction(
    hidden: Tensor, weight: Tensor, lse: Tensor, entropy: Tensor, inv_temperature: float
) -> Tensor:
    """See `logprob.Implementation`: -1/temperature * sum_v p_v (log p_v + H) W[v], second pass."""
    vocabulary = weight.shape[0]
    dtype = gemm_dtype(weight)
    hidden_TD = hidden.to(dtype)
    step = min(_chunk_rows(hidden.shape[0], hidden.shape[1], hidden.device), vocabulary)
    logit_chunks, share_chunks = _Chunks(hidden), _Chunks(hidden)
    total_TD = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, vocabulary, step):
        rows_CD = weight[start : start + step].to(dtype)
        logprob_TC = _logits(hidden_TD, rows_CD, inv_temperature, logit_chunks).sub_(lse[:, None])
        share_TC = torch.exp(logprob_TC, out=share_chunks.view(rows_CD.shape[0]))
        logprob_TC.clamp_(min=-128.0).add_(entropy[:, None]).mul_(share_TC)
        _add_product(total_TD, logprob_TC, rows_CD)
    return total_TD.mul_(-inv_temperature)
