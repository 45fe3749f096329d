"""What the engine's benchmark runs on: a tiny Qwen3-VL with random weights and long picture prompts."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from prism_lite import load_recipe
from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import Backbone, load_backbone
from prism_lite.models.vision import VisionCache
from prism_lite.types import Picture, Sample, Turn
from tests.micro import fill_adapter

WIDE_VOCABULARY = 151_936  # Qwen3's
PICTURE_TOKENS = 256  # of a picture at the recipe's largest size, 512 x 512 pixels
GROUP_SIZE = 16
COMPLETION_TOKENS = 64


def make_backbone(*, vocabulary: int | None = None, quantization: str = "none") -> Backbone:
    """The tiny recipe's shape with random weights and a policy adapter that is not zero.

    Args:
        vocabulary: widen the vocabulary to this many tokens, all of which may be drawn.
    """
    config = load_recipe(
        "tiny",
        {
            "tiny.steps": 0,
            "tiny.vision_steps": 0,
            "model.quantization": quantization,
            "model.device": "cpu",
            "model.max_prompt_tokens": 8192,
            "model.max_pack_tokens": 65536,
        },
    )
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get("PRISM_LITE_CACHE")
        os.environ["PRISM_LITE_CACHE"] = cache
        backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
        if before is None:
            del os.environ["PRISM_LITE_CACHE"]
        else:
            os.environ["PRISM_LITE_CACHE"] = before
    if vocabulary is not None:
        backbone.core.resize_token_embeddings(vocabulary, mean_resizing=False)
        backbone.core.requires_grad_(False)
        for parameter in backbone.policy_parameters():
            parameter.requires_grad_(True)
    fill_adapter(backbone)
    backbone.end_id = -1  # no completion ends early: all contenders make the same number of tokens
    return backbone


def make_sample(num_tokens: int, backbone: Backbone, number: int = 0) -> Sample:
    """A prompt of exactly so many tokens: a picture of noise (at most half of them) and text."""
    side = min(16, int((num_tokens // 2) ** 0.5))
    pixels = np.random.default_rng(number).integers(0, 256, (32 * side, 32 * side, 3), np.uint8)
    picture = Picture(f"noise-{side}-{number}", Image.fromarray(pixels))

    def sample(num_digits: int) -> Sample:
        turn = Turn("user", "Add: " + "7" * num_digits)  # a digit is a token
        return Sample(f"{num_tokens}-{num_digits}-{number}", (turn,), (picture,))

    missing = num_tokens - len(backbone.prompt(sample(0)))
    found = sample(missing)
    assert len(backbone.prompt(found)) == num_tokens
    return found


def forget_pictures(backbone: Backbone) -> None:
    """Empty the picture cache, so that every timed run encodes its pictures."""
    backbone.vision = VisionCache(
        backbone.core,
        backbone.processor.image_processor,
        max_pictures=backbone.config.max_cached_pictures,
    )


def processor_inputs(backbone: Backbone, sample: Sample) -> dict[str, Any]:
    """The same prompt through the processor, for transformers and TRL."""
    text = backbone.tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": sample.question}],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    images = [picture.open() for picture in sample.pictures]
    return dict(backbone.processor(text=[text], images=images, return_tensors="pt"))
