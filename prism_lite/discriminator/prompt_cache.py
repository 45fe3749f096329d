"""Prompt states of the discriminator's frozen trunk, kept between steps.

Experts act on completion tokens only, so a prompt's keys and values are the same for teacher and
students, for both parts and at every step: they are computed once and need no backward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.models.packing import PromptStates, prompt_states
from prism_lite.models.prompts import Prompt


class PromptStateCache:
    """States of the latest prompts, up to `max_bytes`; emptied when the trunk's weights change."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[Prompt, PromptStates] = OrderedDict()
        self._trunk: tuple[tuple[int, int], ...] = ()

    def states(self, backbone: Backbone, prompts: Sequence[Prompt]) -> list[PromptStates]:
        """States of each prompt, in order. Call it inside role "discriminator".

        Misses are encoded together, at most `model.max_pack_tokens` at a time.
        """
        trunk = tuple(
            (id(p), p._version) for n, p in backbone.core.named_parameters() if f".{TRUNK}." in n
        )
        if trunk != self._trunk:
            self._states.clear()
            self.num_bytes, self._trunk = 0, trunk
        found: dict[Prompt, PromptStates] = {}
        missing: list[list[Prompt]] = []
        room = 0
        for prompt in dict.fromkeys(prompts):
            if prompt in self._states:
                self._states.move_to_end(prompt)
                found[prompt] = self._states[prompt]
                continue
            if not missing or len(prompt) > room:
                missing.append([])
                room = backbone.config.max_pack_tokens
            missing[-1].append(prompt)
            room -= len(prompt)
        for chunk in missing:
            pictures = [picture for prompt in chunk for picture in prompt.pictures]
            features = backbone.vision.features(pictures)
            states = prompt_states(backbone.core, chunk, features, attention=backbone.attention)
            for prompt, state in zip(chunk, states, strict=True):
                found[prompt] = state
                self._keep(prompt, state)
        return [found[prompt] for prompt in prompts]

    def _keep(self, prompt: Prompt, state: PromptStates) -> None:
        self._states[prompt] = state
        self.num_bytes += state.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
