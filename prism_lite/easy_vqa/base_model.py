"""The tiny Qwen3-VL of easy-VQA, trained on the package's training pictures and cached.

It starts from the stored base of the digits task, which knows the template, with a tokenizer of its own.
The vision tower learns to name colour and shape (the mean of its merged tokens against the words'
embeddings) and is frozen; then the decoder learns the lessons of lessons.py.

Shape letters: B pictures, N visual tokens of one picture, C colours or shapes, D hidden size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prism_lite.config import TinyConfig
from prism_lite.console import tracked
from prism_lite.digits import tiny_qwen, train_base
from prism_lite.digits.base_model import STORED_BASE
from prism_lite.digits.lessons import INSTRUCTION
from prism_lite.digits.train_base import LessonTask
from prism_lite.easy_vqa.facts import VALUES
from prism_lite.easy_vqa.lessons import Lessons
from prism_lite.easy_vqa.rows import Rates, read_items
from prism_lite.files import cache_folder, write_text
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.processor import MERGE, PATCH_PIXELS
from prism_lite.models.vision import PictureFeatures

# Part of the cache's key: raise it with every change that results in another base.
_VERSION = 1
CONFIG = TinyConfig(vision_steps=300, steps=500)
_CORPUS_LESSONS = 2000  # the tokenizer's training text
_WORD_REPEATS = 100  # so that every colour and shape becomes one token
_VISION_BATCH = 64


def easy_vqa_base(rates: Rates, config: TinyConfig) -> Path:
    """Return the folder of the tiny base in the cache; it is trained first where it is not there.

    Args:
        rates: of the demonstrations, whose misreading the base shares.
        config: size and training of the model.

    Raises:
        ValueError: easy-VQA is not installed.
    """
    key = json.dumps([_VERSION, dataclasses.asdict(config), rates.misread], sort_keys=True)
    name = f"easy-vqa-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return train_base.trained_folder(
        cache_folder() / name, lambda folder: train(config, rates, folder), is_in_cache=True
    )


def write_recipe(folder: Path, base: Path) -> Path:
    """Write tiny.yaml beside the files of `write_files`: the tiny recipe on them and on `base`.

    Paths are absolute, so that the recipe can be run from any folder.
    """
    folder = folder.absolute()
    recipe = {
        "extends": "tiny",
        "model": {"name": str(base)},
        "data": {
            "task": "files",
            "train": f"{folder}/demonstrations.jsonl#2048",
            "align": f"{folder}/train.jsonl#1024",
            "rlvr": f"{folder}/train.jsonl#1024",
            "heldout": f"{folder}/heldout.jsonl#512",
            "system_prompt": INSTRUCTION,
        },
    }
    path = folder / "tiny.yaml"
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path


def train(config: TinyConfig, rates: Rates, folder: Path) -> None:
    """Train the base and write model, tokenizer and processor to `folder`."""
    lessons = Lessons(read_items("train")[0], rates.misread)
    tokenizer = build_tokenizer(lessons, config)
    model = train_base.new_model(config, tokenizer)
    _start_from_digits(model, tokenizer)
    rng = np.random.default_rng(config.seed)
    task = LessonTask(
        draw=lessons.draw,
        image_of=lessons.image,
        encode=lambda pictures: _features(
            model, lessons, [picture[0] for picture in pictures], rng
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        _train_vision(model, tokenizer, config, lessons, rng)
        train_base.train_lessons(model, tokenizer, config, task)
    train_base.save_base(model, tokenizer, folder)


def build_tokenizer(lessons: Lessons, config: TinyConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer on lessons; every colour and shape after a space is one token."""
    rng = Random("corpus")
    drawn = [lessons.draw(rng) for _ in range(_CORPUS_LESSONS)]
    texts = [t for lesson in drawn for t in (lesson.system, lesson.question, *lesson.replies)]
    texts += _WORD_REPEATS * [f" {value}" for values in VALUES.values() for value in values]
    return tiny_qwen.build_tokenizer(texts, config.vocab_size)


