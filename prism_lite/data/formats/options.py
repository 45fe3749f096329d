"""Options of multiple-choice rows: under any common name, as a list or one column each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prism_lite.data.formats.base import FieldsOfRow, RowError, as_list, is_empty, parse_cell
from prism_lite.data.formats.names import OPTION_NAMES, option_mark
from prism_lite.rewards.answers.choices import option_texts, options_in
from prism_lite.types import Turn

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_choices(row: FieldsOfRow) -> tuple[str, ...]:
    """Return the option texts of a row from A on, as stored, or ().

    Raises:
        RowError: the options are not a list.
    """
    for name in OPTION_NAMES:
        value = row.peek(name)
        if not is_empty(value):
            return _texts(row[name], name)
    return _texts_of_columns(row)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    value = parse_cell(value)
    if isinstance(value, Mapping):
        # {"A": .., "B": ..}, or ARC's {"text": [..], "label": [..]}
        by_letter = [value[key] for key in sorted(value) if not is_empty(value[key])]
        value = value["text"] if isinstance(value.get("text"), list) else by_letter
    if isinstance(value, str):
        listed = options_in(value)
        if not listed:
            message = f"{name} is the text {value[:60]!r}; expected a list."
            raise RowError("choices_type", message)
        value = listed
    options = [_option_text(option) for option in as_list(value)]
    if len(options) > len(LETTERS):
        message = f"{name} has {len(options)} options; at most {len(LETTERS)} have a letter."
        raise RowError("choices_type", message)
    return tuple(options)


def _option_text(option: Any) -> str:
    if isinstance(option, Mapping):  # {"label": "A", "text": "a cat"}
        option = next(
            (option[n] for n in ("text", "content", "value", "option") if n in option), option
        )
    if isinstance(option, Mapping | list):
        message = f"an option is a {type(option).__name__}; expected text."
        raise RowError("choices_type", message)
    return str(option)


def _texts_of_columns(row: FieldsOfRow) -> tuple[str, ...]:
    """Return the values of columns such as A, B, C or option_1, option_2."""
    groups: dict[str, dict[str, str]] = {}
    for name in row:
        mark = option_mark(name)
        if mark and not is_empty(row.peek(name)):
            groups.setdefault(mark[0], {})[mark[1]] = name
    for group in groups.values():
        for marks in ("abcdefghij", "123456789", "0123456789"):
            names = [group[mark] for mark in marks if mark in group]
            # A gap would move the letters of the options after it.
            if len(names) > 1 and names == [group.get(mark) for mark in marks[: len(names)]]:
                return tuple(str(row[name]) for name in names)
    return ()


def with_options(turns: Sequence[Turn], choices: Sequence[str]) -> tuple[Turn, ...]:
    """Return the turns with the options at the end of the last user turn, unless it lists them."""
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    text = turns[last].text
    if not choices or _lists(text, choices):
        return tuple(turns)
    texts = option_texts(choices) if len(choices) <= 10 else tuple(choices)
    if list(texts) == list(LETTERS[: len(texts)]):  # the options are in the picture
        lines = [f"Options: {', '.join(texts)}"]
    else:
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, texts, strict=False)]
    turn = Turn("user", "\n".join([text, *lines]))
    return (*turns[:last], turn, *turns[last + 1 :])


def _lists(text: str, choices: Sequence[str]) -> bool:
    """Return whether a text has every option after its letter."""
    lettered = zip(LETTERS, option_texts(choices), strict=False)
    return all(
        re.search(rf"(?:^|[\s(,;\[]){letter}\s*[).:\]]*\s*{re.escape(option)}", text)
        for letter, option in lettered
    )


def has_option_column(row: FieldsOfRow) -> str:
    """Return the name of an unread column that is named as one option is ("b", "option_c"), or ""."""
    return next((name for name in row.unread() if option_mark(name)), "")


_NOT_OPTIONS = re.compile(
    r".*(?:tag|keyword|type|categor|topic|skill|subject|step|rationale|hint|source|concept|author|turn|tool"
    r"|message|conversation|history|caption|box|image|picture|video|audio).*"
)  # fmt: skip


def unread_options(row: FieldsOfRow, answer: Any) -> str:
    """Return the name of an unread column that holds the options of this gold answer, or "".

    Args:
        answer: as stored. A list counts as options where the answer is a letter or an index of it, or
            one of its values.
    """
    for name in row.unread():
        value = parse_cell(row.peek(name))
        if isinstance(value, Mapping):
            value = list(value.values()) if sorted(value)[:2] == ["A", "B"] else value.get("text")
        if not isinstance(value, list) or _NOT_OPTIONS.fullmatch(name) or not _are_options(value):
            continue
        texts = [str(item).strip() for item in value]
        letter = str(answer).strip().strip("().").upper()
        is_letter = len(letter) == 1 and letter in LETTERS[: len(texts)]
        is_index = (
            isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts)
        )
        if is_letter or is_index or str(answer).strip() in texts:
            return name
    return ""


def _are_options(values: list[Any]) -> bool:
    is_short = all(
        isinstance(value, str | int | float) and len(str(value)) <= 400 for value in values
    )
    return is_short and len(values) >= 2 and len(set(map(str, values))) == len(values)
