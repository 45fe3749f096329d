"""Names that columns have in the wild, after `plain_name`, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

QUESTION_NAMES = (
    "question", "query", "problem", "prompt", "instruction", "input", "question_text",
)  # fmt: skip
RESPONSE_NAMES = ("response", "output", "completion")
# Responses where their text has an answer tag; else they are other text (an OCR transcript).
WEAK_RESPONSE_NAMES = ("text", "content")
# Where a row has several, `gold.read_gold` says which counts.
MAIN_ANSWER_NAMES = ("solution", "answer", "ground_truth")
OTHER_ANSWER_NAMES = (
    "gold", "gold_answer", "gold_label", "gt", "gt_answer", "final_answer", "short_answer",
    "correct_answer", "correct_answers", "correct_option", "correct_choice", "correct",
    "reference_answer", "expected_answer", "answer_text", "answer_key", "answer_label",
    "answer_letter", "multiple_choice_answer", "answers", "direct_answer", "direct_answers",
    "label", "labels", "target",
)  # fmt: skip
ANSWER_NAMES = (*MAIN_ANSWER_NAMES, *OTHER_ANSWER_NAMES)
_INDEX_NAME = re.compile(
    r"(?:\w+_)?(?:answer|choice|option|label|correct|gold|target|gt)_?(?:idx|index)|cop"
)
OPTION_NAMES = (
    "choices", "options", "answer_choices", "answer_options", "multiple_choices", "candidates",
    "alternatives", "option_list", "choice_list", "endings", "opts",
)  # fmt: skip
_OPTION_NAME = re.compile(
    r"(?P<prefix>(?:(?:options?|choices?|op|ending|alternative)_?)?)(?P<mark>[a-j])"
    r"|(?P<counted>(?:options?|choices?|ending|alternative)_?)(?P<number>\d)"
    r"|(?P<lettered>answer_)(?P<letter>[a-j])"
)
# MathVista has both a path (image) and the picture itself (decoded_image).
_MAIN_PICTURE_NAMES = ("decoded_image", "images", "image")
_PICTURE_WORD = r"(?:image|img|picture|pic|photo|figure|fig|screenshot)s?"
_PICTURE_SUFFIX = (
    r"(?:_?(?:path|url|uri|file|file_?name|bytes|base64|b64|data|src|source|list|link)s?)?"
)
_PICTURE_NAME = re.compile(_PICTURE_WORD + _PICTURE_SUFFIX)
_MAYBE_PICTURE_NAME = re.compile(
    rf"\w+_{_PICTURE_WORD}{_PICTURE_SUFFIX}|(?:file_?)?(?:path|name)s?|files?|urls?|filepaths?|media"
)
_NUMBERED_PICTURE = re.compile(r"(?:image|img|picture|pic|photo|figure)_?(\d{1,2})")
_SPLIT_NAME = re.compile(r"(?:\w+_)?split|subset|partition|fold|set|phase")
_SPLITS = {
    "train": "train",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "eval",
}
_SPLIT = re.compile(rf"({'|'.join(_SPLITS)})(?:ing|uation|id|idation|elopment)?(?:[-_]?\w{{0,8}})")


def plain_name(name: str) -> str:
    """Return a column name in lower case with underscores: "imagePath" is "image_path"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name).strip())
    return re.sub(r"[\s-]+", "_", name).lower()


def is_index_name(name: str) -> bool:
    """Return whether a column numbers the right option from 0."""
    return bool(_INDEX_NAME.fullmatch(name))


def picture_name_kind(name: str) -> str:
    """Return "always" (image, img_path), "maybe" (path, left_image: its values decide) or ""."""
    if _PICTURE_NAME.fullmatch(name):
        return "always"
    return "maybe" if _MAYBE_PICTURE_NAME.fullmatch(name) else ""


def picture_rank(name: str) -> int:
    """Return the place of a picture column among others of a row; the smallest is read."""
    in_order = _MAIN_PICTURE_NAMES
    return in_order.index(name) if name in in_order else len(in_order)


def numbered_pictures(names: Iterable[str]) -> list[str]:
    """Return image_1, image_2, ... of these names, by number."""
    numbers = {name: _NUMBERED_PICTURE.fullmatch(name) for name in names}
    found = {name: int(match[1]) for name, match in numbers.items() if match}
    return sorted(found, key=found.__getitem__)


def option_mark(name: str) -> tuple[str, str] | None:
    """Return the group and the mark of a column that holds one option: ("option_", "b")."""
    match = _OPTION_NAME.fullmatch(name)
    if not match:
        return None
    group = match["prefix"] or match["counted"] or match["lettered"] or ""
    return group, match["mark"] or match["number"] or match["letter"]


def split_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the column that names the row's split, and its value."""
    for name, value in row.items():
        if isinstance(value, Mapping) and name == "extra_info":
            return split_of(value)
        if isinstance(value, str) and _SPLIT_NAME.fullmatch(plain_name(name)) and split_kind(value):
            return name, value
    return None


def split_kind(name: str) -> str:
    """Return train, validation, test or eval for a split's name ("train2014", "testmini"), else ""."""
    match = _SPLIT.fullmatch(name.strip().lower())
    return _SPLITS[match[1]] if match else ""
