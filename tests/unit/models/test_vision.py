"""Picture features: once while the tower is frozen, from memory; never stale, never too many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prism_lite.models.vision import VisionCache, encode_pictures
from prism_lite.types import Picture


def pictures_of(num: int, seed: int = 0) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        Picture(f"{seed}-{i}", Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)))
        for i in range(num)
    ]


def cache_of(backbone, **limits: Any) -> VisionCache:
    settings: dict[str, Any] = {"max_pictures": 100} | limits
    return VisionCache(backbone.core, backbone.processor.image_processor, **settings)


@pytest.fixture
def encoded(monkeypatch):
    """Ids of the pictures that went through the tower, call by call."""
    from prism_lite.models import vision

    calls = []

    def counted(core, image_processor, pictures):
        calls.append([picture.id for picture in pictures])
        return encode_pictures(core, image_processor, pictures)

    monkeypatch.setattr(vision, "encode_pictures", counted)
    return calls


def check_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.merged_ND, other.merged_ND, rtol=0, atol=1e-6)
        for level, other_level in zip(one.deepstack_ND, other.deepstack_ND, strict=True):
            torch.testing.assert_close(level, other_level, rtol=0, atol=1e-6)


def test_each_picture_is_encoded_once_and_the_latest_stay(backbone, encoded):
    first, second, third = pictures_of(3)
    expected = encode_pictures(
        backbone.core, backbone.processor.image_processor, [first, second, first]
    )
    cache = cache_of(backbone, max_pictures=2)
    check_equal(cache.features([first, second, first]), expected)
    assert encoded == [["0-0", "0-1"]]
    cache.features([first])
    cache.features([third])  # the second was used longest ago
    cache.features([first, third])
    cache.features([second])
    assert encoded[1:] == [["0-2"], ["0-1"]]


def test_memory_is_bounded_in_bytes(backbone, encoded):
    pictures = pictures_of(3)
    size = cache_of(backbone).features(pictures[:1])[0].num_bytes
    assert size == 6 * 64 * 4 * (1 + 2)  # tokens x width x float32, merged and two levels
    cache = cache_of(backbone, max_bytes=2 * size)
    cache.features(pictures)
    assert cache._features.currsize == 2 * size
    kept = next(iter(cache._features.values())).merged_ND
    assert kept.untyped_storage().nbytes() == kept.nbytes  # not a window into all three


def test_the_same_picture_at_another_size_is_another_entry(backbone):
    image = pictures_of(1)[0].source
    large, small = Picture("a", image), Picture("a", image, max_pixels=32 * 32)
    cache = cache_of(backbone)
    assert [f.merged_ND.shape[0] for f in cache.features([large, small, large])] == [6, 1, 6]


def test_a_changed_tower_forgets_and_a_trained_one_is_not_cached(backbone, encoded):
    pictures = pictures_of(1)
    cache = cache_of(backbone)
    before = cache.features(pictures)[0].merged_ND
    weight = backbone.core.model.visual.merger.linear_fc2.weight
    with torch.no_grad():
        weight.mul_(1.5)
    after = cache.features(pictures)[0].merged_ND
    assert not torch.allclose(before, after)
    assert len(encoded) == 2
    weight.requires_grad_(True)
    trained = cache.features(pictures)[0].merged_ND
    (gradient,) = torch.autograd.grad(trained.square().sum(), weight)
    assert gradient.any()
    cache.features(pictures)
    assert len(encoded) == 4