def _start_from_digits(model: Any, tokenizer: Any) -> None:
    """Copy the weights of the stored digits base; of the embeddings, those of tokens that both know."""
    stored = load_file(STORED_BASE / "model.safetensors")
    ours = model.state_dict()
    for name, tensor in stored.items():
        if "embed_tokens" not in name:
            ours[name].copy_(tensor)
    vocabulary = AutoTokenizer.from_pretrained(STORED_BASE).get_vocab()
    (name,) = (name for name in stored if "embed_tokens" in name)
    for token, index in tokenizer.get_vocab().items():
        if token in vocabulary:
            ours[name][index] = stored[name][vocabulary[token]]


def _train_vision(
    model: Any, tokenizer: Any, config: TinyConfig, lessons: Lessons, rng: np.random.Generator
) -> None:
    """Train the tower to name colour and shape from the mean of its merged tokens."""
    parameters, optimizer, schedule = train_base.vision_training(model, None, config.vision_steps)
    embeddings_VD = model.get_input_embeddings().weight.detach()
    names_CD = {}
    for attribute, values in VALUES.items():
        ids = [tokenizer(f" {value}")["input_ids"] for value in values]
        assert all(len(tokens) == 1 for tokens in ids), "raise _WORD_REPEATS"
        names_CD[attribute] = embeddings_VD[torch.tensor(ids)[:, 0]]
    for _ in tracked(range(config.vision_steps), "tiny base: vision", console=Console()):
        drawn = rng.integers(len(lessons.items), size=_VISION_BATCH).tolist()
        merged_BD = torch.stack(
            [features.merged_ND.mean(0) for features in _features(model, lessons, drawn, rng)]
        )
        loss = torch.zeros(())
        for attribute, values in VALUES.items():
            seen = [lessons.items[index].seen.value(attribute) for index in drawn]
            target_B = torch.tensor([values.index(value) for value in seen])
            loss = loss + F.cross_entropy(4 * merged_BD @ names_CD[attribute].T, target_B)
        train_base.update(loss, parameters, [optimizer], [schedule])


def _features(
    model: Any, lessons: Lessons, indices: list[int], rng: np.random.Generator | None
) -> list[PictureFeatures]:
    """Encode pictures, turned and mirrored at random where a generator is given."""
    images = [lessons.pixels[index] for index in indices]
    if rng is not None:
        images = [_turned(image, int(rng.integers(8))) for image in images]
    pixels = torch.cat([picture_pixels(image) for image in images])
    grids = torch.tensor(
        [[1, image.shape[0] // PATCH_PIXELS, image.shape[1] // PATCH_PIXELS] for image in images]
    )
    encoded = family.encode_pixels(model, pixels, grids)
    return [PictureFeatures(merged_ND, deepstack) for merged_ND, deepstack in encoded]


def _turned(image: np.ndarray, symmetry: int) -> np.ndarray:
    """Return one of the eight turned and mirrored forms of a square picture: same colour and shape."""
    turned = np.rot90(image, symmetry % 4)
    return np.ascontiguousarray(turned[:, ::-1] if symmetry >= 4 else turned)


def picture_pixels(image: np.ndarray) -> Tensor:
    """Return the patches of a picture in the image processor's layout.

    Args:
        image: uint8 [height, width, 3], both multiples of 32.

    Returns:
        float32 [patches, 3 * 2 * 16 * 16] in -1..1: squares of 2 x 2 patches row by row, in each its
        patches row by row, each its colours, twice (the two frames), its rows.
    """
    height, width, _ = image.shape
    rows, columns, side = (
        height // PATCH_PIXELS // MERGE,
        width // PATCH_PIXELS // MERGE,
        PATCH_PIXELS,
    )
    pixels = torch.from_numpy(image.astype(np.float32)) / 127.5 - 1
    patches = pixels.view(rows, MERGE, side, columns, MERGE, side, 3).permute(0, 3, 1, 4, 6, 2, 5)
    doubled = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1)
    return doubled.reshape(-1, 6 * side**2)
