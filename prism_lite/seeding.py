"""Random numbers by name: every choice has a generator seeded by (seed, stage, step, purpose, ...).

So a resumed run draws what an uninterrupted one would have drawn, without saving any state.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def seed_of(*name: object) -> int:
    """A 63-bit seed from a name; equal names give equal seeds on every machine."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*name: object) -> torch.Generator:
    """A CPU generator of its own for a name."""
    import torch

    return torch.Generator().manual_seed(seed_of(*name))


def batch_at(items: Sequence[T], step: int, batch_size: int, *name: object) -> list[T]:
    """The batch of a step when `items` are read in an order shuffled anew each epoch.

    Batches run on over epoch borders, so every item is used equally often.
    """
    batch = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(items))
        order = _shuffled(len(items), seed_of(*name, "epoch", epoch))
        batch.append(items[order[place]])
    return batch


@functools.lru_cache(maxsize=8)  # epochs that a step of some stage reads; a step asks for 1 or 2
def _shuffled(num_items: int, seed: int) -> tuple[int, ...]:
    order = list(range(num_items))
    Random(seed).shuffle(order)
    return tuple(order)
