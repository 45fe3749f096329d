"""Stage 0 of the embedded task: the tiny Qwen3-VL, trained from scratch.

The base of the default settings is stored beside this file, so that everybody has the same one;
`python -m prism_lite.digits.base_model` trains it again. Bases of other settings are trained once and
cached.

First the vision tower learns to name single digits and their places (its merged tokens against the digits'
word embeddings) and is frozen; then the decoder learns the lessons of lessons.py. Only this file trains
full weights; everything after it is LoRA on a frozen, quantised backbone.

Shape letters: S digits of all strips, N reply tokens, D hidden size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from prism_lite.config import DigitsConfig, RunConfig, TinyConfig
from prism_lite.console import tracked
from prism_lite.digits import task as digits
from prism_lite.digits import tiny_qwen, train_base
from prism_lite.digits.lessons import lesson_kinds, make_lesson
from prism_lite.digits.task import DIGIT_PIXELS, HELDOUT_FROM, digit_images
from prism_lite.digits.train_base import LessonTask
from prism_lite.files import cache_folder, read_json, write_json
from prism_lite.models import processor
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.vision import PictureFeatures

# Part of the cache's key. Raise it with every change (lessons, wording, model, training) that results in
# another base from the same settings, and run `python -m tests.make_micro_base` and
# `python -m prism_lite.digits.base_model`.
BASE_VERSION = 2
STORED_BASE = Path(__file__).with_name("base")
_CORPUS_LESSONS = 3000  # the tokenizer's training text
_SHIFT_PIXELS = 5  # augmentation: each digit moves by up to this much


def tiny_base(config: TinyConfig, task: DigitsConfig, *, cache: Path | None = None) -> Path:
    """Return the folder of the tiny base model, training it first if it is neither stored nor cached.

    The cache's key is every setting and `BASE_VERSION`. The folder is an ordinary transformers one.

    Args:
        cache: where models are cached; default `$PRISM_LITE_CACHE` or `~/.cache/prism_lite`.

    Raises:
        RuntimeError: the stored base is damaged.
    """
    if _is_shipped(config, task):
        return STORED_BASE
    folder = tiny_base_folder(config, task, cache=cache)
    return train_base.trained_folder(
        folder,
        lambda unfinished: train_tiny_base(config, task, unfinished),
        is_in_cache=cache is None,
    )


def tiny_base_folder(config: TinyConfig, task: DigitsConfig, *, cache: Path | None = None) -> Path:
    """Return the folder of the base of these settings; a cached one may not be trained yet."""
    if _is_shipped(config, task):
        return STORED_BASE
    return (cache or cache_folder()) / f"tiny-{_fingerprint(config, task)}"


def tiny_tokenizer(config: TinyConfig, task: DigitsConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer of the tiny base on lessons; the same settings give the same one."""
    return tiny_qwen.build_tokenizer(_corpus(task), config.vocab_size)


def train_tiny_base(config: TinyConfig, task: DigitsConfig, folder: Path) -> None:
    """Train the tiny base and write model, tokenizer and processor to `folder`."""
    tokenizer = tiny_tokenizer(config, task)
    model = train_base.new_model(config, tokenizer)
    generator = torch.Generator().manual_seed(config.seed)
    lesson_task = LessonTask(
        draw=lambda rng: make_lesson(task, rng),
        image_of=digits.strip_image,
        encode=lambda strips: _strip_features(model, strips, generator),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # initialises the place head
        _train_vision(model, tokenizer, config, task, generator)
        train_base.train_lessons(model, tokenizer, config, lesson_task)
    train_base.save_base(model, tokenizer, folder)


def _train_vision(
    model: Any,
    tokenizer: Any,
    config: TinyConfig,
    task: DigitsConfig,
    generator: torch.Generator,
) -> None:
    """Train the tower to name digits and their places from the merged visual tokens."""
    digit_ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)]))
    names_10D = model.get_input_embeddings().weight.detach()[digit_ids]
    place_head = nn.Linear(config.hidden_size, task.max_digits)
    parameters, optimizer, schedule = train_base.vision_training(
        model, place_head, config.vision_steps
    )
    _, labels = digit_images()
    rng = Random(f"vision {config.seed}")
    for _ in tracked(range(config.vision_steps), "tiny base: vision", console=Console()):
        strips = [
            tuple(
                rng.randrange(HELDOUT_FROM)
                for _ in range(rng.randint(task.min_digits, task.max_digits))
            )
            for _ in range(32)
        ]
        merged_SD = torch.cat([f.merged_ND for f in _strip_features(model, strips, generator)])
        digit_S = torch.tensor([int(labels[i]) for strip in strips for i in strip])
        place_S = torch.tensor([place for strip in strips for place in range(len(strip))])
        loss = F.cross_entropy(4 * merged_SD @ names_10D.T, digit_S)
        loss = loss + 0.3 * F.cross_entropy(place_head(merged_SD), place_S)
        train_base.update(loss, parameters, [optimizer], [schedule])


