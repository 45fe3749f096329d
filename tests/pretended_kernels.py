"""What computes the operations that only CUDA has, on the CPU, for a pretended card.

Shape letters: A batch, H heads, Q queries, K keys, d head size.
N queries, K keys of sequences end to end, J heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

aten: Any = torch.ops.aten


def _efficient_attention(
    q_AHQd: Tensor, k_AHKd: Tensor, v_AHKd: Tensor, bias: Tensor | None,
    compute_log_sumexp: bool, dropout: float = 0.0, is_causal: bool = False, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute what the CUDA kernel computes, in its layout, and refuse what it refuses."""
    assert q_AHQd.dtype == k_AHKd.dtype == v_AHKd.dtype and compute_log_sumexp and not dropout
    assert all(x.stride(-1) == 1 for x in (q_AHQd, k_AHKd, v_AHKd)), "d must be contiguous"
    assert q_AHQd.shape[0] <= 65535 and q_AHQd.shape[1] <= 65535
    assert bias is None, "not used on a card"
    score_AHQK = _scores(q_AHQd, k_AHKd, is_causal, scale)
    out_AHQd = (score_AHQK.softmax(-1) @ v_AHKd.float()).to(q_AHQd.dtype)
    out_AHQd = out_AHQd.transpose(1, 2).contiguous().transpose(1, 2)  # stored as [A, Q, H, d]
    lse_AHQ = score_AHQK.logsumexp(-1)
    padded = nn.functional.pad(lse_AHQ, (0, -lse_AHQ.shape[2] % 32), value=math.inf)
    zero = torch.zeros((), dtype=torch.long)  # seed and offset of dropout
    return out_AHQd, padded, zero, zero.clone()


def _efficient_attention_backward(
    grad_AHQd: Tensor, q_AHQd: Tensor, k_AHKd: Tensor, v_AHKd: Tensor, bias: Tensor | None,
    out_AHQd: Tensor, lse_AHQ: Tensor, _seed: Tensor, _offset: Tensor, _dropout: float,
    _needed: list[bool], is_causal: bool = False, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    """Differentiate, from output and log-sum as they are given (the merged ones of a tree)."""
    assert bias is None and lse_AHQ.shape[2] % 32 == 0
    assert grad_AHQd.stride(-1) == 1 and out_AHQd.stride(-1) == 1
    num_queries, grad = q_AHQd.shape[2], grad_AHQd.float()
    score_AHQK = _scores(q_AHQd, k_AHKd, is_causal, scale)
    weight_AHQK = torch.exp(score_AHQK - lse_AHQ[:, :, :num_queries, None])
    delta_AHQ1 = (grad * out_AHQd.float()).sum(-1, keepdim=True)
    d_score = weight_AHQK * (grad @ v_AHKd.float().transpose(-1, -2) - delta_AHQ1) * scale
    d_q = d_score @ k_AHKd.float()
    d_k = d_score.transpose(-1, -2) @ q_AHQd.float()
    d_v = weight_AHQK.transpose(-1, -2) @ grad
    dtype = q_AHQd.dtype
    return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype), None


def _scores(q_AHQd: Tensor, k_AHKd: Tensor, is_causal: bool, scale: float) -> Tensor:
    score_AHQK = (q_AHQd.float() @ k_AHKd.float().transpose(-1, -2)) * scale
    if not is_causal:
        return score_AHQK
    is_hidden = torch.ones(score_AHQK.shape[-2:], dtype=torch.bool).triu(1)
    return score_AHQK.masked_fill(is_hidden, -math.inf)


