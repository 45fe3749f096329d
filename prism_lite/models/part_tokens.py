"""What the discriminator reads of a completion: the tokens of its two parts, cut where they are too long.

A cut part is judged without its end, and where the teacher's parts are longer than the students' the cut
alone tells them apart: content then counts for nothing (METHOD section 5).

Shape letters: C tokens of one part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts

CUT_WARNING = 0.01  # share of cut parts above which a person is warned


@dataclass(frozen=True, eq=False)
class PartTokens:
    """The perception and the reasoning part of one completion.

    Attributes:
        branches: token ids, int64 [C] each, closed by the sentinel.
        lengths: how many tokens they would have uncut.
    """

    branches: tuple[Tensor, Tensor]
    lengths: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.branches))

    @property
    def is_cut(self) -> bool:
        return self.num_tokens < sum(self.lengths)


def part_tokens(backbone: Backbone, config: DiscriminatorConfig, parts: Parts) -> PartTokens:
    """Tokenise the parts of a completion as the discriminator reads them."""
    reasoning = parts.reasoning
    if config.reasoning_sees_caption:
        reasoning = f"{parts.perception}\n{reasoning}"
    whole = [backbone.tokenize(text, end=False) for text in (parts.perception, reasoning)]
    sentinel = torch.tensor([backbone.end_id])
    perception_C, reasoning_C = (
        torch.cat([ids_C[: config.max_part_tokens - 1], sentinel]) for ids_C in whole
    )
    return PartTokens((perception_C, reasoning_C), (len(whole[0]) + 1, len(whole[1]) + 1))


def read_text(backbone: Backbone, parts: Parts, tokens: PartTokens) -> str:
    """The text of what is read: of a cut part, what is left of it."""
    if not tokens.is_cut:
        return parts.render()
    return "\n".join(backbone.tokenizer.decode(branch_C[:-1]) for branch_C in tokens.branches)


def share_cut(lengths: Sequence[int], max_part_tokens: int) -> float:
    """Share of parts of these uncut lengths that are cut."""
    return sum(length > max_part_tokens for length in lengths) / len(lengths)


def cut_metrics(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> dict[str, float]:
    """Share of each side's parts that are cut, of their uncut lengths."""
    return {
        "disc/cut_teacher": share_cut(teacher, max_part_tokens),
        "disc/cut_student": share_cut(student, max_part_tokens),
    }


def about_cuts(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> tuple[float, str]:
    """The larger side's share of cut parts, and one sentence about both and what would hold them."""
    shares = [share_cut(lengths, max_part_tokens) for lengths in (teacher, student)]
    enough = max(
        sorted(lengths)[math.ceil((1 - CUT_WARNING) * len(lengths)) - 1]
        for lengths in (teacher, student)
    )
    return max(shares), (
        f"{shares[0]:.1%} of the teacher's and {shares[1]:.1%} of the student's parts are longer than "
        f"discriminator.max_part_tokens = {max_part_tokens} and are judged without their end"
        + (
            f": where they are cut tells the sides apart without content. Set it to {enough}, which "
            f"holds {1 - CUT_WARNING:.0%} of them"
            if max(shares) > CUT_WARNING
            else ""
        )
    )
