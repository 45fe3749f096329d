"""The kernels of decoding.py. Not yet run on a GPU: checked by the interpreter and by compilation.

All compute in float32 and round once. No matrix product is in them.

Shape letters: T tokens, D hidden, I intermediate, R rows, H query heads, J key-value heads, S = H / J,
N = 2 * R * S, d head size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels._common import ceil_div, launch, next_power_of_2

_TILE = 1024  # elements of SwiGLU per program


@triton.jit
def _add_rms_norm(
    hidden_ptr,
    delta_ptr,
    weight_ptr,
    sum_ptr,
    out_ptr,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """Compute sum = hidden + delta and out = rms_norm(sum) * weight; a program per token."""
    columns = tl.arange(0, PADDED)
    is_real = columns < WIDTH
    offset = tl.program_id(0).to(tl.int64) * WIDTH + columns
    hidden = tl.load(hidden_ptr + offset, mask=is_real, other=0.0).to(tl.float32)
    if HAS_DELTA:
        hidden += tl.load(delta_ptr + offset, mask=is_real, other=0.0).to(tl.float32)
        rounded = hidden.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offset, rounded, mask=is_real)
        hidden = rounded.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(hidden * hidden, axis=0) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=is_real, other=0.0).to(tl.float32)
    out = hidden * inverse * weight
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=is_real)


def add_rms_norm(
    hidden_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `decoding.add_rms_norm`."""
    num_tokens, width = hidden_TD.shape
    hidden_TD = hidden_TD.contiguous()
    sum_TD = hidden_TD if delta_TD is None else torch.empty_like(hidden_TD)
    out_TD = hidden_TD.new_empty(hidden_TD.shape, dtype=dtype)
    launch(
        _add_rms_norm,
        (num_tokens,),
        hidden_TD,
        hidden_TD,
        hidden_TD if delta_TD is None else delta_TD.contiguous(),
        weight_D,
        sum_TD,
        out_TD,
        eps,
        WIDTH=width,
        PADDED=next_power_of_2(width),
        HAS_DELTA=delta_TD is not None,
        num_warps=8,
    )
    return sum_TD, out_TD


