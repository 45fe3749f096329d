"""Cards: their memory and stated peaks, and the rough time of an operation at these.

A time is the larger of arithmetic at the stated peak and memory traffic at the stated bandwidth, one
operation after another, without fusion and without launch times. It is predicted, never measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True)
class Card:
    """A card as its maker states it.

    Attributes:
        gib: memory that programs see.
        tflops: dense 16-bit products summed in 32 bit, 1e12 per second.
        gb_per_s: memory bandwidth, 1e9 bytes per second.
    """

    name: str
    gib: float
    tflops: float
    gb_per_s: float


CARDS = (
    Card("RTX 3060", 12, 25.6, 360),
    Card("T4", 15, 65, 320),
    Card("RTX 4090", 24, 165, 1008),
    Card("RTX 5090", 32, 210, 1792),
    Card("A100 40 GB", 40, 312, 1555),
    Card("A100 80 GB", 80, 312, 2039),
)


def card_of(gib: float) -> Card:
    """Return a card of this memory with the stated speeds of the known card nearest in memory."""
    nearest = min(CARDS, key=lambda card: abs(math.log(card.gib / gib)))
    return replace(nearest, gib=gib)


def seconds_on(card: Card, function: Any, args: Any, tensors: Sequence[Tensor]) -> float:
    """Estimate the seconds of one operation.

    Args:
        args: of the operation.
        tensors: its inputs and outputs, each read or written once.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(_flops_of(function, args) / (card.tflops * 1e12), num_bytes / (card.gb_per_s * 1e9))


def _flops_of(function: Any, args: Any) -> float:
    """Multiplications and additions of a matrix product or attention; 0 for other operations."""
    if function in (_aten.mm.default, _aten.bmm.default):
        return 2.0 * args[0].numel() * args[1].shape[-1]
    if function is _aten.addmm.default:
        return 2.0 * args[1].numel() * args[2].shape[-1]
    if function is torch.ops.bitsandbytes.gemm_4bit.default:
        return 2.0 * args[0].numel() * args[2][0]  # args[2] is the weight's shape, [out, in]
    if function is _aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key, value = args[:3]
        return 2.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    if function is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        # Five products as large as each of the forward's two: the scores again, and the gradients
        # of values, scores, queries and keys. Keys and values are equally long.
        _, query, key, value = args[:4]
        return 5.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    return 0.0
