"""Build a Sample from one row of a known convention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import (
    RawRow,
    Row,
    RowError,
    as_list,
    first_value,
    parse_json_cell,
)  # fmt: skip
from prism_lite.data.formats.pictures import to_picture
from prism_lite.data.formats.readers import READERS, Fields, to_choices
from prism_lite.data.formats.turns import (
    answer_of_completion,
    split_target,
    strip_answer,
    to_turns,
    with_marks,
)
from prism_lite.types import Sample, Turn

_ID_NAMES = ("id", "question_id", "pid", "index", "idx")
_NUMBERED_PICTURES = tuple(f"image_{i}" for i in range(1, 8))
# MathVista has both a path (image) and the picture itself (decoded_image).
_PICTURE_NAMES = ("decoded_image", "images", "image", "image_path", "image_paths", "file_name")


def to_sample(row: Row, convention: str, origin: RawRow, folders: Sequence[Path]) -> Sample:
    """Build the Sample of a row.

    Args:
        row: its fields, renamed where a registry or a column map says so.
        convention: a name from `detect`, or "columns" for a row renamed by a column map.
        origin: where the row is from; its number is the id where the row has none.
        folders: where relative picture paths are looked up.

    Raises:
        RowError: the row cannot be used.
    """
    for name in ("videos", "video", "audios", "audio"):
        if row.get(name):
            message = f"the row has {name}; only pictures are read: drop it."
            raise RowError("unsupported_media", message)
    fields = READERS[convention](row)
    turns, pictures = _prompt(row, fields)
    turns, target = split_target(turns)
    demonstration = target if fields.demonstration is None else fields.demonstration
    prompt, pictures = with_marks(turns, pictures)
    if not any(turn.text.replace("<image>", "").strip() for turn in prompt if turn.role == "user"):
        raise RowError("empty_prompt", "the prompt has no text; write the question.")
    answer, accepted = _answers(row, fields, demonstration)
    ids = (row[name] for name in _ID_NAMES if row.get(name) not in (None, ""))
    stored = origin.value if isinstance(origin.value, Mapping) else {}
    return Sample(
        id=str(next(ids, origin.number)),
        turns=prompt,
        pictures=tuple(to_picture(reference, folders) for reference in pictures),
        answer=answer,
        demonstration=demonstration,
        teacher=fields.teacher,
        student=fields.student,
        source=origin.place,
        accepted=accepted,
        choices=to_choices(row.get("choices") if fields.choices is None else fields.choices),
        file=origin.file,
        row=origin.number,
        columns={
            name: value
            for name, value in stored.items()
            if name not in (*_NUMBERED_PICTURES, *_PICTURE_NAMES)
        },
    )


def _prompt(row: Row, fields: Fields) -> tuple[list[Turn], list[Any]]:
    """Return the row's turns and references to its pictures."""
    if fields.messages is None:
        message = "the row has no prompt; write the question, or check the column map."
        raise RowError("empty_prompt", message)
    inside: list[Any] = []
    turns = to_turns(fields.messages, inside)
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError("text_type", f"system is a {type(system).__name__}; expected text.")
    if system and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    numbered = [row[name] for name in _NUMBERED_PICTURES if row.get(name) is not None]
    listed = numbered or as_list(parse_json_cell(first_value(row, _PICTURE_NAMES)))
    if listed and inside:
        message = "pictures are both in the messages and in a column; keep one of the two."
        raise RowError("picture_count", message)
    return _with_objects(row, turns), inside or listed


def _with_objects(row: Row, turns: list[Turn]) -> list[Turn]:
    """Replace ms-swift's `<ref-object>` and `<bbox>` by the row's objects, in order."""
    objects = parse_json_cell(row.get("objects"))
    if not isinstance(objects, Mapping):
        return turns
    for mark, name in (("<ref-object>", "ref"), ("<bbox>", "bbox")):
        unused = as_list(objects.get(name))
        for i, turn in enumerate(turns):
            text = turn.text
            while mark in text:
                if not unused:
                    message = f"more {mark} marks than objects; list one for each."
                    raise RowError("object_count", message)
                text = text.replace(mark, str(unused.pop(0)), 1)
            turns[i] = Turn(turn.role, text)
    return turns


def _answers(
    row: Row, fields: Fields, demonstration: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the gold answer and further accepted ones.

    The first of reward_model, solution, answer, ground_truth, demonstration that has one counts.
    """
    value = fields.answer
    if value is None:
        reward_model = parse_json_cell(row.get("reward_model"))
        if isinstance(reward_model, Mapping):
            value = reward_model.get("ground_truth")
        elif reward_model is not None:
            message = "reward_model is not an object; expected {style, ground_truth}."
            raise RowError("answer_type", message)
    if value is None:
        value = first_value(row, ("solution", "answer", "ground_truth"))
    value = parse_json_cell(value)
    if isinstance(value, list) and value and _is_numeric(value):
        value = json.dumps(value)  # numbers: one box or interval, not several accepted answers
    further = as_list(parse_json_cell(row.get("equivalent_answers", row.get("accepted"))))
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            message = "the list of answers is empty; write one or leave it out."
            raise RowError("answer_type", message)
        value, further = value[0], [*value[1:], *further]
    accepted = tuple(text for text in map(strip_answer, further) if text)
    if value is None and demonstration:
        return answer_of_completion(demonstration), ()
    return strip_answer(value), accepted


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
