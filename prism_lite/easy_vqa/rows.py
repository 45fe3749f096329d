"""Rows of easy-VQA in this program's own file format, for every stage.

The public demonstrations read carelessly what the question does not ask about, always alike, and some end
in a wrong conclusion; the teacher is clean and varies its wording. Both are made from the public answers.
"""

from __future__ import annotations

import importlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from prism_lite.digits.wording import PartVerdicts
from prism_lite.easy_vqa import wording
from prism_lite.easy_vqa.facts import Question, Seen, read_question, seen_in
from prism_lite.files import write_jsonl
from prism_lite.parts import Parts
from prism_lite.types import Sample

Split = Literal["train", "heldout"]
DATASET = "easy-vqa"  # the column `dataset` of each row
_PACKAGE_SPLIT = {"train": "train", "heldout": "test"}
# How often each wording is used: three of a caption, two of a think.
_DEMONSTRATION_WORDINGS = ((0.4, 0.35, 0.25), (0.55, 0.45))
_TEACHER_WORDINGS = ((0.25, 0.4, 0.35), (0.45, 0.55))


@dataclass(frozen=True)
class Item:
    """A question about a picture whose colour and shape the public answers settle.

    Attributes:
        number: of the question in its split of the package, from 0.
        picture: the file in the package.
        seen: what all public answers about this picture say.
        answer: the public one.
    """

    number: int
    picture: Path
    question: Question
    seen: Seen
    answer: str


@dataclass(frozen=True)
class Rates:
    """How often a demonstration errs, per completion."""

    misread: float = 0.9
    slip: float = 0.2


@dataclass(frozen=True)
class WrittenFile:
    """A file that `write_files` wrote, and what its split of the package holds."""

    path: Path
    num_rows: int
    num_pictures: int
    num_left_out: int


def read_items(split: Split) -> tuple[list[Item], int]:
    """Read the questions of a split from the installed package.

    Returns:
        The questions whose picture is settled, in the package's order, and the number of the others.

    Raises:
        ValueError: the package is not installed, or is not the known one.
    """
    try:
        package: Any = importlib.import_module("easy_vqa")
    except ModuleNotFoundError as error:
        if error.name != "easy_vqa":
            raise
        raise ValueError("easy-VQA is not installed: pip install easy-vqa") from error
    name = _PACKAGE_SPLIT[split]
    texts, answers, picture_ids = getattr(package, f"get_{name}_questions")()
    paths = getattr(package, f"get_{name}_image_paths")()
    questions = {text: read_question(text) for text in set(texts)}
    pairs_of: dict[int, list[tuple[Question, str]]] = defaultdict(list)
    for text, answer, picture in zip(texts, answers, picture_ids, strict=True):
        pairs_of[picture].append((questions[text], answer))
    seen_of = {picture: seen_in(pairs) for picture, pairs in pairs_of.items()}
    items = [
        Item(number, Path(paths[picture]), questions[text], seen, answer)
        for number, (text, answer, picture) in enumerate(
            zip(texts, answers, picture_ids, strict=True)
        )
        if (seen := seen_of[picture]) is not None
    ]
    return items, len(texts) - len(items)


def write_files(folder: Path, *, rates: Rates, seed: int) -> list[WrittenFile]:
    """Write demonstrations.jsonl, train.jsonl and heldout.jsonl with their pictures.

    Demonstrations have a file of their own because some are wrong: in a row with an answer they would be
    defects. Rows are in a random order, so that the first N of a file have pictures of all kinds.

    Raises:
        ValueError: as `read_items`.
    """
    files = []
    for split in ("train", "heldout"):
        items, num_left_out = read_items(split)
        Random(f"{DATASET} {split} {seed}").shuffle(items)
        pictures = dict.fromkeys(item.picture for item in items)
        picture_folder = folder / "pictures" / split
        picture_folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            shutil.copyfile(picture, picture_folder / picture.name)
        rows_of = {split: teacher_rows(items, split, seed=seed)}
        if split == "train":
            rows_of["demonstrations"] = demonstration_rows(items, rates=rates, seed=seed)
        for name, rows in rows_of.items():
            path = folder / f"{name}.jsonl"
            write_jsonl(path, rows)
            files.append(WrittenFile(path, len(rows), len(pictures), num_left_out))
    return files


def demonstration_rows(items: Sequence[Item], *, rates: Rates, seed: int) -> list[dict[str, Any]]:
    """Return one row for each training question, with a demonstration that may err."""
    rng = Random(f"{DATASET} {seed} demonstrations")
    return [
        _row(item, "train", demonstration=_write(item, rates, _DEMONSTRATION_WORDINGS, rng))
        for item in items
    ]


def teacher_rows(items: Sequence[Item], split: Split, *, seed: int) -> list[dict[str, Any]]:
    """Return one row for each question, with the public answer and a right teacher completion."""
    rng = Random(f"{DATASET} {split} {seed} teacher")
    clean = Rates(misread=0, slip=0)
    return [
        _row(item, split, answer=item.answer, teacher=_write(item, clean, _TEACHER_WORDINGS, rng))
        for item in items
    ]


def _row(item: Item, split: Split, **completions: str) -> dict[str, Any]:
    return {
        "id": f"{split}-{item.number}",
        "prompt": item.question.text,
        "images": f"pictures/{split}/{item.picture.name}",
        **completions,
        "dataset": DATASET,
        "kind": "yes/no" if item.question.is_yes_no else "other",
        **item.seen._asdict(),
    }


def _write(
    item: Item, rates: Rates, wordings: tuple[Sequence[float], Sequence[float]], rng: Random
) -> str:
    """Write a completion, perhaps misread or with a wrong conclusion."""
    caption_weights, think_weights = wordings
    caption_style = rng.choices(range(wording.NUM_CAPTION_STYLES), caption_weights)[0]
    think_style = rng.choices(range(wording.NUM_THINK_STYLES), think_weights)[0]
    question, seen = item.question, item.seen
    if rng.random() < rates.misread:
        seen = wording.misread(question, seen)
    answer = question.answer(seen)
    if rng.random() < rates.slip:
        answer = wording.slip(question, answer, rng)
    return wording.compose(question, seen, answer, caption_style, think_style).render()


def are_ours(samples: Sequence[Sample]) -> bool:
    """Check whether all samples are rows of this data set, and there are some."""
    return bool(samples) and all(s.columns.get("dataset") == DATASET for s in samples)


def verify_sample(sample: Sample, completion: Parts) -> PartVerdicts:
    """Verify the parts of a completion of a row: see `wording.verify`."""
    seen = Seen(sample.columns["color"], sample.columns["shape"])
    return wording.verify(read_question(sample.columns["prompt"]), seen, completion)


def corrupt_sample(sample: Sample, parts: Parts, rng: Random) -> Parts | None:
    """Corrupt teacher parts of a row: see `wording.corrupt`."""
    return wording.corrupt(read_question(sample.columns["prompt"]), parts, rng)
