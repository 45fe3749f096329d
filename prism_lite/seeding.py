"""Random numbers by name: every choice has a generator seeded by (seed, stage, step, purpose, ...).

So a resumed run draws what an uninterrupted one would have drawn, without saving any state.
"""

from __future__ import annotations

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
    orders: dict[int, list[int]] = {}
    batch = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(items))
        if epoch not in orders:
            orders[epoch] = list(range(len(items)))
            Random(seed_of(*name, "epoch", epoch)).shuffle(orders[epoch])
        batch.append(items[orders[epoch][place]])
    return batch
