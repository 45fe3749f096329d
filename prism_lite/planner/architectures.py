"""Sizes of the published Qwen3-VL models, so that a plan needs no download."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_lite.config import ModelConfig, RunConfig

IMAGE_TOKEN = 151655  # Qwen's "<|image_pad|>"
# Language model: hidden, intermediate, layers, heads; whether the head shares the embedding's weight.
# Vision tower: hidden, intermediate, layers, layers whose states feed DeepStack.
_TOWER_OF_2B = (1024, 4096, 24, (5, 11, 17))
_PUBLISHED = {
    "2b": ((2048, 6144, 28, 16), True, _TOWER_OF_2B),
    "4b": ((2560, 9728, 36, 32), True, _TOWER_OF_2B),
    "8b": ((4096, 12288, 36, 32), False, (1152, 4304, 27, (8, 16, 24))),
}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model's transformers configuration, and its processor where that is at hand."""

    config: Any
    processor: Any = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.config.text_config.num_hidden_layers

    @property
    def tower_depth(self) -> int:
        """Layers of the vision tower."""
        return self.config.vision_config.depth


def architecture_of(config: RunConfig) -> Architecture:
    """The architecture of the model that a recipe names.

    Raises:
        ValueError: neither a folder of a Qwen3-VL nor a name that holds a published size.
    """
    name = config.model.name
    if name == "tiny":
        return _tiny(config)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name = {name!r}: there is no such folder.")
    size = _size_in(config.model)
    (hidden, intermediate, layers, heads), is_tied, tower = _PUBLISHED[size]
    return Architecture(
        published_config(hidden, intermediate, layers, heads, is_tied=is_tied, tower=tower)
    )


def published_config(
    hidden: int, intermediate: int, layers: int, heads: int, *, is_tied: bool, tower: Any
) -> Any:
    """A Qwen3-VL configuration with Qwen's vocabulary and special tokens."""
    from transformers import Qwen3VLConfig

    tower_hidden, tower_intermediate, depth, deepstack = tower
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": is_tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": depth,
            "hidden_size": tower_hidden,
            "intermediate_size": tower_intermediate,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(deepstack),
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=is_tied,
    )


def _size_in(model: ModelConfig) -> str:
    found = re.search(r"(?<![0-9.])([248])b(?![a-z])", model.name.lower())
    if found is None:
        raise ValueError(
            f"model.name = {model.name!r}: its sizes are not known without a download. Give a folder "
            "that holds its config.json, or a name with a published size (2B, 4B, 8B)."
        )
    return f"{found[1]}b"


def _of_folder(folder: Path) -> Architecture:
    """Sizes from a folder's config.json; prompts are counted by its tokenizer where it holds one."""
    from transformers import AutoConfig

    from prism_lite.models.processor import load_processor

    named = f"model.name = {str(folder)!r}"
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    try:
        found: Any = AutoConfig.from_pretrained(str(folder))
        processor = load_processor(str(folder)) if has_tokenizer else None
    except (OSError, ValueError) as error:  # no config.json, or one that is not a model's
        reason = str(error).splitlines()[0]
        raise ValueError(f"{named} is not the folder of a Qwen3-VL ({reason}).") from error
    if found.model_type != "qwen3_vl":
        raise ValueError(
            f"{named} is a {found.model_type}, not a qwen3_vl; this edition trains Qwen3-VL models only."
        )
    if processor is None and found.image_token_id != IMAGE_TOKEN:
        raise ValueError(
            f"{named} holds no tokenizer, and its picture token is {found.image_token_id}, not Qwen's "
            f"{IMAGE_TOKEN}: add its tokenizer and preprocessor_config.json."
        )
    return Architecture(found, processor)


def _tiny(config: RunConfig) -> Architecture:
    """The embedded task's model, from its settings alone: the base need not be trained for a plan."""
    from prism_lite.digits.base_model import tiny_tokenizer
    from prism_lite.digits.tiny_qwen import build_model, build_processor

    tokenizer = tiny_tokenizer(config.tiny, config.data.digits)
    model = build_model(config.tiny, tokenizer)
    return Architecture(model.config, build_processor(tokenizer))
