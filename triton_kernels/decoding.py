"""What is between two matrix products of a decoded token: norms, rotation, the merged attention, SwiGLU.

A token of a small batch costs little arithmetic and many launches. Each operation here but `rotate_heads`
is one kernel on a card. None is differentiable; arguments come from prism_lite/sampling, which fixes their
shapes once.

Shape letters: T tokens, D hidden, I intermediate, R rows (a token of each), H query heads, J key-value
heads, S = H / J, N = 2 * R * S queries (`rotate_and_store`), d head size.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from triton_kernels._common import choose_backend


def add_rms_norm(
    hidden_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and norm it.

    Args:
        hidden_TD: the stream; float32, or the dtype of the products.
        delta_TD: what is added to it, or None.
        dtype: of the norm's output.

    Returns:
        the new stream, in its dtype, and its norm times `weight_D`.
    """
    if choose_backend(hidden_TD) == "triton":
        from triton_kernels import decoding_triton

        return decoding_triton.add_rms_norm(hidden_TD, delta_TD, weight_D, eps, dtype)
    if delta_TD is not None:
        hidden_TD = hidden_TD + delta_TD
    norm_TD = F.rms_norm(hidden_TD, hidden_TD.shape[-1:], None, eps)
    return hidden_TD, (norm_TD * weight_D).to(dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, [T, I], of both side by side, [T, 2 * I]."""
    if choose_backend(gate_up) == "triton":
        from triton_kernels import decoding_triton

        return decoding_triton.swiglu(gate_up)
    gate_TI, up_TI = gate_up.chunk(2, -1)
    return F.silu(gate_TI) * up_TI


def rotate_heads(
    qk: Tensor, weight: Tensor, eps: float, cos_T1d: Tensor, sin_T1d: Tensor
) -> Tensor:
    """Norm query and key heads [T, H + J, d], each by its weight, and rotate them by rotary tables."""
    qk = F.rms_norm(qk, qk.shape[-1:], None, eps) * weight
    first, second = qk.chunk(2, -1)
    return torch.addcmul(qk * cos_T1d, torch.cat((-second, first), -1), sin_T1d)


def rotate_and_store(
    qkv: Tensor,
    weight: Tensor,
    eps: float,
    cos_R1d: Tensor,
    sin_R1d: Tensor,
    buffer: Tensor,
    slot_R: Tensor,
) -> Tensor:
    """Norm and rotate the heads of one token per row, and store its keys and values.

    Args:
        qkv: [R, H + 2 * J, d], heads of queries, keys and values.
        weight: [H + J, d], of the norms.
        buffer: [tokens, 2 * J, d], keys before values; written at `slot_R` (int64).

    Returns:
        q_NJd: every query twice, heads that share a key head as queries of one head: [2, R, S] are N.
    """
    if choose_backend(qkv) == "triton":
        from triton_kernels import decoding_triton

        return decoding_triton.rotate_and_store(qkv, weight, eps, cos_R1d, sin_R1d, buffer, slot_R)
    num_qk, num_kv_heads, size = weight.shape[0], buffer.shape[1] // 2, qkv.shape[2]
    qk = rotate_heads(qkv[:, :num_qk], weight, eps, cos_R1d, sin_R1d)
    num_heads = num_qk - num_kv_heads
    buffer.index_copy_(0, slot_R, torch.cat([qk[:, num_heads:], qkv[:, num_qk:]], 1))
    q_RSJd = qk[:, :num_heads].unflatten(1, (num_kv_heads, -1)).transpose(1, 2)
    return q_RSJd.expand(2, *q_RSJd.shape).reshape(-1, num_kv_heads, size)


def merge_halves(out_NJd: Tensor, lse: Tensor, lse_slot_NJ: Tensor, num_rows: int) -> Tensor:
    """Merge attention of the same queries over two sets of keys by their log-sums.

    Args:
        out_NJd: of queries as `rotate_and_store` returns them.
        lse: float32, in any order.
        lse_slot_NJ: int64, the place of each query's and head's log-sum in the flattened `lse`.

    Returns:
        [R, H * d], heads in the order of the model.
    """
    if choose_backend(out_NJd) == "triton":
        from triton_kernels import decoding_triton

        return decoding_triton.merge_halves(out_NJd, lse, lse_slot_NJ, num_rows)
    num_kv_heads, size = out_NJd.shape[1:]
    first, second = out_NJd.view(2, num_rows, -1, num_kv_heads, size)
    first_lse, second_lse = lse.take(lse_slot_NJ).view(2, num_rows, -1, num_kv_heads)
    share = torch.sigmoid(second_lse - first_lse)[..., None].to(out_NJd.dtype)
    return torch.lerp(first, second, share).transpose(1, 2).reshape(num_rows, -1)
