"""The trained discriminator as a reward function for any trainer that takes TRL's.

    reward = discriminator_reward("exported")
    trainer = GRPOTrainer(..., reward_funcs=[reward])

It loads its own frozen backbone in addition to the trainer's model: a second NF4 copy in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prism_lite.config import RunConfig
from prism_lite.data.formats.base import as_list
from prism_lite.data.formats.pictures import to_picture
from prism_lite.data.formats.turns import to_turns, with_marks
from prism_lite.digits.base_model import base_folder
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.files import read_json
from prism_lite.models.backbone import TRUNK, load_backbone
from prism_lite.models.device import check_machine
from prism_lite.parts import Parts, parse
from prism_lite.recipe import parse_config
from prism_lite.rewards.format import completion_text
from prism_lite.types import Sample

Reward = Callable[..., list[float | None]]


def discriminator_reward(
    folder: str | Path, *, alpha: float = 0.5, malformed_reward: float | None = None
) -> Reward:
    """Return a reward function `f(prompts, completions, *, images=None, image=None, **columns)`.

    A well-formed completion gets `alpha` x perception + (1 - alpha) x reasoning, the discriminator's
    capped logits. Likelihood features count relative to the teacher completion in the column `teacher`,
    as in training; without one, to the first well-formed completion of the same prompt in the call. So
    rewards compare completions of one prompt, as GRPO does, and a prompt's completions must come in one
    call. Pictures are read from the columns `images` (a list per row) or `image`, or from the image
    blocks of the messages.

    Args:
        folder: written by `prism-lite export --discriminator`.
        alpha: weight of the perception score, 0 to 1.
        malformed_reward: for a completion without the three parts; default: minus the score's cap,
            the lowest reward of a well-formed one.

    Raises:
        ValueError: the folder does not hold an exported discriminator.
    """
    folder = Path(folder)
    if not (folder / "reward.json").is_file():
        raise ValueError(
            f"{folder} does not hold an exported discriminator (reward.json is missing): write one with "
            "`prism-lite export --run DIR --discriminator --out FOLDER`."
        )
    content = read_json(folder / "reward.json")
    config = parse_config(content["settings"])
    backbone, discriminator = _load(folder, config)
    lowest = -config.discriminator.score_cap if malformed_reward is None else malformed_reward

    @torch.no_grad()
    def discriminator_score(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        images: Sequence[Any] | None = None,
        image: Sequence[Any] | None = None,
        teacher: Sequence[str | None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        rewards: list[float | None] = [lowest] * len(completions)
        rows, judged = [], []
        # rows and their parts, by prompt and by the parts that they are compared with
        groups: dict[tuple[str, Parts | None], tuple[Sample, list[int], list[Parts]]] = {}
        for row, completion in enumerate(completions):
            parts = parse(completion_text(completion))
            if isinstance(parts, Parts):
                pictures = images[row] if images is not None else image[row] if image else None
                sample = _to_sample(prompts[row], pictures)
                sample = sample.with_system_prompt(content["system_prompt"])
                reference = parse(teacher[row] or "") if teacher is not None else None
                reference = reference if isinstance(reference, Parts) else None
                _, own, students = groups.setdefault((sample.id, reference), (sample, [], []))
                own.append(row)
                students.append(parts)
        for (_, reference), (sample, own, students) in groups.items():
            rows += own if reference is None else [None, *own]
            first = [] if reference is None else [reference]
            judged.append((backbone.prompt(sample), [*first, *students]))
        if judged:
            with backbone.role("discriminator"):
                scores = discriminator.score(backbone, judged)
            mixed_K = alpha * scores.perception_K + (1 - alpha) * scores.reasoning_K
            for row, value in zip(rows, mixed_K.tolist(), strict=True):
                if row is not None:  # the teacher's own score is not a reward
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


def _to_sample(prompt: Any, pictures: Any) -> Sample:
    """Convert a TRL prompt and its pictures to a Sample.

    Args:
        prompt: the text of the user, or messages with text and image blocks.
        pictures: a PIL image, a list of them, or None: those inside the messages.
    """
    references: list[Any] = []
    turns = to_turns(prompt, references)
    if pictures is not None:
        references = as_list(pictures)
    marked, references = with_marks(turns, references)
    named = tuple(to_picture(reference, ()) for reference in references)
    content = repr([(turn.role, turn.text) for turn in marked] + [picture.id for picture in named])
    return Sample(hashlib.sha256(content.encode()).hexdigest(), marked, named)
