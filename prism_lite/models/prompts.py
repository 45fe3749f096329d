"""From a Sample to the tokens and M-RoPE positions of its prompt.

Shape letters: P prompt tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.types import Picture, Sample

_IMAGE_MARK = "<image>"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised prompt: everything before the completion, picture placeholders expanded.

    Attributes:
        id: the sample's id.
        token_ids_P: int64 [P].
        position_ids_3P: int64 [3, P], Qwen3-VL's temporal, height and width positions.
        next_position: where the completion's positions start, the same on all three axes.
        is_picture_P: bool [P], True at visual tokens.
        pictures: in the order of their visual tokens.
    """

    id: str
    token_ids_P: Tensor
    position_ids_3P: Tensor
    next_position: int
    is_picture_P: Tensor
    pictures: tuple[Picture, ...]

    def __len__(self) -> int:
        return self.token_ids_P.shape[0]


def _chat_messages(sample: Sample) -> list[dict[str, Any]]:
    """Return the conversation as chat templates take it, pictures at their `<image>` marks.

    Raises:
        ValueError: the numbers of marks and pictures differ; names the row.
    """
    num_marks = sum(turn.text.count(_IMAGE_MARK) for turn in sample.turns)
    if num_marks not in (0, len(sample.pictures)):
        raise ValueError(
            f"{sample.source or sample.id}: {num_marks} {_IMAGE_MARK} marks for "
            f"{len(sample.pictures)} pictures. Give one mark per picture, or none (pictures then "
            "come first)."
        )
    messages: list[dict[str, Any]] = []
    unplaced = len(sample.pictures) if num_marks == 0 else 0
    for turn in sample.turns:
        content: list[dict[str, Any]] = []
        if turn.role == "user" and unplaced:
            content += [{"type": "image"}] * unplaced
            unplaced = 0
        for i, text in enumerate(turn.text.split(_IMAGE_MARK)):
            content += [{"type": "image"}] if i else []
            content += [{"type": "text", "text": text}] if text else []
        messages.append({"role": turn.role, "content": content})
    return messages


def encode_prompt(sample: Sample, *, core: Core, processor: Any, max_tokens: int) -> Prompt:
    """Tokenise a prompt and place it on the three M-RoPE axes.

    Args:
        core: the model, which computes the positions.
        processor: the model's processor.
        max_tokens: limit of a prompt. Prompts are never truncated: visual tokens would be lost.

    Raises:
        ValueError: unreadable picture, marks without pictures, or too long a prompt; names the row.
    """
    tokenizer, pictures = processor.tokenizer, processor.image_processor
    text = tokenizer.apply_chat_template(
        _chat_messages(sample), tokenize=False, add_generation_prompt=True
    )
    grids = [
        family.picture_grid(picture.size, pictures, *pixel_limits(picture, pictures))
        for picture in sample.pictures
    ]
    placeholder, merge = family.PICTURE_TOKEN, pictures.merge_size
    pieces = text.split(placeholder)
    if len(pieces) != len(grids) + 1:
        raise ValueError(
            f"{sample.source or sample.id}: the text itself contains {placeholder}; remove it, a picture's "
            f"place is marked with {_IMAGE_MARK}."
        )
    expanded = pieces[0]
    for grid, piece in zip(grids, pieces[1:], strict=True):
        expanded += placeholder * (math.prod(grid) // merge**2) + piece
    token_ids = torch.tensor(tokenizer(expanded, add_special_tokens=False)["input_ids"])
    if len(token_ids) > max_tokens:
        raise ValueError(
            f"{sample.source or sample.id}: the prompt has {len(token_ids)} tokens, the limit is "
            f"{max_tokens}. Raise model.max_prompt_tokens, lower model.max_pixels, or drop the row."
        )
    is_picture = token_ids == tokenizer.convert_tokens_to_ids(placeholder)
    position_ids = family.prompt_positions(core, token_ids, is_picture, grids)
    return Prompt(
        id=sample.id,
        token_ids_P=token_ids,
        position_ids_3P=position_ids,
        next_position=int(position_ids.max()) + 1,
        is_picture_P=is_picture,
        pictures=sample.pictures,
    )


def pixel_limits(picture: Picture, image_processor: Any) -> tuple[int, int]:
    """Return the least and most pixels of a resized picture: the row's limits within the model's."""
    least, most = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    most = min(most, picture.max_pixels or most)
    return min(most, max(least, picture.min_pixels or least)), most
