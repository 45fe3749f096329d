"""Earlier rollouts for the discriminator's batch, so that it does not forget what it has mended."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from prism_lite.parts import Parts
from prism_lite.types import Group, Sample

Replayed = tuple[Sample, tuple[Parts, ...]]


class Replay:
    """The well-formed rollouts of the last prompts of alignment; goes into its checkpoints."""

    def __init__(self, samples: Sequence[Sample], *, num_prompts: int) -> None:
        self._samples = {sample.key: sample for sample in samples}
        self._num_prompts = num_prompts
        self._kept: list[Replayed] = []

    def draw(self, count: int, rng: Random) -> list[Replayed]:
        """`count` of the kept prompts, or all where there are fewer."""
        return rng.sample(self._kept, min(count, len(self._kept)))

    def add(self, groups: Sequence[Group]) -> None:
        """Keep these groups; the oldest go."""
        with_students = [(group.sample, group.students) for group in groups]
        self._kept += [item for item in with_students if item[1]]
        self._kept = self._kept[-self._num_prompts :]

    def state(self) -> list[Any]:
        """JSON-able: the prompt's key and its students' parts."""
        return [
            [sample.key, [[p.caption, p.think, p.answer] for p in students]]
            for sample, students in self._kept
        ]

    def load(self, state: Sequence[Any]) -> None:
        """Take up what `state` gave."""
        self._kept = [
            (self._samples[key], tuple(Parts(*bodies) for bodies in students))
            for key, students in state
        ]
