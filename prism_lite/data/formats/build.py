"""One raw row of a known convention as a Sample. Every convention ends in the same `_build`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prism_lite.data.formats.base import RawRow, RowError, parse_json_cell
from prism_lite.data.formats.pictures import PictureRules, to_picture
from prism_lite.data.formats.readers import READERS, Fields, Row, as_list, to_choices
from prism_lite.data.formats.turns import (
    answer_of_completion,
    refuse_other_media,
    split_target,
    strip_answer,
    to_turns,
    with_marks,
)
from prism_lite.types import Sample, Turn

_ID_NAMES = ("id", "question_id", "pid", "index", "idx")


def to_sample(row: Row, convention: str, *, stored_as: RawRow, rules: PictureRules) -> Sample:
    """Build the Sample of a row.

    Args:
        row: its fields, renamed where a registry or a column map says so.
        convention: a name from `detect`, or "columns" for a row renamed by a column map.
        stored_as: where the row is from; its number is the id where the row has none.
        rules: how picture references are resolved.

    Raises:
        RowError: the row cannot be used; the message starts with its place.
    """
    try:
        refuse_other_media(row)
        return _build(row, READERS[convention](row), stored_as, rules)
    except RowError as error:
        raise RowError(error.kind, f"{stored_as.place}: {error}") from error


def _build(row: Row, fields: Fields, stored_as: RawRow, rules: PictureRules) -> Sample:
    listed = as_list(parse_json_cell(fields.references))
    inside: list[Any] = []
    turns = to_turns(fields.messages, inside)
    if fields.system is not None and not isinstance(fields.system, str):
        raise RowError("text_type", f"system is a {type(fields.system).__name__}; expected text.")
    if fields.system and turns[0].role != "system":
        turns.insert(0, Turn("system", fields.system))
    _fill_objects(row, turns)
    turns, target = split_target(turns)
    demonstration = fields.demonstration if fields.demonstration is not None else target
    if listed and inside:
        raise RowError(
            "picture_count",
            "pictures stand both in the messages and in a column; keep one of the two.",
        )
    prompt, references = with_marks(turns, inside or listed)
    if not any(turn.text.replace("<image>", "").strip() for turn in prompt if turn.role == "user"):
        raise RowError("empty_prompt", "the prompt has no text; write the question.")
    answer, accepted = _answers(row, fields, demonstration)
    named = (row[name] for name in _ID_NAMES if row.get(name) not in (None, ""))
    return Sample(
        id=str(next(named, stored_as.number)),
        turns=prompt,
        pictures=tuple(to_picture(reference, rules) for reference in references),
        answer=answer,
        demonstration=demonstration,
        teacher=fields.teacher,
        student=fields.student,
        source=stored_as.place,
        accepted=accepted,
        choices=to_choices(fields.choices),
        file=stored_as.file,
        row=stored_as.number,
    )


def _answers(
    row: Row, fields: Fields, demonstration: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """The gold answer (reward_model > solution > answer > ground_truth > completion) and its
    equals.
    """
    value = fields.answer
    if value is None:
        reward_model = parse_json_cell(row.get("reward_model"))
        if isinstance(reward_model, Mapping):
            value = reward_model.get("ground_truth")
        elif reward_model is not None:
            raise RowError(
                "answer_type", "reward_model is no object; expected {style, ground_truth}."
            )
    for name in ("solution", "answer", "ground_truth"):
        value = row.get(name) if value is None else value
    value = parse_json_cell(value)
    further = parse_json_cell(row.get("equivalent_answers", row.get("accepted")))
    accepted = [strip_answer(one) for one in as_list(further)]
    if isinstance(value, list) and value and _is_numeric(value):
        value = json.dumps(value)  # numbers: one box or pair, not several accepted answers
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise RowError(
                "answer_type", "the list of answers is empty; write one or leave it out."
            )
        accepted = [*(strip_answer(one) for one in value[1:]), *accepted]
        value = value[0]
    if value is None and demonstration:
        return answer_of_completion(demonstration), ()
    return strip_answer(value), tuple(one for one in accepted if one)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(one) for one in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fill_objects(row: Row, turns: list[Turn]) -> None:
    """Replace ms-swift's `<ref-object>` and `<bbox>` by the row's objects, in order of
    occurrence.
    """
    objects = parse_json_cell(row.get("objects"))
    if not isinstance(objects, Mapping):
        return
    for mark, values in (("<ref-object>", objects.get("ref")), ("<bbox>", objects.get("bbox"))):
        left = as_list(values)
        for i, turn in enumerate(turns):
            text = turn.text
            while mark in text:
                if not left:
                    raise RowError(
                        "object_count", f"more {mark} marks than objects; list one for each."
                    )
                text = text.replace(mark, str(left.pop(0)), 1)
            turns[i] = Turn(turn.role, text)
