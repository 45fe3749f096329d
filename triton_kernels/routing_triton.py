"""Top-k routing with two kernels. Each program writes partial sums of the statistics: no atomics.

Not yet run on a GPU: checked by the interpreter and by compilation for each target.

Shape letters: T tokens, E experts, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels._common import ceil_div, launch, next_power_of_2
from triton_kernels.types import RouteResult

_TILE = 512  # tokens * padded experts per program


@triton.jit
def _offsets(rows, columns, stride_t, stride_e):
    return rows.to(tl.int64)[:, None] * stride_t + columns[None, :] * stride_e


@triton.jit
def _softmax_over(z, mask):
    """Compute the softmax over the mask; zeros elsewhere and in rows without any, NaN if all are -inf."""
    top = tl.max(tl.where(mask, z, float("-inf")), axis=1)
    share = tl.where(mask, tl.exp(z - top[:, None]), 0.0)
    total = tl.sum(share, axis=1)
    is_empty = tl.max(mask.to(tl.int32), axis=1) == 0
    return share / tl.where(is_empty, 1.0, total)[:, None]


@triton.jit
def _mean_share(mask):
    """Sum 1 / (number of experts in the row's mask) over rows, for each expert in it."""
    one = tl.where(mask, 1.0, 0.0)
    count = tl.maximum(tl.sum(one, axis=1), 1.0)
    return tl.sum(one / count[:, None], axis=0)


@triton.jit
def _route(
    logits_ptr,
    allowed_ptr,
    weights_ptr,
    partial_ptr,
    num_tokens,
    logits_stride_t,
    logits_stride_e,
    allowed_stride_t,
    allowed_stride_e,
    NUM_EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    TOP_K: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the weights of BLOCK tokens, and their part of the statistics [3, E] (see RouteResult)."""
    program = tl.program_id(0)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, PADDED)
    is_real = (rows < num_tokens)[:, None] & (columns < NUM_EXPERTS)[None, :]
    logits_ptr += _offsets(rows, columns, logits_stride_t, logits_stride_e)
    z = tl.load(logits_ptr, mask=is_real, other=0.0).to(tl.float32)
    may = is_real
    if HAS_ALLOWED:
        allowed_ptr += _offsets(rows, columns, allowed_stride_t, allowed_stride_e)
        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)

    # An allowed -inf ranks above forbidden and already chosen experts; the first of equals wins.
    # (NaN compares False: it ranks low here, on a GPU as in the interpreter, and is handled below.)
    rank = tl.where(may, tl.where(z > -3.0e38, z, -3.0e38), float("-inf"))
    chosen = is_real & (columns < 0)[None, :]  # none yet
    for _ in tl.static_range(TOP_K):
        best = tl.argmax(rank, axis=1)
        exists = tl.max(rank, axis=1) > float("-inf")
        is_best = (columns[None, :] == best[:, None]) & exists[:, None]
        chosen = chosen | is_best
        rank = tl.where(is_best, float("-inf"), rank)

    weights = _softmax_over(z, chosen)
    # One NaN among the allowed logits makes all weights of the row NaN.
    is_bad = (may & (z != z)) | (weights != weights)
    bad_row = tl.max(is_bad.to(tl.int32), axis=1) > 0
    weights = tl.where(bad_row[:, None], float("nan"), weights)
    weights_ptr += _offsets(rows, columns, NUM_EXPERTS, 1)
    tl.store(weights_ptr, weights, mask=is_real)

    partial_ptr += program * 3 * NUM_EXPERTS + columns
    is_expert = columns < NUM_EXPERTS
    tl.store(partial_ptr, _mean_share(chosen), mask=is_expert)
    tl.store(partial_ptr + NUM_EXPERTS, tl.sum(_softmax_over(z, may), axis=0), mask=is_expert)
    tl.store(partial_ptr + 2 * NUM_EXPERTS, _mean_share(may), mask=is_expert)


@triton.jit
def _route_backward(
    logits_ptr,
    allowed_ptr,
    weights_ptr,
    grad_weights_ptr,
    grad_prob_ptr,
    grad_logits_ptr,
    num_tokens,
    logits_stride_t,
    logits_stride_e,
    allowed_stride_t,
    allowed_stride_e,
    grad_stride_t,
    grad_stride_e,
    NUM_EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Apply the softmax Jacobians of the weights and of the shares over all allowed to BLOCK tokens."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, PADDED)
    is_real = (rows < num_tokens)[:, None] & (columns < NUM_EXPERTS)[None, :]
    logits_ptr += _offsets(rows, columns, logits_stride_t, logits_stride_e)
    z = tl.load(logits_ptr, mask=is_real, other=0.0).to(tl.float32)
    may = is_real
    if HAS_ALLOWED:
        allowed_ptr += _offsets(rows, columns, allowed_stride_t, allowed_stride_e)
        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)
    offset = _offsets(rows, columns, NUM_EXPERTS, 1)
    weights = tl.load(weights_ptr + offset, mask=is_real, other=0.0)
    grad_weights_ptr += _offsets(rows, columns, grad_stride_t, grad_stride_e)
    grad_weights = tl.load(grad_weights_ptr, mask=is_real, other=0.0)
    grad_prob = tl.load(grad_prob_ptr + columns, mask=columns < NUM_EXPERTS, other=0.0)[None, :]

    prob = _softmax_over(z, may)
    grad = weights * (grad_weights - tl.sum(weights * grad_weights, axis=1)[:, None])
    grad += prob * (grad_prob - tl.sum(prob * grad_prob, axis=1)[:, None])
    tl.store(grad_logits_ptr + offset, grad, mask=is_real)


def _config(num_experts: int) -> dict[str, int]:
    padded = next_power_of_2(num_experts)
    return {
        "NUM_EXPERTS": num_experts,
        "PADDED": padded,
        "BLOCK": max(1, _TILE // padded),
        "num_warps": 4,
    }


def _mask_arguments(allowed: Tensor | None, logits: Tensor) -> tuple[Tensor, int, int]:
    """Return the mask as bytes and its strides; the pointer is not read where HAS_ALLOWED is False."""
    if allowed is None:
        return logits, 0, 0
    return allowed.view(torch.uint8), allowed.stride(0), allowed.stride(1)


def route(logits: Tensor, allowed: Tensor | None, top_k: int) -> RouteResult:
    """See `routing.Implementation`."""
    num_tokens, num_experts = logits.shape
    config = _config(num_experts)
    grid = (ceil_div(num_tokens, config["BLOCK"]),)
    weights_TE = logits.new_empty(logits.shape, dtype=torch.float32)
    partial_P3E = logits.new_empty((grid[0], 3, num_experts), dtype=torch.float32)
    mask, mask_stride_t, mask_stride_e = _mask_arguments(allowed, logits)
    launch(
        _route,
        grid,
        logits,
        logits,
        mask,
        weights_TE,
        partial_P3E,
        num_tokens,
        logits.stride(0),
        logits.stride(1),
        mask_stride_t,
        mask_stride_e,
        TOP_K=top_k,
        HAS_ALLOWED=allowed is not None,
        **config,
    )
    return RouteResult(weights_TE, partial_P3E.sum(0))


def route_backward(
    logits: Tensor,
    allowed: Tensor | None,
    weights: Tensor,
    grad_weights: Tensor,
    grad_prob: Tensor,
) -> Tensor:
    """See `routing.Implementation`."""
    num_tokens, num_experts = logits.shape
    config = _config(num_experts)
    grad_TE = logits.new_empty(logits.shape, dtype=torch.float32)
    mask, mask_stride_t, mask_stride_e = _mask_arguments(allowed, logits)
    launch(
        _route_backward,
        (ceil_div(num_tokens, config["BLOCK"]),),
        logits,
        logits,
        mask,
        weights,
        grad_weights,
        grad_prob,
        grad_TE,
        num_tokens,
        logits.stride(0),
        logits.stride(1),
        mask_stride_t,
        mask_stride_e,
        grad_weights.stride(0),
        grad_weights.stride(1),
        HAS_ALLOWED=allowed is not None,
        **config,
    )
    return grad_TE
