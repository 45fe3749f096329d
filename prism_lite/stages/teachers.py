"""Batches of rows with a teacher: a row with several teacher completions has the next one in each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from prism_lite.seeding import places_at
from prism_lite.types import Sample


def samples_at(samples: Sequence[Sample], step: int, count: int, *name: object) -> list[Sample]:
    """Return the rows of a step, those of `batch_at`, each with the teacher completion of its epoch."""
    places = places_at(len(samples), step, count, *name)
    return [samples[number].with_teacher(epoch) for epoch, number in places]
