"""What the discriminator reads of a completion: the tokens of its two parts, cut where they are too long.

A cut part is judged without its end, and where the teacher's parts are longer than the students' the cut
alone tells them apart: content then counts for nothing (METHOD section 5).

Shape letters: C tokens of one part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts


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
