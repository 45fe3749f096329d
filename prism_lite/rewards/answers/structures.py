r"""Answers of several entries: coordinates, intervals, sets, lists.

"(1, 2)" keeps its order and its brackets, "{1, 2}" has no order, a bare "1, 2" or "x = 1 or x = 2"
has no order either (solutions, names), "a -> b -> c" keeps it, and "[[1, 2], [3, 4]]" are the rows
of a matrix. "12" is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from prism_lite.rewards.answers.text import closing_bracket

_MAX_ENTRIES = 64  # of unordered lists every pair of entries may be compared


# Brackets ("()", "[]", "[)", "(]", "{}", "" for a bare list, "->" for a sequence) and entries.
Structure = tuple[str, tuple[str, ...]]

_ARROW = re.compile(r"-+>|=>|→|\\(?:to|rightarrow)(?![a-zA-Z])")
_JOINER = re.compile(r"(?:[,;]\s*|\s+)(?:and|or)\s+")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT_LABEL = re.compile(r"[A-Z]'?\s*(\(.*\))")
_PLUS_MINUS = re.compile(r"(?:[A-Za-z]\s*=\s*)?(?:\\pm|\+/?-)\s*((?:(?!\\pm|\+-)[^,;])+)")
_BRACKETS = ("()", "[]", "{}", "[)", "(]")


@lru_cache(maxsize=4096)
def parse_structure(text: str) -> Structure | None:
    """Return the entries of a cleaned answer, or None where it is one value."""
    if match := _PLUS_MINUS.fullmatch(text):
        return "", (match[1], f"-{match[1]}")
    if match := _POINT_LABEL.fullmatch(text):
        text = match[1]
    if _is_enclosed(text):
        brackets, entries = text[0] + text[-1], _split(text[1:-1], is_bare=False)
    elif _ARROW.search(text):
        brackets, entries = "->", [entry.strip() for entry in _ARROW.split(text)]
    else:
        brackets, entries = "", _split(text, is_bare=True)
    min_entries = 1 if _is_matrix(text) else 2  # a matrix of one row is not its row
    if not min_entries <= len(entries) <= _MAX_ENTRIES or not all(entries):
        return None
    return brackets, tuple(entries)


def strip_brackets(text: str) -> str:
    """Return the inside of brackets around one value: "(5)", "{5}" and "[5]" are "5"."""
    for _ in range(8):
        if (
            not _is_enclosed(text)
            or _is_matrix(text)
            or len(_split(text[1:-1], is_bare=False)) != 1
        ):
            break
        text = text[1:-1].strip()
    return text


def _is_matrix(text: str) -> bool:
    return text.startswith("[[") and "," in text


def _is_enclosed(text: str) -> bool:
    is_open = text[:1] in ("(", "[", "{") and text[0] + text[-1] in _BRACKETS
    return is_open and closing_bracket(text, 0) == len(text) - 1


def _split(text: str, *, is_bare: bool) -> list[str]:
    """Split at top-level commas or semicolons, in a bare list also at "and" and "or"."""
    separator = ";" if ";" in text else ","
    if is_bare:
        if re.search(r",\s", text):  # "1,234, 5,678" has two entries; "\0" is a comma within one
            text = _THOUSANDS_COMMA.sub("\0", text)
        text = _JOINER.sub(separator, text)
    entries, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character == separator:
            entries.append("")
        else:
            entries[-1] += character
    if not entries[-1].strip():
        entries.pop()
    return [entry.replace("\0", ",").strip() for entry in entries]


def compare_structures(
    predicted: Structure, gold: Structure, same: Callable[[str, str], bool]
) -> bool:
    """Compare entry by entry, in order where either side has one.

    Brackets must agree, except that a bare list may mean any closed pair, and that round and
    square ones are alike for three or more entries, which are not an interval. A matrix of one row or
    column may be written as coordinates.
    """
    if _is_nested(predicted) != _is_nested(gold):
        predicted, gold = _vector(predicted), _vector(gold)
    (predicted_brackets, entries), (gold_brackets, gold_entries) = predicted, gold
    brackets = {predicted_brackets, gold_brackets}
    is_bare = "" in brackets and not brackets & {"[)", "(]"}
    is_list = len(entries) > 2 and brackets == {"()", "[]"}
    if len(entries) != len(gold_entries) or not (len(brackets) == 1 or is_bare or is_list):
        return False
    if not brackets <= {"", "{}"}:
        return all(same(p, g) for p, g in zip(entries, gold_entries, strict=True))
    remaining = list(gold_entries)
    for entry in entries:
        # Equal text first: most lists need no slow comparison at all.
        candidates = [entry] if entry in remaining else remaining
        match = next((other for other in candidates if same(entry, other)), None)
        if match is None:
            return False
        remaining.remove(match)
    return True


def _is_nested(structure: Structure) -> bool:
    brackets, entries = structure
    return brackets == "[]" and all(entry.startswith("[") for entry in entries)


def _vector(structure: Structure) -> Structure:
    """Return a matrix of one row or column, or a list in square brackets, as coordinates."""
    brackets, entries = structure
    if not _is_nested(structure):
        return ("()" if brackets == "[]" else brackets), entries
    rows = [_split(entry[1:-1], is_bare=False) for entry in entries]
    if len(rows) > 1 and any(len(row) != 1 for row in rows):
        return structure
    return "()", tuple(cell for row in rows for cell in row)
