"""Token log-probs with kernels: library products over chunks of tokens, one kernel between them.

Each kernel program processes one row of float32 logits. Logits rounded to bfloat16 would change
log-probs by 1.5e-2 nats on average (simulated; logits of standard deviation 4). No kernel contains a
matrix product, so the same code runs on sm75, where Triton has no tensor cores. Not yet run on a GPU:
checked by the interpreter and by compilation for each target.

Shape letters: T tokens, D width, V vocabulary, C tokens of one chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels._common import ceil_div, launch, mm_float32, next_power_of_2
from triton_kernels.types import FP16_SCALE, Sweep

# Bytes of one chunk's logits (float32) and of their gradient (16 bit): 6 * C * V. At V = 151,936
# this gives C = 576, enough for the products to be limited by arithmetic on most GPUs.
CHUNK_BYTES = 512 * 2**20
_MAX_BLOCK = 4096  # columns per iteration


@triton.jit
def _logprob_rows(
    logits_ptr,
    ids_ptr,
    logprob_ptr,
    lse_ptr,
    entropy_ptr,
    grad_ptr,
    num_columns,
    logits_stride,
    grad_stride,
    inv_temperature,
    grad_scale,
    HAS_ENTROPY: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one row's log-prob of its token, lse, entropy, and (1[v = y] - p_v) * grad_scale.

    `grad_ptr` may be `logits_ptr`: every element is read before it is written, by the same thread.
    """
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31
    logits_ptr += row * logits_stride
    token = tl.load(ids_ptr + row)
    target = tl.load(logits_ptr + token).to(tl.float32) * inv_temperature
    top = -1e38  # finite: a block of -inf then gives exp(-inf) = 0, not exp(-inf + inf) = NaN
    rest = 0.0  # sum of exp(z - top) over the other tokens: 1 - p would cancel
    weighted = 0.0  # the same sum, each term times (z - top)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + columns, mask=columns < num_columns, other=float("-inf"))
        z = z.to(tl.float32) * inv_temperature
        new_top = tl.maximum(top, tl.max(z, axis=0))
        decay = tl.exp(top - new_top)
        share = tl.where(columns == token, 0.0, tl.exp(z - new_top))
        if HAS_ENTROPY:
            part = tl.where(share == 0.0, 0.0, share * (z - new_top))  # no 0 * -inf
            weighted = decay * (weighted + (top - new_top) * rest) + tl.sum(part, axis=0)
        rest = rest * decay + tl.sum(share, axis=0)
        top = new_top
    own = tl.exp(target - top)
    total = own + rest
    log_total = tl.log(total)
    tl.store(logprob_ptr + row, target - top - log_total)
    tl.store(lse_ptr + row, top + log_total)
    if HAS_ENTROPY:
        weighted += tl.where(own == 0.0, 0.0, own * (target - top))
        tl.store(entropy_ptr + row, log_total - weighted / total)
    if HAS_GRAD:
        grad_ptr += row * grad_stride
        for start in range(0, num_columns, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            is_column = columns < num_columns
            z = tl.load(logits_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
            share = tl.exp(z * inv_temperature - top)
            grad = tl.where(columns == token, rest, -share) / total * grad_scale
            tl.store(grad_ptr + columns, grad.to(grad_ptr.dtype.element_ty), mask=is_column)


@triton.jit
def _entropy_grad_rows(
    logits_ptr,
    lse_ptr,
    entropy_ptr,
    grad_ptr,
    num_columns,
    logits_stride,
    grad_stride,
    inv_temperature,
    grad_scale,
    BLOCK: tl.constexpr,
):
    """Compute -p (log p + H) * grad_scale of one block of a row. `grad_ptr` may be `logits_ptr`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < num_columns
    lse = tl.load(lse_ptr + row)
    entropy = tl.load(entropy_ptr + row)
    z = tl.load(logits_ptr + row * logits_stride + columns, mask=is_column, other=0.0)
    logprob = z.to(tl.float32) * inv_temperature - lse
    share = tl.exp(logprob)
    grad = tl.where(share == 0.0, 0.0, -share * (logprob + entropy)) * grad_scale
    grad_ptr += row * grad_stride
    tl.store(grad_ptr + columns, grad.to(grad_ptr.dtype.element_ty), mask=is_column)


def _chunk_tokens(num_tokens: int, vocabulary: int) -> int:
    """Compute the tokens per chunk: as many as CHUNK_BYTES allows, in chunks of similar size."""
    most = max(64, CHUNK_BYTES // (6 * vocabulary) // 64 * 64)
    num_chunks = max(1, ceil_div(num_tokens, most))
    return max(1, ceil_div(num_tokens, num_chunks))


def _row_config(vocabulary: int) -> dict[str, int]:
    block = min(_MAX_BLOCK, max(128, next_power_of_2(vocabulary)))
    return {"BLOCK": block, "num_warps": 8 if block == _MAX_BLOCK else 4}


def _grad_room(chunk: int, weight: Tensor) -> Tensor | None:
    """Allocate [C, V] in the weight's dtype for the logits' gradient; None: overwrite the logits."""
    if weight.dtype == torch.float32:
        return None
    return torch.empty(chunk, weight.shape[0], dtype=weight.dtype, device=weight.device)


def _scale(weight: Tensor) -> float:
    return FP16_SCALE if weight.dtype == torch.float16 else 1.0


def _sweep_chunk(
    hidden_CD: Tensor,
    weight: Tensor,
    ids_C: Tensor,
    inv_temperature: float,
    result: Sweep,
    grad_room: Tensor | None,
) -> None:
    """Fill the chunk's views of `result`. (A function, so that the logits are freed at its end.)"""
    num_rows, vocabulary = hidden_CD.shape[0], weight.shape[0]
    logits_CV = mm_float32(hidden_CD.to(weight.dtype), weight.T)
    grad_CV = logits_CV if grad_room is None else grad_room[:num_rows]
    launch(
        _logprob_rows,
        (num_rows,),
        logits_CV,
        logits_CV,
        ids_C,
        result.logprob,
        result.lse,
        result.lse if result.entropy is None else result.entropy,
        grad_CV,
        vocabulary,
        logits_CV.stride(0),
        grad_CV.stride(0),
        inv_temperature,
        _scale(weight),
        HAS_ENTROPY=result.entropy is not None,
        HAS_GRAD=result.direction is not None,
        **_row_config(vocabulary),
    )
    if result.direction is not None:
        product_CD = mm_float32(grad_CV, weight)
        torch.mul(product_CD, inv_temperature / _scale(weight), out=product_CD)
        result.direction.copy_(product_CD)


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
    num_tokens = hidden.shape[0]
    result = Sweep(
        logprob=hidden.new_empty(num_tokens, dtype=torch.float32),
        lse=hidden.new_empty(num_tokens, dtype=torch.float32),
        entropy=hidden.new_empty(num_tokens, dtype=torch.float32) if entropy else None,
        direction=hidden.new_empty(hidden.shape, dtype=direction) if direction else None,
    )
    step = _chunk_tokens(num_tokens, weight.shape[0])
    grad_room = _grad_room(step, weight) if direction else None
    for start in range(0, num_tokens, step):
        rows = slice(start, start + step)
        part = Sweep(
            result.logprob[rows],
            result.lse[rows],
            None if result.entropy is None else result.entropy[rows],
            None if result.direction is None else result.direction[rows],
        )
        _sweep_chunk(hidden[rows], weight, ids[rows], inv_temperature, part, grad_room)
    return result


def entropy_direction(
    hidden: Tensor, weight: Tensor, lse: Tensor, entropy: Tensor, inv_temperature: float
) -> Tensor:
    """See `logprob.Implementation`."""
    num_tokens, vocabulary = hidden.shape[0], weight.shape[0]
    result_TD = hidden.new_empty(hidden.shape, dtype=torch.float32)
    step = _chunk_tokens(num_tokens, vocabulary)
    grad_room = _grad_room(step, weight)
    config = _row_config(vocabulary)
    for start in range(0, num_tokens, step):
        rows = slice(start, start + step)
        logits_CV = mm_float32(hidden[rows].to(weight.dtype), weight.T)
        grad_CV = logits_CV if grad_room is None else grad_room[: logits_CV.shape[0]]
        launch(
            _entropy_grad_rows,
            (logits_CV.shape[0], ceil_div(vocabulary, config["BLOCK"])),
            logits_CV,
            logits_CV,
            lse[rows],
            entropy[rows],
            grad_CV,
            vocabulary,
            logits_CV.stride(0),
            grad_CV.stride(0),
            inv_temperature,
            _scale(weight),
            **config,
        )
        torch.mul(
            mm_float32(grad_CV, weight), inv_temperature / _scale(weight), out=result_TD[rows]
        )
        del logits_CV, grad_CV  # frees them before the next chunk's are allocated
    return result_TD
