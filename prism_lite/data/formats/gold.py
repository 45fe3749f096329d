"""The gold answer of a row and further accepted ones, whatever their columns are called."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prism_lite.data.formats.base import FieldsOfRow, RowError, as_list, is_empty, parse_cell
from prism_lite.data.formats.names import MAIN_ANSWER_NAMES, OTHER_ANSWER_NAMES, is_index_name
from prism_lite.data.formats.options import LETTERS
from prism_lite.data.formats.turns import strip_answer
from prism_lite.rewards.answers.choices import option_texts


def stored_answer(row: FieldsOfRow, choices: Sequence[str]) -> Any:
    """Return the gold answer as stored, or None.

    `ground_truth` of verl's reward_model comes first. Of solution, answer and ground_truth one with an
    answer tag counts, else the shortest: the others explain it. An index of the options (such as
    correct_choice_idx) comes before a number, and before answers under less common names.

    Raises:
        RowError: reward_model is not an object, or an index is not one of the options'.
    """
    for name in row:
        value = parse_cell(row.peek(name))
        if isinstance(value, Mapping) and "ground_truth" in value:
            return parse_cell(row[name])["ground_truth"]
    if not isinstance(row.get("reward_model", {}), Mapping | str):
        message = "reward_model is not an object; expected {style, ground_truth}."
        raise RowError("answer_type", message)
    names = [name for name in MAIN_ANSWER_NAMES if not is_empty(row.peek(name))]
    numbered = next((n for n in row if is_index_name(n) and not is_empty(row.peek(n))), None)
    is_number = all(_index(row.peek(name)) is not None for name in names)
    if choices and numbered and is_number:
        index = row[numbered]
        return index if _index(index) is None else _option(index, choices, is_certain=True)
    if names:
        return row[min(names, key=lambda name: _rank(row.peek(name)))]
    for name in OTHER_ANSWER_NAMES:
        if not is_empty(row.peek(name)):
            return row[name]
    empty = next(
        (name for name in MAIN_ANSWER_NAMES if isinstance(row.peek(name), str | list)), None
    )
    return row[empty] if empty else None


def _rank(value: Any) -> tuple[bool, int]:
    is_tagged = isinstance(value, str) and "<answer>" in value
    first = value[0] if isinstance(value, list) and value else value
    return not is_tagged, len(str(first))


def read_gold(
    row: FieldsOfRow, value: Any, choices: Sequence[str]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the gold answer and further accepted ones.

    Args:
        value: `stored_answer`, or what a reader found.
        choices: the row's options; an integer then numbers one of them from 0.

    Raises:
        RowError: the answer is not text or a number, or it cannot be told which option it is.
    """
    value = parse_cell(value)
    if isinstance(value, Mapping) and is_empty(value.get("value")):  # SQuAD, VQAv2
        value = value.get("answer", value.get("text", value))
    further = as_list(parse_cell(row.get("equivalent_answers", row.get("accepted"))))
    if isinstance(value, list) and value and _is_numeric(value):
        value = json.dumps(value)  # numbers: one box or interval, not several accepted answers
    if isinstance(value, list):
        values = [v.get("answer", v.get("text", v)) if isinstance(v, Mapping) else v for v in value]
        if not values:
            message = "the list of answers is empty; write one or leave it out."
            raise RowError("answer_type", message)
        if choices and len(values) > 1 and all(v in list(LETTERS) for v in values):
            value = ", ".join(values)  # all of these options
        else:
            value, further = values[0], [*values[1:], *further]
    if choices and _index(value) is not None:
        value = _option(value, choices, is_certain=False)
    gold = strip_answer(None if is_empty(value) and value != "" else value)
    texts = [text for text in map(strip_answer, further) if text and text != gold]
    return gold, tuple(dict.fromkeys(texts))


def _index(value: Any) -> int | None:
    """Return the number that a value of a numeric column is, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _option(value: Any, choices: Sequence[str], *, is_certain: bool) -> str:
    """Return the letter of the option that a number names, or the number where it is an option itself.

    Raises:
        RowError: it is neither; or both, of different options.
    """
    index = _index(value)
    assert index is not None
    texts = option_texts(choices) if len(choices) <= 10 else tuple(choices)
    equal = [] if is_certain else [i for i, text in enumerate(texts) if _is_number(text, index)]
    is_index = 0 <= index < len(choices)
    if equal and is_index and index not in equal:
        raise RowError(
            "ambiguous_answer",
            f"the answer {index} is an option itself ({LETTERS[equal[0]]}) and the index of another "
            f"({LETTERS[index]}, counted from 0): write the letter.",
        )
    if equal:
        return str(index)
    if not is_index:
        raise RowError(
            "answer_not_in_choices",
            f"the answer {index} is none of the {len(choices)} options, and no index of one (counted from "
            "0): write the letter.",
        )
    return LETTERS[index]


def _is_number(text: str, number: int) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
