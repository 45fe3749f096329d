"""Training of a tiny base that the tasks share: cache, lessons of the decoder, storing.

Shape letters: N reply tokens, F tokens of a forward, D hidden size, V vocabulary.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prism_lite.config import TinyConfig
from prism_lite.console import say, tracked
from prism_lite.digits import tiny_qwen
from prism_lite.digits.lessons import Lesson
from prism_lite.digits.muon import Muon
from prism_lite.files import make_cache_folder, write_json, write_text
from prism_lite.models import prompts
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.packing import Tree, forward_pack, pack_trees
from prism_lite.models.vision import PictureFeatures
from prism_lite.types import Picture, Sample, Turn

# The patch embedding sums 1,536 correlated pixels: at the common rate it grew a hundred times larger than
# the position embedding, the tower could not distinguish places, and the order of digits was guessed.
_PATCH_RATE = 1 / 30
_POSITION_STD = 0.5
_EMBEDDING_STD = (
    0.1  # five times the usual: tokens remain distinct, copying is learned much earlier
)


@dataclass(frozen=True)
class LessonTask:
    """What the lessons of a task are.

    Attributes:
        draw: draws a lesson.
        image_of: returns its picture, for the number of visual tokens.
        encode: encodes pictures directly from arrays, without the slow image processor.
    """

    draw: Callable[[Random], Lesson]
    image_of: Callable[[tuple[int, ...]], Image.Image]
    encode: Callable[[list[tuple[int, ...]]], list[PictureFeatures]]


def trained_folder(folder: Path, train: Callable[[Path], None], *, is_in_cache: bool) -> Path:
    """Return `folder`, with the base in it; it is trained first where it is missing or damaged.

    Args:
        folder: of the base.
        train: writes the base to the folder that it is given.
        is_in_cache: whether the folder is one of the user's cache, whose errors name the remedy.
    """
    if _is_sound(folder):
        return folder
    if is_in_cache:
        make_cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # If two runs start at once, one trains and the other waits for the same base.
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_sound(folder):
            return folder
        if folder.exists():
            say(Console(), f"the tiny base in {folder} is damaged: it is trained again", "yellow")
        unfinished = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
        unfinished.mkdir()
        try:
            train(unfinished)
            write_json(unfinished / "digest.json", {"sha256": digest_of(unfinished)})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _is_sound(folder: Path) -> bool:
    """Check that a cached base is there and that its files are what was written.

    One without a digest (of an earlier edition) is sound if its weights can be opened.
    """
    try:
        digest = json.loads((folder / "digest.json").read_bytes())
        return digest["sha256"] == digest_of(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError):
        return False
    try:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            return bool(weights.keys()) and (folder / "config.json").is_file()
    except (OSError, SafetensorError):
        return False


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of a base's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def new_model(config: TinyConfig, tokenizer: Any) -> Any:
    """Build the tiny model with the initial weights that its training needs."""
    model: Any = tiny_qwen.build_model(config, tokenizer)
    family.use_linear_patch_embedding(model)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.mul_(_EMBEDDING_STD / 0.02)
        model.model.visual.pos_embed.weight.mul_(_POSITION_STD / 0.02)
    return model


def save_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model, tokenizer and processor to `folder`."""
    # Stored in 16 bit, half the size, but loaded in float32 by those who leave the type to the folder.
    model.half().save_pretrained(folder)
    settings = (folder / "config.json").read_text(encoding="utf-8")
    write_text(folder / "config.json", settings.replace('"float16"', '"float32"'))
    tiny_qwen.build_processor(tokenizer).save_pretrained(folder)


def vision_training(
    model: Any, head: nn.Module | None, num_steps: int
) -> tuple[list[Tensor], torch.optim.Optimizer, Any]:
    """Return the parameters of the vision tower (and a head), their optimizer and its schedule."""
    named = dict(model.model.visual.named_parameters())
    patches = [p for name, p in named.items() if "patch_embed" in name]
    others = [p for name, p in named.items() if "patch_embed" not in name]
    others += head.parameters() if head is not None else ()
    optimizer = torch.optim.AdamW([{"params": patches}, {"params": others}], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [3e-3 * _PATCH_RATE, 3e-3], total_steps=max(num_steps, 1)
    )
    return [*patches, *others], optimizer, schedule


def train_lessons(model: Any, tokenizer: Any, config: TinyConfig, task: LessonTask) -> None:
    """Train the decoder on the replies: Muon for its matrices, AdamW for the rest."""
    model.train()
    model.model.visual.requires_grad_(False)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    is_matrix = {name: p.ndim == 2 and "layers" in name for name, p in named.items()}
    matrices = [p for name, p in named.items() if is_matrix[name]]
    others = [p for name, p in named.items() if not is_matrix[name]]
    optimizers = [
        Muon(matrices, lr=10 * config.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.99)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _trapezoid(s, max(config.steps, 1)))
        for optimizer in optimizers
    ]
    image_processor = tiny_qwen.build_processor(tokenizer)
    end_id = tokenizer.convert_tokens_to_ids(tiny_qwen.END)
    rng = Random(f"lessons {config.seed}")
    for _ in tracked(range(config.steps), "tiny base: lessons", console=Console()):
        lessons = [task.draw(rng) for _ in range(config.batch_size)]
        trees = [
            Tree(
                _lesson_prompt(model, image_processor, lesson, task),
                tuple(
                    torch.tensor([*tokenizer(reply)["input_ids"], end_id])
                    for reply in lesson.replies
                ),
            )
            for lesson in lessons
        ]
        pack = pack_trees(trees)
        pictures = [lesson.picture for lesson in lessons if lesson.picture]
        with torch.no_grad():  # the tower stays frozen: the lessons' rates would ruin it
            features = task.encode(pictures)
        hidden_FD = forward_pack(model, pack, features)
        logits_NV = model.lm_head(hidden_FD[pack.predictor_N])
        update(F.cross_entropy(logits_NV, pack.target_N), [*named.values()], optimizers, schedules)
    model.eval()


def _trapezoid(step: int, num_steps: int) -> float:
    """Return the rate's factor: twenty steps up, flat, the second half linearly down to 2 %."""
    return min(1.0, (step + 1) / 20) * min(1.0, max(0.02, 2 * (num_steps - step) / num_steps))


def update(
    loss: Tensor, parameters: list[Tensor], optimizers: list[Any], schedules: list[Any]
) -> None:
    """Make one clipped step of every optimizer and its schedule."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()


def _lesson_prompt(
    model: Any, image_processor: Any, lesson: Lesson, task: LessonTask
) -> prompts.Prompt:
    pictures = (Picture("lesson", task.image_of(lesson.picture)),) if lesson.picture else ()
    sample = Sample("lesson", (Turn("user", lesson.question),), pictures)
    return prompts.encode_prompt(
        sample.with_system_prompt(lesson.system),
        core=model,
        processor=image_processor,
        max_tokens=4096,
    )
