"""Cards: memory, stated and sustained speeds, and the time of an operation at the sustained ones.

Sustained speeds are what long matrix products and copies reach in published measurements of these cards, a
third (T4, which lowers its clock) to nine tenths of what the maker states. Nothing here was measured by
this project; a `gpu-check` record of the card replaces it (hours.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True)
class Card:
    """A card, and the host that usually has it.

    Attributes:
        gib: memory that programs see.
        capability: CUDA's compute capability.
        tflops: sustained 16-bit products summed in 32 bit, 1e12 per second.
        tflops32: the same of float32 products without TF32.
        gb_per_s: sustained memory bandwidth, 1e9 bytes per second.
        kernel_us: time between two kernels that do next to nothing, without a CUDA graph.
        host_us: what the host needs to issue an operation from Python, microseconds: more on the slow
            cores of servers and Colab than on a desktop.
    """

    name: str
    gib: float
    capability: tuple[int, int]
    tflops: float
    tflops32: float
    gb_per_s: float
    kernel_us: float
    host_us: float


CARDS = (
    Card("RTX 3060", 12, (8, 6), 22, 9, 310, 3.0, 9),
    Card("T4", 15, (7, 5), 22, 4, 270, 4.0, 16),
    Card("RTX 4090", 24, (8, 9), 120, 50, 900, 2.5, 9),
    Card("RTX 5090", 32, (12, 0), 150, 60, 1550, 2.5, 9),
    Card("A100 40 GB", 40, (8, 0), 200, 15, 1350, 3.0, 16),
    Card("A100 80 GB", 80, (8, 0), 200, 15, 1750, 3.0, 16),
)
_SUMMED_IN_32_BIT = (torch.float16, torch.bfloat16)
_FUSED_ROWS = 64  # bitsandbytes 0.50: so many rows may be multiplied with packed weights
# Operations that read or write some rows of a tensor: not all of it moves.
_BY_INDEX = ("aten.index", "aten.embedding", "aten.gather")


def card_of(gib: float) -> Card:
    """Return a card of this memory with the speeds of the known card nearest in memory."""
    nearest = min(CARDS, key=lambda card: abs(math.log(card.gib / gib)))
    return replace(nearest, gib=gib)


def seconds_on(card: Card, function: Any, args: Any, tensors: Sequence[Tensor]) -> float:
    """Return the larger of arithmetic and memory traffic of one operation, at the sustained speeds.

    Args:
        args: of the operation.
        tensors: its inputs and outputs, each read or written once.
    """
    flops = _flops_of(function, args)
    is_16_bit = bool(tensors) and tensors[0].dtype in _SUMMED_IN_32_BIT
    rate = card.tflops if is_16_bit else card.tflops32
    return max(
        flops / (rate * 1e12), _bytes_of(card, function, args, tensors) / (card.gb_per_s * 1e9)
    )


def _bytes_of(card: Card, function: Any, args: Any, tensors: Sequence[Tensor]) -> float:
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    num_bytes = sum(sizes)
    if _is_by_index(function):
        # what moves is read and written; the indexed tensor counts once as input, in place as output too
        is_in_place = function._schema.is_mutable
        return 2 * max(0, num_bytes - (2 if is_in_place else 1) * sizes[0])
    if function is torch.ops.bitsandbytes.gemm_4bit.default:
        num_rows, num_weights = args[0].numel() // args[0].shape[-1], math.prod(args[2])
        # else the weight is written in 16 bit and read again; of few rows half of a large card's are
        share = 1.0 if num_rows > _FUSED_ROWS else 0.0 if card.capability < (8, 0) else 0.5
        return num_bytes + share * 2 * num_weights * args[0].element_size()
    return num_bytes


@cache
def _is_by_index(function: Any) -> bool:
    return str(function).startswith(_BY_INDEX)


def _flops_of(function: Any, args: Any) -> float:
    """Multiplications and additions of a matrix product or attention; 0 for other operations."""
    if function in (_aten.mm.default, _aten.mm.dtype, _aten.bmm.default):
        return 2.0 * args[0].numel() * args[1].shape[-1]
    if function in (_aten.addmm.default, _aten.addmm_.default):
        return 2.0 * args[1].numel() * args[2].shape[-1]
    if function is torch.ops.bitsandbytes.gemm_4bit.default:
        return 2.0 * args[0].numel() * args[2][0]  # args[2] is the weight's shape, [out, in]
    if function in (
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,  # of the tower, see Simulation
    ):
        query, key, value = args[:3]
        return 2.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    if function is _aten._scaled_dot_product_efficient_attention_backward.default:
        # Five products as large as each of the forward's two: the scores again, and the gradients
        # of values, scores, queries and keys. Keys and values are equally long.
        _, query, key, value = args[:4]
        return 5.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    return 0.0