@triton.jit
def _swiglu(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Compute out = silu(gate) * up; a program per token and block of columns."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_real = columns < WIDTH
    gate_ptr = gate_up_ptr + token * (2 * WIDTH) + columns
    gate = tl.load(gate_ptr, mask=is_real, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask=is_real, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask=is_real)


def swiglu(gate_up: Tensor) -> Tensor:
    """See `decoding.swiglu`."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out_TI = gate_up.new_empty(num_tokens, width)
    block = min(_TILE, next_power_of_2(width))
    launch(
        _swiglu,
        (num_tokens, ceil_div(width, block)),
        gate_up,
        gate_up.contiguous(),
        out_TI,
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
    )
    return out_TI


@triton.jit
def _rotate_and_store(
    qkv_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    buffer_ptr,
    slot_ptr,
    q_ptr,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Norm and rotate one head of one row (a value is only copied) and write it where it belongs."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low = tl.arange(0, PADDED)
    is_real = low < HALF
    source = (row * (HEADS + 2 * KV_HEADS) + head) * SIZE + low
    first = tl.load(qkv_ptr + source, mask=is_real, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + source + HALF, mask=is_real, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        mean = (tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)) / SIZE
        inverse = 1.0 / tl.sqrt(mean + eps)
        weight = weight_ptr + head * SIZE + low
        first *= inverse * tl.load(weight, mask=is_real, other=0.0).to(tl.float32)
        second *= inverse * tl.load(weight + HALF, mask=is_real, other=0.0).to(tl.float32)
        table = row * SIZE + low
        cos_first = tl.load(cos_ptr + table, mask=is_real, other=0.0).to(tl.float32)
        sin_first = tl.load(sin_ptr + table, mask=is_real, other=0.0).to(tl.float32)
        cos_second = tl.load(cos_ptr + table + HALF, mask=is_real, other=0.0).to(tl.float32)
        sin_second = tl.load(sin_ptr + table + HALF, mask=is_real, other=0.0).to(tl.float32)
        rotated = first * cos_first - second * sin_first
        second = second * cos_second + first * sin_second
        first = rotated
    if head < HEADS:
        # [2, R, S, J, d]: the S heads that share a key head come one after another in the model
        shared: tl.constexpr = HEADS // KV_HEADS
        target = ((row * shared + head % shared) * KV_HEADS + head // shared) * SIZE + low
        copy = tl.num_programs(0).to(tl.int64) * HEADS * SIZE
        first_16, second_16 = first.to(q_ptr.dtype.element_ty), second.to(q_ptr.dtype.element_ty)
        tl.store(q_ptr + target, first_16, mask=is_real)
        tl.store(q_ptr + target + HALF, second_16, mask=is_real)
        tl.store(q_ptr + copy + target, first_16, mask=is_real)
        tl.store(q_ptr + copy + target + HALF, second_16, mask=is_real)
    else:
        slot = tl.load(slot_ptr + row)
        target = (slot * (2 * KV_HEADS) + head - HEADS) * SIZE + low
        tl.store(buffer_ptr + target, first.to(buffer_ptr.dtype.element_ty), mask=is_real)
        tl.store(buffer_ptr + target + HALF, second.to(buffer_ptr.dtype.element_ty), mask=is_real)


def rotate_and_store(
    qkv: Tensor,
    weight: Tensor,
    eps: float,
    cos_R1d: Tensor,
    sin_R1d: Tensor,
    buffer: Tensor,
    slot_R: Tensor,
) -> Tensor:
    """See `decoding.rotate_and_store`."""
    num_rows, num_all_heads, size = qkv.shape
    num_kv_heads = buffer.shape[1] // 2
    num_heads = num_all_heads - 2 * num_kv_heads
    q_NJd = qkv.new_empty(2 * num_rows * num_heads // num_kv_heads, num_kv_heads, size)
    launch(
        _rotate_and_store,
        (num_rows, num_all_heads),
        qkv,
        qkv.contiguous(),
        weight,
        cos_R1d.contiguous(),
        sin_R1d.contiguous(),
        buffer,
        slot_R,
        q_NJd,
        eps,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        SIZE=size,
        HALF=size // 2,
        PADDED=next_power_of_2(size // 2),
        num_warps=1,
    )
    return q_NJd


@triton.jit
def _merge_halves(
    out_ptr,
    lse_ptr,
    slot_ptr,
    merged_ptr,
    KV_HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Merge one head of one row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_queries = tl.num_programs(0).to(tl.int64) * SHARED  # of one half
    query, kv_head = row * SHARED + head % SHARED, head // SHARED
    slot = slot_ptr + query * KV_HEADS + kv_head
    first_lse = tl.load(lse_ptr + tl.load(slot))
    second_lse = tl.load(lse_ptr + tl.load(slot + num_queries * KV_HEADS))
    share = 1.0 / (1.0 + tl.exp(first_lse - second_lse))
    columns = tl.arange(0, PADDED)
    is_real = columns < SIZE
    source = (query * KV_HEADS + kv_head) * SIZE + columns
    half = num_queries * KV_HEADS * SIZE
    first = tl.load(out_ptr + source, mask=is_real, other=0.0).to(tl.float32)
    second = tl.load(out_ptr + half + source, mask=is_real, other=0.0).to(tl.float32)
    merged = first + share * (second - first)
    target = (row * KV_HEADS * SHARED + head) * SIZE + columns
    tl.store(merged_ptr + target, merged.to(merged_ptr.dtype.element_ty), mask=is_real)


def merge_halves(out_NJd: Tensor, lse: Tensor, lse_slot_NJ: Tensor, num_rows: int) -> Tensor:
    """See `decoding.merge_halves`."""
    num_queries, num_kv_heads, size = out_NJd.shape
    num_shared = num_queries // (2 * num_rows)
    merged = out_NJd.new_empty(num_rows, num_kv_heads * num_shared * size)
    launch(
        _merge_halves,
        (num_rows, num_kv_heads * num_shared),
        out_NJd,
        out_NJd.contiguous(),
        lse.contiguous(),
        lse_slot_NJ,
        merged,
        KV_HEADS=num_kv_heads,
        SHARED=num_shared,
        SIZE=size,
        PADDED=next_power_of_2(size),
        num_warps=1,
    )
    return merged
