"""The step between the two products of `lora_experts`: one kernel forward, one backward.

A program processes a few tokens' ranks of one expert, so that the routing weight is one number per row
and its gradient a row sum, for any number of experts and any rank. Not yet run on a GPU:
checked by the interpreter and by compilation for each target.

Shape letters: T tokens, E experts, r rank, R = E * r.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels._common import ceil_div, launch, next_power_of_2

_TILE = 1024  # tokens * padded rank per program


@triton.jit
def _offsets(rows, expert, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Compute the offsets of the ranks of `expert` in a contiguous [T, R]."""
    columns = expert * RANK + tl.arange(0, PADDED)
    return rows.to(tl.int64)[:, None] * (tl.num_programs(1) * RANK) + columns[None, :]


@triton.jit
def _scale_ranks(
    low_ptr,
    weights_ptr,
    out_ptr,
    num_tokens,
    weights_stride_t,
    weights_stride_e,
    scale,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute out = low * weight * scale."""
    expert = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_tokens
    is_real = is_row[:, None] & (tl.arange(0, PADDED) < RANK)[None, :]
    offset = _offsets(rows, expert, RANK, PADDED)
    weights_ptr += rows.to(tl.int64) * weights_stride_t + expert * weights_stride_e
    weight = tl.load(weights_ptr, mask=is_row, other=0.0).to(tl.float32)
    low = tl.load(low_ptr + offset, mask=is_real, other=0.0).to(tl.float32)
    out = low * (weight * scale)[:, None]
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=is_real)


@triton.jit
def _scale_ranks_backward(
    grad_ptr,
    low_ptr,
    weights_ptr,
    grad_low_ptr,
    grad_weights_ptr,
    num_tokens,
    weights_stride_t,
    weights_stride_e,
    scale,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute grad_low = grad * weight * scale, grad_weight = scale * sum over ranks of grad * low."""
    expert = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_tokens
    is_real = is_row[:, None] & (tl.arange(0, PADDED) < RANK)[None, :]
    offset = _offsets(rows, expert, RANK, PADDED)
    weights_ptr += rows.to(tl.int64) * weights_stride_t + expert * weights_stride_e
    weight = tl.load(weights_ptr, mask=is_row, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offset, mask=is_real, other=0.0).to(tl.float32)
    low = tl.load(low_ptr + offset, mask=is_real, other=0.0).to(tl.float32)
    grad_low = grad * (weight * scale)[:, None]
    tl.store(grad_low_ptr + offset, grad_low.to(grad_low_ptr.dtype.element_ty), mask=is_real)
    grad_weight = tl.sum(grad * low, axis=1) * scale
    grad_weights_ptr += rows.to(tl.int64) * tl.num_programs(1) + expert
    tl.store(grad_weights_ptr, grad_weight, mask=is_row)


def _config(rank: int) -> dict[str, int]:
    padded = next_power_of_2(rank)
    return {"RANK": rank, "PADDED": padded, "BLOCK": max(1, _TILE // padded), "num_warps": 4}


def scale_ranks(low: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See `lora.Implementation`."""
    num_tokens, num_experts = weights.shape
    config = _config(low.shape[1] // num_experts)
    out_TR = torch.empty_like(low)
    launch(
        _scale_ranks,
        (ceil_div(num_tokens, config["BLOCK"]), num_experts),
        low,
        low,
        weights,
        out_TR,
        num_tokens,
        weights.stride(0),
        weights.stride(1),
        scale,
        **config,
    )
    return out_TR


def scale_ranks_backward(
    grad: Tensor, low: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `lora.Implementation`."""
    num_tokens, num_experts = weights.shape
    config = _config(low.shape[1] // num_experts)
    grad_low_TR = torch.empty_like(low)
    grad_weights_TE = low.new_empty(weights.shape, dtype=torch.float32)
    launch(
        _scale_ranks_backward,
        (ceil_div(num_tokens, config["BLOCK"]), num_experts),
        low,
        grad,
        low,
        weights,
        grad_low_TR,
        grad_weights_TE,
        num_tokens,
        weights.stride(0),
        weights.stride(1),
        scale,
        **config,
    )
    return grad_low_TR, grad_weights_TE
