"""Build a Sample from one row of a known convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_lite import parts
from prism_lite.data.formats.base import (
    FieldsOfRow,
    RawRow,
    Row,
    RowError,
    as_list,
    is_empty,
    parse_cell,
)
from prism_lite.data.formats.gold import read_gold, stored_answer
from prism_lite.data.formats.names import numbered_pictures, picture_name_kind
from prism_lite.data.formats.options import (
    has_option_column,
    read_choices,
    unread_options,
    with_options,
)
from prism_lite.data.formats.pictures import to_picture
from prism_lite.data.formats.readers import READERS, Fields
from prism_lite.data.formats.row_pictures import check_unread, listed_pictures
from prism_lite.data.formats.turns import (
    answer_of_completion,
    split_target,
    to_turns,
    with_marks,
)
from prism_lite.rewards.answers.choices import options_in
from prism_lite.types import Sample, Turn

_ID_NAMES = ("id", "question_id", "pid", "index", "idx")


def to_sample(row: Row, convention: str, origin: RawRow, folders: Sequence[Path]) -> Sample:
    """Build the Sample of a row; see `read_row`, whose errors it raises."""
    return read_row(row, convention, origin, folders)[0]


def read_row(
    row: Row, convention: str, origin: RawRow, folders: Sequence[Path]
) -> tuple[Sample, list[str]]:
    """Build the Sample of a row, and name the fields that were not read.

    Args:
        row: its fields under plain names, renamed where a registry or a column map says so.
        convention: a name from `detect`, or "columns" for a row renamed by a column map.
        origin: where the row is from; its number is the id where the row has none.
        folders: where relative picture paths are looked up.

    Raises:
        RowError: the row cannot be used, or a picture or options in it would be lost.
    """
    for name in ("videos", "video", "audios", "audio"):
        if row.get(name):
            message = f"the row has {name}; only pictures are read: drop it."
            raise RowError("unsupported_media", message)
    stored = FieldsOfRow(row)
    fields = READERS[convention](stored)
    turns, references = _prompt(
        stored, fields, "images" if convention == "columns" else "decoded_image"
    )
    turns, target = split_target(turns)
    demonstration = target if fields.demonstration is None else fields.demonstration
    prompt, references = with_marks(turns, references)
    if not any(turn.text.replace("<image>", "").strip() for turn in prompt if turn.role == "user"):
        raise RowError("empty_prompt", "the prompt has no text; write the question.")
    pictures = tuple(to_picture(reference, folders) for reference in references)
    choices = read_choices(stored)
    answer = stored_answer(stored, choices) if fields.answer is None else fields.answer
    gold, accepted = read_gold(stored, answer, choices)
    if demonstration is None and isinstance(answer, str) and "<caption>" in answer:
        demonstration = answer
    demonstration, student = (
        _completion(value, name)
        for name, value in (("demonstration", demonstration), ("student", fields.student))
    )
    teacher, *others = _teachers(fields.teacher) or [None]
    if gold is None and demonstration:
        gold = answer_of_completion(demonstration)
    ids = (stored[name] for name in _ID_NAMES if not is_empty(stored.peek(name)))
    sample = Sample(
        id=str(next(ids, origin.number)),
        turns=with_options(prompt, choices),
        pictures=pictures,
        answer=gold,
        demonstration=demonstration,
        teacher=teacher,
        student=student,
        source=origin.place,
        accepted=accepted,
        choices=choices,
        other_teachers=tuple(text for text in others if text is not None),
        file=origin.file,
        row=origin.number,
        columns=_without_pictures(origin.value if isinstance(origin.value, Mapping) else {}),
    )
    check_unread(stored, pictures, folders)
    if not choices and not options_in(sample.question):
        _check_options(stored, answer if isinstance(answer, int) else gold)
    return sample, stored.unread()


def _completion(value: Any, name: str) -> str | None:
    """Return the text of a completion with our own tags."""
    if value is not None and not isinstance(value, str):
        raise RowError("text_type", f"{name} is a {type(value).__name__}; expected text.")
    return parts.with_own_tags(value)


def _teachers(value: Any) -> list[str | None]:
    """Return the completions of the teacher, of which a row may list several."""
    value = parse_cell(value)
    return [
        _completion(text, "teacher") for text in (value if isinstance(value, list) else [value])
    ]


def _without_pictures(stored: Mapping[str, Any]) -> dict[str, Any]:
    numbered = numbered_pictures(stored)
    return {
        name: value
        for name, value in stored.items()
        if name not in numbered
        and picture_name_kind(name) != "always"
        and name not in ("file_name", "decoded_image")
    }


def _check_options(row: FieldsOfRow, answer: Any) -> None:
    """Refuse a row whose options are in a column that was not read.

    Raises:
        RowError: names the column.
    """
    name = unread_options(row, answer) or has_option_column(row)
    if name:
        raise RowError(
            "unread_choices",
            f"column {name} seems to hold options that are not read: give the options of a row as a list "
            f"in the column choices, or name it with data.columns='{{prompt: ..., choices: {name}}}', or "
            f"drop {name}.",
        )


def _prompt(row: FieldsOfRow, fields: Fields, first: str) -> tuple[list[Turn], list[Any]]:
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
    listed = listed_pictures(row, first)
    if listed and inside:
        message = "pictures are both in the messages and in a column; keep one of the two."
        raise RowError("picture_count", message)
    return _with_objects(row, turns), inside or listed


def _with_objects(row: FieldsOfRow, turns: list[Turn]) -> list[Turn]:
    """Replace ms-swift's `<ref-object>` and `<bbox>` by the row's objects, in order."""
    objects = parse_cell(row.peek("objects"))
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
                row.get("objects")  # it was read
            turns[i] = Turn(turn.role, text)
    return turns
