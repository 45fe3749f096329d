"""The trained discriminator as a reward function for any trainer that takes TRL's.

    reward = discriminator_reward("exported")
    trainer = GRPOTrainer(..., reward_funcs=[reward])

It loads its own frozen backbone beside the trainer's model: a second NF4 copy in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.digits.base_model import base_folder
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.models.backbone import TRUNK, load_backbone
from prism_lite.models.device import check_machine
from prism_lite.parts import Parts
from prism_lite.recipe import parse_config
from prism_lite.rewards.format import completion_text
from prism_lite.types import Picture, Sample, Turn

Reward = Callable[..., list[float | None]]


def discriminator_reward(
    folder: str | Path, *, alpha: float = 0.5, malformed_reward: float | None = None
) -> Reward:
    """A reward function `f(prompts, completions, *, images=None, image=None, **columns)`.

    A well-formed completion gets `alpha` x perception + (1 - alpha) x reasoning, the discriminator's
    capped logits. Pictures are read from the columns `images` (a list a row) or `image`, or from the
    image blocks of the messages.

    Args:
        folder: written by `prism-lite export --discriminator`.
        malformed_reward: for a completion that is not the three parts; default: minus the score's cap,
            the least a well-formed one can get.

    Raises:
        ValueError: the folder is no exported discriminator.
    """
    folder = Path(folder)
    if not (folder / "reward.json").is_file():
        raise ValueError(
            f"{folder} holds no exported discriminator (reward.json is missing): write one with "
            "`prism-lite export --run DIR --discriminator --out FOLDER`."
        )
    content = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    config = parse_config(content["settings"])
    backbone, discriminator = _load(folder, config)
    least = -config.discriminator.score_cap if malformed_reward is None else malformed_reward

    def discriminator_score(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        images: Sequence[Any] | None = None,
        image: Sequence[Any] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        judged = []
        for row, completion in enumerate(completions):
            found = parts.parse(completion_text(completion))
            if isinstance(found, Parts):
                pictures = images[row] if images is not None else image[row] if image else None
                sample = to_sample(prompts[row], pictures)
                sample = sample.with_system_prompt(content["system_prompt"])
                judged.append((row, backbone.prompt(sample), found))
        rewards: list[float | None] = [least] * len(completions)
        if judged:
            with torch.no_grad(), backbone.role("discriminator"):
                scores = discriminator.score(
                    backbone, [(prompt, (found,)) for _, prompt, found in judged]
                )
            mixed_K = alpha * scores.perception_K + (1 - alpha) * scores.reasoning_K
            for (row, _, _), value in zip(judged, mixed_K.tolist(), strict=True):
                rewards[row] = value
        return rewards

    return discriminator_score


def _load(folder: Path, config: RunConfig) -> tuple[Any, Discriminator]:
    check_machine(config)
    backbone = load_backbone(config.model, config.lora, base_folder(config), seed=config.seed)
    if config.discriminator.trunk == "sft":
        weights = load_file(folder / "trunk" / "adapter_model.safetensors")
        backbone.load_adapter_state(weights, TRUNK)
    discriminator = discriminator_for(backbone, config.discriminator, seed=config.seed)
    discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"))
    return backbone, discriminator


def to_sample(prompt: Any, pictures: Any = None) -> Sample:
    """A TRL prompt (a string or chat messages) with its pictures as a Sample.

    Args:
        pictures: a PIL image, a list of them, or None: those inside the messages.
    """
    found: list[Any] = []
    turns = []
    messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for message in messages:
        blocks = message["content"]
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        text = ""
        for block in blocks:
            if block.get("type") == "image":
                text += "<image>"
                found += [block["image"]] if block.get("image") is not None else []
            else:
                text += block["text"]
        turns.append(Turn(message["role"], text))
    if pictures is not None:
        found = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    named = tuple(Picture(_name(image), image) for image in found)
    described = json.dumps([(turn.role, turn.text) for turn in turns]) + "".join(
        picture.id for picture in named
    )
    return Sample(hashlib.sha256(described.encode()).hexdigest(), tuple(turns), named)


def _name(image: Image.Image) -> str:
    """A picture's identity is its pixels: equal ones share vision features."""
    header = f"{image.mode} {image.size}".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()
