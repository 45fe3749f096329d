"""Picture features: while the vision tower is frozen it runs once per picture.

Shape letters: N visual tokens of one picture, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from prism_lite.models import placement
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.prompts import pixel_limits
from prism_lite.types import Picture

PictureKey = tuple[str, int | None, int | None]  # a picture's id and its own pixel limits


@dataclass(frozen=True, eq=False)
class PictureFeatures:
    """What the decoder needs of a picture.

    Attributes:
        merged_ND: replaces the placeholder embeddings.
        deepstack_ND: one per DeepStack level, added to the first decoder layers' outputs.
    """

    merged_ND: Tensor
    deepstack_ND: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return self.merged_ND.nbytes + sum(level.nbytes for level in self.deepstack_ND)


class VisionCache:
    """Features of recent pictures.

    They belong to one state of the vision tower: when its weights change, the cache is emptied. Features
    of a tower that is trained are not cached.
    """

    def __init__(
        self,
        core: Core,
        image_processor: Any,
        *,
        max_pictures: int,
        max_bytes: int = 2**62,
        on_cpu: bool = False,
    ) -> None:
        """
        Args:
            on_cpu: keep the tower in the CPU's memory between pictures.
        """
        self._core = core
        self._image_processor = image_processor
        # A picture counts as its share of `max_pictures` at least, so that both limits hold.
        share = max_bytes // max_pictures
        self._features: LRUCache[PictureKey, PictureFeatures] = LRUCache(
            max_bytes, getsizeof=lambda features: max(share, features.num_bytes)
        )
        self._tower_version: tuple[tuple[int, int], ...] = ()
        self._parts_on_cpu = family.movable_tower_parts(core) if on_cpu else []
        placement.modules_to_cpu(self._parts_on_cpu)

    def features(self, pictures: Sequence[Picture]) -> list[PictureFeatures]:
        """Return features of each picture, in order; misses go through the tower together.

        Raises:
            ValueError: a picture cannot be read.
        """
        parameters = list(family.vision_tower(self._core).parameters())
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return encode_pictures(self._core, self._image_processor, pictures) if pictures else []
        self._forget_other_towers(parameters)
        unique = {_key(picture): picture for picture in pictures}
        features_of = {key: self._features[key] for key in unique if key in self._features}
        misses = {key: picture for key, picture in unique.items() if key not in features_of}
        features_of |= self._encode(misses)
        return [features_of[_key(picture)] for picture in pictures]

    def _encode(self, misses: dict[PictureKey, Picture]) -> dict[PictureKey, PictureFeatures]:
        """Compute features that are not in memory and store them."""
        features_of: dict[PictureKey, PictureFeatures] = {}
        if misses:
            for key, encoded in zip(misses, self._run_tower([*misses.values()]), strict=True):
                # Copies: a slice would keep the features of all pictures in memory.
                features_of[key] = PictureFeatures(
                    encoded.merged_ND.clone(), tuple(x.clone() for x in encoded.deepstack_ND)
                )
                self._remember(key, features_of[key])
        return features_of

    @torch.no_grad()
    def _run_tower(self, pictures: Sequence[Picture]) -> list[PictureFeatures]:
        with self.tower_on_device():
            return encode_pictures(self._core, self._image_processor, pictures)

    @contextmanager
    def tower_on_device(self) -> Iterator[None]:
        """Have the tower on the model's device inside, for code that runs the model with pictures."""
        if not self._parts_on_cpu:
            yield
            return
        with placement.on_card(self._parts_on_cpu, self._core.device):
            yield

    def put(self, picture: Picture, features: PictureFeatures) -> None:
        """Store features that were computed elsewhere, for the tower's current weights."""
        self._forget_other_towers(list(family.vision_tower(self._core).parameters()))
        self._remember(_key(picture), features)

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()

    def _remember(self, key: PictureKey, features: PictureFeatures) -> None:
        self._features.pop(key, None)
        if features.num_bytes <= self._features.maxsize:
            self._features[key] = features

    def _forget_other_towers(self, parameters: Sequence[Tensor]) -> None:
        version = tuple((id(p), p._version) for p in parameters)
        if version != self._tower_version:
            self._features.clear()
            self._tower_version = version


def _key(picture: Picture) -> PictureKey:
    return picture.id, picture.min_pixels, picture.max_pixels


def encode_pictures(
    core: Core, image_processor: Any, pictures: Sequence[Picture]
) -> list[PictureFeatures]:
    """Run the vision tower on pictures, all of them in one pass; differentiable in its weights."""
    inputs = pixel_inputs(image_processor, pictures)
    encoded = family.encode_pixels(core, inputs["pixel_values"], inputs["image_grid_thw"])
    return [PictureFeatures(merged_ND, deepstack) for merged_ND, deepstack in encoded]


def pixel_inputs(image_processor: Any, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Return `pixel_values` and `image_grid_thw` of pictures within their limits; empty without any."""
    encoded = []
    for picture in pictures:
        least, most = pixel_limits(picture, image_processor)
        size = {"shortest_edge": least, "longest_edge": most}
        encoded.append(image_processor(images=[picture.open()], size=size, return_tensors="pt"))
    names = ("pixel_values", "image_grid_thw") if encoded else ()
    return {name: torch.cat([one[name] for one in encoded]) for name in names}
