"""Sizes of the published Qwen3-VL models, so that a plan needs no download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from prism_lite.config import RunConfig

_IMAGE_TOKEN = 151655  # Qwen's "<|image_pad|>"
# Language model: hidden, intermediate, layers, heads; whether the head shares the embedding's weight.
# Vision tower: hidden, intermediate, layers, layers whose states feed DeepStack.
_TOWER_OF_2B = (1024, 4096, 24, [5, 11, 17])
_PUBLISHED = {
    "2b": ((2048, 6144, 28, 16), True, _TOWER_OF_2B),
    "4b": ((2560, 9728, 36, 32), True, _TOWER_OF_2B),
    "8b": ((4096, 12288, 36, 32), False, (1152, 4304, 27, [8, 16, 24])),
}


class Architecture(NamedTuple):
    """A model's transformers configuration, and its processor where it is available."""

    config: Any
    processor: Any = None


def architecture_of(config: RunConfig) -> Architecture:
    """Return the architecture of the model that a recipe names.

    Raises:
        ValueError: neither a folder of a Qwen3-VL nor a name that contains a published size.
    """
    name = config.model.name
    if name == "tiny":
        return _tiny(config)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name = {name!r}: this folder does not exist.")
    size = re.search(r"(?<![0-9.])([248]b)(?![a-z])", name.lower())
    if size is None:
        raise ValueError(
            f"model.name = {name!r}: its sizes are not known without a download. Give a folder that "
            "contains its config.json, or a name with a published size (2B, 4B, 8B)."
        )
    return Architecture(_published_config(size[1]))


def _published_config(size: str) -> Any:
    """Return a published size; vocabulary and special tokens are transformers' defaults."""
    from transformers import Qwen3VLConfig

    language, is_tied, tower = _PUBLISHED[size]
    hidden, intermediate, layers, heads = language
    tower_hidden, tower_intermediate, tower_layers, deepstack = tower
    return Qwen3VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
        },
        vision_config={
            "depth": tower_layers,
            "hidden_size": tower_hidden,
            "intermediate_size": tower_intermediate,
            "out_hidden_size": hidden,
            "deepstack_visual_indexes": deepstack,
        },
        tie_word_embeddings=is_tied,
    )


def _of_folder(folder: Path) -> Architecture:
    """Read sizes from a folder's config.json; its tokenizer, if there is one, counts the prompts."""
    from transformers import AutoConfig

    from prism_lite.models.processor import load_processor

    named = f"model.name = {str(folder)!r}"
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    try:
        config: Any = AutoConfig.from_pretrained(str(folder))
        processor = load_processor(str(folder)) if has_tokenizer else None
    except (OSError, ValueError) as error:  # no config.json, or one that is not a model's
        reason = str(error).splitlines()[0]
        raise ValueError(f"{named} is not the folder of a Qwen3-VL ({reason}).") from error
    if config.model_type != "qwen3_vl":
        raise ValueError(
            f"{named} is a {config.model_type}, not a qwen3_vl; only Qwen3-VL models are supported."
        )
    if processor is None and config.image_token_id != _IMAGE_TOKEN:
        raise ValueError(
            f"{named} contains no tokenizer, and its picture token is {config.image_token_id}, not "
            f"Qwen's {_IMAGE_TOKEN}: add its tokenizer and preprocessor_config.json."
        )
    return Architecture(config, processor)


def _tiny(config: RunConfig) -> Architecture:
    """Build the embedded task's model from its settings alone: a plan needs no trained base."""
    from prism_lite.digits.base_model import tiny_tokenizer
    from prism_lite.digits.tiny_qwen import build_model, build_processor

    tokenizer = tiny_tokenizer(config.tiny, config.data.digits)
    model = build_model(config.tiny, tokenizer)
    return Architecture(model.config, build_processor(tokenizer))
