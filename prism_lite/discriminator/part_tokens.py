"""What the discriminator reads: states of the prompts, and tokens of the two parts of a completion.

A part that is too long is cut and scored without its end. If the teacher's parts are longer than the
students', the cut alone separates the two sides and content does not matter (METHOD section 5): cuts are
counted, and warned of.

Shape letters: C tokens of one part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cachetools import LRUCache
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.models.packing import PromptStates, greedy_batches, prompt_states
from prism_lite.models.prompts import Prompt
from prism_lite.parts import CAPTION, THINK, Parts

CUT_WARNING = 0.01  # share of cut parts above which the user is warned


class PromptStateCache:
    """Prompt states of the frozen trunk, up to `max_bytes`; emptied when the trunk's weights change.

    They are the same for teacher and students, for both parts and at every step, and need no backward.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._states: LRUCache[Prompt, PromptStates] = LRUCache(
            max_bytes, getsizeof=lambda states: states.num_bytes
        )
        self._trunk_version: tuple[tuple[int, int], ...] = ()

    def states(self, backbone: Backbone, prompts: Sequence[Prompt]) -> list[PromptStates]:
        """Return the states of each prompt, in order. Call it inside role "discriminator".

        Misses are encoded together, at most `model.max_pack_tokens` at a time.
        """
        named = backbone.core.named_parameters()
        trunk_version = tuple((id(p), p._version) for name, p in named if f".{TRUNK}." in name)
        if trunk_version != self._trunk_version:
            self._states.clear()
            self._trunk_version = trunk_version
        unique = dict.fromkeys(prompts)
        states_of = {prompt: self._states[prompt] for prompt in unique if prompt in self._states}
        misses = [prompt for prompt in unique if prompt not in states_of]
        for batch in greedy_batches(misses, len, backbone.config.max_pack_tokens):
            pictures = [picture for prompt in batch for picture in prompt.pictures]
            features = backbone.vision.features(pictures)
            encoded = prompt_states(backbone.core, batch, features, attention=backbone.attention)
            for prompt, states in zip(batch, encoded, strict=True):
                states_of[prompt] = states
                if states.num_bytes <= self._states.maxsize:
                    self._states[prompt] = states
        return [states_of[prompt] for prompt in prompts]


@dataclass(frozen=True, eq=False)
class PartTokens:
    """The perception and the reasoning part of one completion.

    Attributes:
        branches: token ids, int64 [C] each, closed by the sentinel.
        lengths: number of tokens of each before the cut.
    """

    branches: tuple[Tensor, Tensor]
    lengths: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.branches))

    @property
    def is_cut(self) -> bool:
        return self.num_tokens < sum(self.lengths)


def part_texts(config: DiscriminatorConfig, parts: Parts) -> tuple[str, str]:
    """Return the texts of the perception and of the reasoning part as the discriminator reads them."""
    if config.reasoning_sees_caption:
        return parts.perception, f"{parts.perception}\n{parts.reasoning}"
    return parts.perception, parts.reasoning


def part_tokens(backbone: Backbone, config: DiscriminatorConfig, parts: Parts) -> PartTokens:
    """Tokenise the parts of a completion as the discriminator reads them."""
    uncut = [backbone.tokenize(text, end=False) for text in part_texts(config, parts)]
    sentinel = torch.tensor([backbone.end_id])
    perception_C, reasoning_C = (
        torch.cat([ids_C[: config.max_part_tokens - 1], sentinel]) for ids_C in uncut
    )
    return PartTokens((perception_C, reasoning_C), (len(uncut[0]) + 1, len(uncut[1]) + 1))


def num_opening_tokens(backbone: Backbone, config: DiscriminatorConfig) -> tuple[int, int]:
    """Count the tokens of the opening tag of the perception and of the reasoning part."""
    first_of_reasoning = CAPTION if config.reasoning_sees_caption else THINK
    perception_C, reasoning_C = (
        backbone.tokenize(f"<{name}>", end=False) for name in (CAPTION, first_of_reasoning)
    )
    return len(perception_C), len(reasoning_C)


def read_text(backbone: Backbone, parts: Parts, tokens: PartTokens) -> str:
    """Return the text that is read: the completion, or what the cut leaves of its parts."""
    if not tokens.is_cut:
        return parts.render()
    return "\n".join(backbone.tokenizer.decode(branch_C[:-1]) for branch_C in tokens.branches)


def cut_metrics(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> dict[str, float]:
    """Compute the share of each side's parts that are cut from their uncut lengths."""
    return {
        "disc/cut_teacher": _share_cut(teacher, max_part_tokens),
        "disc/cut_student": _share_cut(student, max_part_tokens),
    }


def about_cuts(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> tuple[float, str]:
    """Return the larger side's share of cut parts, and a sentence on both and on the limit they need."""
    teacher_share, student_share = (
        _share_cut(side, max_part_tokens) for side in (teacher, student)
    )
    message = (
        f"{teacher_share:.1%} of the teacher's and {student_share:.1%} of the student's parts are longer "
        f"than discriminator.max_part_tokens = {max_part_tokens} and are judged without their end"
    )
    share = max(teacher_share, student_share)
    if share > CUT_WARNING:
        enough = max(
            sorted(side)[math.ceil((1 - CUT_WARNING) * len(side)) - 1]
            for side in (teacher, student)
        )
        message += (
            ": where they are cut separates the sides regardless of content. Set it to "
            f"{enough}, which holds {1 - CUT_WARNING:.0%} of them"
        )
    return share, message


def _share_cut(lengths: Sequence[int], max_part_tokens: int) -> float:
    return sum(length > max_part_tokens for length in lengths) / len(lengths)
