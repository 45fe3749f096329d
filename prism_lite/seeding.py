"""Random numbers by name: every choice has a generator seeded by (seed, stage, step, purpose, ...).

So a resumed run draws the numbers of an uninterrupted one without any saved state.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    from prism_lite.types import Sample

T = TypeVar("T")


def seed_of(*name: object) -> int:
    """Return the 63-bit seed of a name; equal names have equal seeds on every machine."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*name: object) -> torch.Generator:
    """Return a new CPU generator, seeded by a name."""
    import torch

    return torch.Generator().manual_seed(seed_of(*name))


def batch_at(items: Sequence[T], step: int, batch_size: int, *name: object) -> list[T]:
    """Return the batch of a step when `items` are shuffled again in each epoch.

    Batches continue across the ends of epochs, so every item is used equally often.
    """
    return [items[number] for _, number in places_at(len(items), step, batch_size, *name)]


def places_at(num_items: int, step: int, batch_size: int, *name: object) -> list[tuple[int, int]]:
    """Return the batch of `batch_at` as epochs and numbers of items."""
    places = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, num_items)
        places.append((epoch, epoch_order(num_items, epoch, *name)[place]))
    return places


def samples_at(samples: Sequence[Sample], step: int, count: int, *name: object) -> list[Sample]:
    """Return the rows of `batch_at`; one with several teacher completions has the next in each epoch."""
    places = places_at(len(samples), step, count, *name)
    return [samples[number].with_teacher(epoch) for epoch, number in places]


def epoch_order(num_items: int, epoch: int, *name: object) -> tuple[int, ...]:
    """Return the order in which `batch_at` uses the items in an epoch, by their numbers."""
    return _shuffled(num_items, seed_of(*name, "epoch", epoch))


@functools.lru_cache(maxsize=8)  # a step reads one or two epochs of its stage
def _shuffled(num_items: int, seed: int) -> tuple[int, ...]:
    order = list(range(num_items))
    Random(seed).shuffle(order)
    return tuple(order)