def _product_in_float32(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    assert a.dtype == b.dtype and a.dtype in (torch.float16, torch.bfloat16)
    assert out_dtype == torch.float32
    return a.float() @ b.float()


def _packed_attention(
    q_NJd: Tensor, k_KJd: Tensor, v_KJd: Tensor, begin_q: Tensor, begin_k: Tensor,
    most_queries: int, most_keys: int, *_others: Any, **_settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attend within sequences end to end; flash attention's variable-length call."""
    assert q_NJd.dtype in (torch.float16, torch.bfloat16)
    out_NJd = torch.zeros_like(q_NJd)
    lse_JN = torch.full((q_NJd.shape[1], len(q_NJd)), -math.inf)
    for rows, keys in _sequences(begin_q, begin_k, most_queries, most_keys):
        if q_NJd[rows].numel() and k_KJd[keys].numel():
            scale = q_NJd.shape[2] ** -0.5
            out_NJd[rows], lse_JN[:, rows] = _within(q_NJd[rows], k_KJd[keys], v_KJd[keys], scale)
    return out_NJd, lse_JN, torch.zeros(0)


def _efficient_packed_attention(
    q_1NJd: Tensor, k_1KJd: Tensor, v_1KJd: Tensor, bias: Tensor | None,
    begin_q: Tensor, begin_k: Tensor, most_queries: int, most_keys: int,
    dropout: float, mask: int, compute_log_sumexp: bool, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:  # fmt: skip
    """Attend within sequences end to end; memory-efficient attention's variable-length call.

    Log-sums of a sequence are padded with what nobody may read: NaN here, infinity or nothing on a card.
    """
    assert bias is None and not dropout and not mask and compute_log_sumexp and len(q_1NJd) == 1
    assert q_1NJd.dtype == k_1KJd.dtype == v_1KJd.dtype
    for x in (q_1NJd, k_1KJd, v_1KJd):
        assert x.stride(3) == 1 and x.stride(2) % 8 == x.stride(1) % 8 == 0, "the aligned kernel"
    out_1NJd = torch.zeros_like(q_1NJd)
    padded = -(-most_queries // 32) * 32
    lse_LJQ = torch.full((len(begin_q) - 1, q_1NJd.shape[2], padded), math.nan)
    sequences = _sequences(begin_q, begin_k, most_queries, most_keys)
    for number, (rows, keys) in enumerate(sequences):
        if q_1NJd[0, rows].numel():
            q, k, v = q_1NJd[0, rows], k_1KJd[0, keys], v_1KJd[0, keys]
            out_1NJd[0, rows], lse_LJQ[number, :, : len(q)] = _within(q, k, v, scale)
    zero = torch.zeros((), dtype=torch.long)  # seed and offset of dropout
    return out_1NJd, lse_LJQ, zero, zero.clone(), most_queries, most_keys


def _sequences(
    begin_q: Tensor, begin_k: Tensor, most_queries: int, most_keys: int
) -> list[tuple[slice, slice]]:
    """Return the queries and keys of each sequence."""
    assert begin_q.dtype == begin_k.dtype == torch.int32 and len(begin_q) == len(begin_k)
    spans = [[slice(*span) for span in pairwise(begin.tolist())] for begin in (begin_q, begin_k)]
    sequences = list(zip(*spans, strict=True))
    assert all(rows.stop - rows.start <= most_queries for rows, _ in sequences)
    assert all(keys.stop - keys.start <= most_keys for _, keys in sequences)
    return sequences


def _within(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention of one sequence and its log-sums, [J, queries]."""
    score = torch.einsum("qjd,kjd->jqk", q.float(), k.float()) * scale
    out = torch.einsum("jqk,kjd->qjd", score.softmax(-1), v.float())
    return out.to(q.dtype), score.logsumexp(-1)


@cache
def computed_on_card() -> dict[Any, Callable[..., Any]]:
    """Return what computes the operations that only CUDA has."""
    import torch.nn.attention.varlen  # its operator is registered here

    return {
        aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_attention_backward,
        aten.mm.dtype: _product_in_float32,
        aten._efficient_attention_forward.default: _efficient_packed_attention,
        torch.ops.torch_attn._varlen_attn.default: _packed_attention,
    }
