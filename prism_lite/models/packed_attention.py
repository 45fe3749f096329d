"""Attention over sequences of any lengths, end to end in one call: that of a token step on a card.

Torch and flash-attn have public calls that also return the log-sum, for 16 bit and compute capability 8.0.
On older cards, in float32 and with another scale than theirs, the private operator of torch's nested
tensors is called.

Shape letters: L sequences, N queries and K keys of all of them, J heads, d head size, Q most queries of a
sequence, to a multiple of 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prism_lite.models.device import OLDEST_BFLOAT16, has_flash_attn

# Queries [N, J, d], keys and values [K, J, d], where each sequence begins in N and in K (int32 [L + 1],
# with the end of the last one), most queries and keys of one -> output [N, J, d] and float32 log-sums
PackedCall = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PackedAttention:
    """Attention, not causal, of sequences end to end; a sequence may have no queries.

    Attributes:
        attend: the call.
        is_by_sequence: its log-sums are [L, J, Q], else [J, N].
    """

    attend: PackedCall
    is_by_sequence: bool

    def lse_slots(self, num_queries: Sequence[int], num_heads: int) -> Tensor:
        """Return the place of the log-sum of each query and head in all log-sums, int64 [N, J].

        Args:
            num_queries: of each sequence.
        """
        head_J, num_total = torch.arange(num_heads), sum(num_queries)
        if not self.is_by_sequence:
            return head_J * num_total + torch.arange(num_total)[:, None]
        count_L = torch.tensor(num_queries)
        sequence_N = torch.arange(len(num_queries)).repeat_interleave(count_L)
        begin_N = (count_L.cumsum(0) - count_L).repeat_interleave(count_L)
        row_NJ = sequence_N[:, None] * num_heads + head_J
        return row_NJ * _padded(max(num_queries)) + (torch.arange(num_total) - begin_N)[:, None]


def packed_attention(
    device: torch.device, dtype: torch.dtype, size: int, scale: float
) -> PackedAttention:
    """Return the attention of a token step on this card.

    flash-attn's where it is installed, else torch's public one; where neither can be called, torch's
    memory-efficient one.

    Args:
        size: of a head.
        scale: of the scores.
    """
    assert device.type == "cuda", device
    is_new = torch.cuda.get_device_capability(device) >= OLDEST_BFLOAT16
    # both are called with their own scale, whose argument has come and gone between versions
    is_their_scale = math.isclose(scale, size**-0.5)
    if not is_new or dtype not in (torch.float16, torch.bfloat16) or not is_their_scale:
        return PackedAttention(partial(_memory_efficient, scale=scale), is_by_sequence=True)
    return PackedAttention(_flash_attn if has_flash_attn() else _torch_varlen, is_by_sequence=False)


def _flash_attn(q_NJd: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    out_NJd, lse_JN, _ = flash_attn_varlen_func(q_NJd, *others, return_attn_probs=True)
    assert lse_JN.shape == (q_NJd.shape[1], q_NJd.shape[0]), lse_JN.shape
    return out_NJd, lse_JN


def _torch_varlen(q_NJd: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    out_NJd, lse_JN = varlen_attn(q_NJd, *others, return_aux=AuxRequest(lse=True))
    # not as its docstring has it
    assert lse_JN.shape == (q_NJd.shape[1], q_NJd.shape[0]), lse_JN.shape
    return out_NJd, lse_JN


def _memory_efficient(
    q_NJd: Tensor,
    k_KJd: Tensor,
    v_KJd: Tensor,
    begin_q: Tensor,
    begin_k: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    dropout, no_mask = 0.0, 0
    out_1NJd, lse_LJQ, *_ = torch.ops.aten._efficient_attention_forward(
        q_NJd[None],
        k_KJd[None],
        v_KJd[None],
        None,  # bias
        begin_q,
        begin_k,
        most_queries,
        most_keys,
        dropout,
        no_mask,
        True,  # log-sums
        scale=scale,
    )
    assert lse_LJQ.shape == (len(begin_q) - 1, q_NJd.shape[1], _padded(most_queries))
    return out_1NJd[0], lse_LJQ


def _padded(most_queries: int) -> int:
    """Return Q: the kernel pads a sequence's log-sums for its backward."""
    return -(-most_queries // 32) * 32
