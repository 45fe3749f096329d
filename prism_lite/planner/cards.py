"""Cards: their memory and stated peaks, and the rough time of an operation at these.

A time is the larger of arithmetic at the stated peak and memory traffic at the stated bandwidth, one
operation after another, with nothing fused and no launch counted. It is predicted, never measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

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
    """The stated speeds of the known card nearest in memory, with this memory."""
    nearest = min(CARDS, key=lambda card: abs(math.log(card.gib / gib)))
    return Card(nearest.name, gib, nearest.tflops, nearest.gb_per_s)


def seconds_on(card: Card) -> Callable[[Any, tuple[Any, ...], Iterable[Tensor]], float]:
    """Rough seconds of one operation on a card, as `Tracker` asks for them."""
    flops_per_s, bytes_per_s = card.tflops * 1e12, card.gb_per_s * 1e9

    def seconds(function: Any, args: tuple[Any, ...], outputs: Iterable[Tensor]) -> float:
        if getattr(function, "is_view", False):
            return 0.0
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        num_bytes = sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
        return max(flops_of(function, args) / flops_per_s, num_bytes / bytes_per_s)

    return seconds


def flops_of(function: Any, args: tuple[Any, ...]) -> float:
    """Multiplications and additions of a matrix product or attention; 0 for the rest."""
    if function in (_aten.mm.default, _aten.bmm.default):
        return 2.0 * args[0].numel() * args[1].shape[-1]
    if function is _aten.addmm.default:
        return 2.0 * args[1].numel() * args[2].shape[-1]
    if function is torch.ops.bitsandbytes.gemm_4bit.default:
        return 2.0 * args[0].numel() * args[2][0]
    if function is _aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key, value = args[:3]
        return 2.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    if function is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        _, query, key, value = args[:4]
        return 5.0 * query.numel() * (key.shape[-2] + value.shape[-2])
    return 0.0
