"""Picture features: the vision tower runs once per picture while it is frozen.

Shape letters: N visual tokens of one picture, D hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_lite.models.placement import move, vision_parts, visiting
from prism_lite.models.prompts import pixel_limits
from prism_lite.types import Picture


@dataclass(frozen=True, eq=False)
class PictureFeatures:
    """What the decoder needs of a picture.

    Attributes:
        merged_ND: replaces the placeholder embeddings.
        deepstack_ND: one per DeepStack level, added to the first decoder layers' outputs.
    """

    merged_ND: Tensor
    deepstack_ND: tuple[Tensor, ...]


class VisionCache:
    """Features of the last `max_pictures` pictures, by picture id.

    With `on_cpu` the tower waits in the CPU's memory between pictures.

    Correct only while the vision tower does not change; `features` asserts that it is frozen.
    """

    def __init__(
        self, core: Any, image_processor: Any, *, max_pictures: int, on_cpu: bool = False
    ) -> None:
        self._core = core
        self._image_processor = image_processor
        self._max_pictures = max_pictures
        self._visitors = vision_parts(core) if on_cpu else []
        move(self._visitors, "cpu")
        self._features: OrderedDict[str, PictureFeatures] = OrderedDict()

    def features(self, pictures: Sequence[Picture]) -> list[PictureFeatures]:
        """Features of each picture, in order; misses go through the tower together.

        Raises:
            ValueError: a picture cannot be read.
        """
        assert not any(p.requires_grad for p in self._core.model.visual.parameters())
        unique = {picture.id: picture for picture in pictures}
        missing = [picture for id_, picture in unique.items() if id_ not in self._features]
        if missing:
            with torch.no_grad(), visiting(self._visitors, self._core.device):
                encoded = encode_pictures(self._core, self._image_processor, missing)
            for picture, features in zip(missing, encoded, strict=True):
                self._features[picture.id] = features
        wanted = [self._features[picture.id] for picture in pictures]
        for id_ in unique:
            self._features.move_to_end(id_)
        while len(self._features) > self._max_pictures:
            self._features.popitem(last=False)
        return wanted


def encode_pictures(
    core: Any, image_processor: Any, pictures: Sequence[Picture]
) -> list[PictureFeatures]:
    """Run the vision tower on pictures, all of them in one pass; differentiable in its weights."""
    device = core.device
    inputs = pixel_inputs(image_processor, pictures)
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    return by_picture(core.model.get_image_features(pixels.to(device), grids.to(device)))


def by_picture(output: Any) -> list[PictureFeatures]:
    """The tower's output, picture by picture.

    transformers 5.23 splits each DeepStack level like the merged features, 5.17 hands it over whole.
    """
    sizes = [len(merged) for merged in output.pooler_output]
    levels = [
        level.split(sizes) if isinstance(level, Tensor) else level
        for level in output.deepstack_features
    ]
    return [
        PictureFeatures(merged, tuple(deepstack))
        for merged, *deepstack in zip(output.pooler_output, *levels, strict=True)
    ]


def pixel_inputs(image_processor: Any, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """`pixel_values` and `image_grid_thw` of pictures, each within its own limits; empty without any."""
    encoded = []
    for picture in pictures:
        least, most = pixel_limits(picture, image_processor)
        size = {"shortest_edge": least, "longest_edge": most}
        encoded.append(image_processor(images=[picture.open()], size=size, return_tensors="pt"))
    names = ("pixel_values", "image_grid_thw") if encoded else ()
    return {name: torch.cat([one[name] for one in encoded]) for name in names}