def _strip_features(
    model: Any, strips: list[tuple[int, ...]], generator: torch.Generator | None
) -> list[PictureFeatures]:
    """Encode strips directly from the digits' arrays, without the slow image processor."""
    pixels = torch.cat([strip_pixels(strip, generator) for strip in strips])
    grid = torch.tensor([[1, 2, 2 * len(strip)] for strip in strips])
    encoded = family.encode_pixels(model, pixels, grid)
    return [PictureFeatures(merged_ND, deepstack) for merged_ND, deepstack in encoded]


def strip_pixels(strip: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return the patches of a strip in the image processor's layout; augmented if a generator is given.

    Returns:
        float32 [4 * digits, 3 * 2 * 16 * 16] in -1..1: 2 x 2 patches a digit, digit after digit.
    """
    images, _ = digit_images()
    side, patch = DIGIT_PIXELS, processor.PATCH_PIXELS
    pixels = torch.from_numpy(np.stack([images[i] for i in strip]).astype(np.float32))
    pixels = (16 * pixels).clamp(max=255) / 127.5 - 1
    pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    if generator is not None:
        padded = F.pad(pixels, (_SHIFT_PIXELS,) * 4, value=-1.0)
        shifts = torch.randint(0, 2 * _SHIFT_PIXELS + 1, (len(strip), 2), generator=generator)
        pixels = torch.stack(
            [
                digit[y : y + side, x : x + side]
                for digit, (y, x) in zip(padded, shifts.tolist(), strict=True)
            ]
        )
        contrast = 0.8 + 0.4 * torch.rand(len(strip), 1, 1, generator=generator)
        pixels = ((pixels + 1) * contrast - 1).clamp(-1, 1)
    patches = pixels.view(-1, 2, patch, 2, patch).permute(0, 1, 3, 2, 4).reshape(-1, 1, patch**2)
    return patches.expand(-1, 6, -1).reshape(-1, 6 * patch**2)


def _corpus(task: DigitsConfig) -> list[str]:
    rng = Random("corpus")
    lessons = [make_lesson(task, rng) for _ in range(_CORPUS_LESSONS)]
    return [
        text for lesson in lessons for text in (lesson.system, lesson.question, *lesson.replies)
    ]


def _is_shipped(config: TinyConfig, task: DigitsConfig) -> bool:
    """Check whether the stored base is the one of these settings, and its weights for damage."""
    stored = STORED_BASE / "digest.json"
    if not stored.is_file():
        return False
    digest = read_json(stored)
    if digest["key"] != _fingerprint(config, task):
        return False
    if train_base.digest_of(STORED_BASE) != digest["sha256"]:
        raise RuntimeError(
            f"the weights in {STORED_BASE} are damaged: install prism_lite again, or train them again with "
            "`python -m prism_lite.digits.base_model`."
        )
    return True


def _fingerprint(config: TinyConfig, task: DigitsConfig) -> str:
    rate = task.demonstration_misread_rate if task.drift == "shared" else 0.0
    digits_settings = [task.min_digits, task.max_digits, lesson_kinds(task), rate]
    settings = [dataclasses.asdict(config), *digits_settings]
    key = json.dumps([BASE_VERSION, settings], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def base_folder(config: RunConfig) -> str:
    """Return the hub id or folder of the base model; the tiny one is trained on first use."""
    if config.model.name != "tiny":
        return config.model.name
    return str(tiny_base(config.tiny, config.data.digits))


def ship_tiny_base(config: TinyConfig, task: DigitsConfig, folder: Path = STORED_BASE) -> None:
    """Train the base of these settings and store it, with the digest of its weights, in `folder`."""
    with tempfile.TemporaryDirectory() as unfinished:
        train_tiny_base(config, task, Path(unfinished))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(unfinished, folder)
    key = _fingerprint(config, task)
    write_json(folder / "digest.json", {"key": key, "sha256": train_base.digest_of(folder)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    ship_tiny_base(TinyConfig(), DigitsConfig())
