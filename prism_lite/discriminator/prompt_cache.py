"""Prompt states of the discriminator's frozen trunk, kept between steps.

Experts act on completion tokens only, so a prompt's keys and values are the same for teacher and
students, for both parts and at every step: they are computed once and need no backward.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachetools import LRUCache

from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.models.packing import PromptStates, greedy_batches, prompt_states
from prism_lite.models.prompts import Prompt


class PromptStateCache:
    """States of the latest prompts, up to `max_bytes`; emptied when the trunk's weights change."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._states: LRUCache[Prompt, PromptStates] = LRUCache(
            max_bytes, getsizeof=lambda states: states.num_bytes
        )
        self._trunk: tuple[tuple[int, int], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of the states that are kept."""
        return int(self._states.currsize)

    def states(self, backbone: Backbone, prompts: Sequence[Prompt]) -> list[PromptStates]:
        """Return the states of each prompt, in order. Call it inside role "discriminator".

        Misses are encoded together, at most `model.max_pack_tokens` at a time.
        """
        trunk = tuple(
            (id(p), p._version) for n, p in backbone.core.named_parameters() if f".{TRUNK}." in n
        )
        if trunk != self._trunk:
            self._states.clear()
            self._trunk = trunk
        unique = dict.fromkeys(prompts)
        states_of = {prompt: self._states[prompt] for prompt in unique if prompt in self._states}
        missing = [prompt for prompt in unique if prompt not in states_of]
        for chunk in greedy_batches(missing, len, backbone.config.max_pack_tokens):
            pictures = [picture for prompt in chunk for picture in prompt.pictures]
            features = backbone.vision.features(pictures)
            encoded = prompt_states(backbone.core, chunk, features, attention=backbone.attention)
            for prompt, states in zip(chunk, encoded, strict=True):
                states_of[prompt] = states
                if states.num_bytes <= self._states.maxsize:
                    self._states[prompt] = states
        return [states_of[prompt] for prompt in prompts]
