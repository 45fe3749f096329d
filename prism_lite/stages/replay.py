"""Earlier rollouts for the discriminator's batch, against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from prism_lite.parts import Parts
from prism_lite.types import Group, Sample


class Replay:
    """The well-formed rollouts of alignment's most recent prompts; part of its checkpoints."""

    def __init__(self, samples: Sequence[Sample], *, num_prompts: int) -> None:
        self._samples = {sample.key: sample for sample in samples}
        self._num_prompts = num_prompts
        self._kept: list[tuple[Sample, tuple[Parts, ...]]] = []

    def sample(self, count: int, rng: Random) -> list[tuple[Sample, tuple[Parts, ...]]]:
        """Choose `count` of the kept prompts, or all if there are fewer."""
        return rng.sample(self._kept, min(count, len(self._kept)))

    def add(self, groups: Sequence[Group]) -> None:
        """Keep these groups; the oldest ones are dropped."""
        self._kept += [(group.sample, group.students) for group in groups if group.students]
        self._kept = self._kept[-self._num_prompts :]

    def state(self) -> list[Any]:
        """Return JSON-able content: each prompt's key and the parts of its students."""
        return [
            [sample.key, [[p.caption, p.think, p.answer] for p in students]]
            for sample, students in self._kept
        ]

    def load(self, state: Sequence[Any]) -> None:
        """Restore what `state` returned."""
        self._kept = [
            (self._samples[key], tuple(Parts(*bodies) for bodies in students))
            for key, students in state
        ]
