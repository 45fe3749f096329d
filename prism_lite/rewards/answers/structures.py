r"""Answers of several entries: coordinates, intervals, sets, lists.

"(1, 2)" keeps its order and its brackets, "{1, 2}" has no order, a bare "1, 2" or "x = 1 or x = 2"
has no order either (solutions, names), "a -> b -> c" keeps it. "12" is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from prism_lite.rewards.answers.text import closing_bracket

MAX_ENTRIES = 64


@dataclass(frozen=True)
class Structure:
    """Entries and what encloses them.

    Attributes:
        brackets: "()", "[]", "[)", "(]", "{}", "" for a bare list, "->" for a sequence.
        entries: cleaned texts, at least two.
    """

    brackets: str
    entries: tuple[str, ...]

    @property
    def is_ordered(self) -> bool:
        return self.brackets not in ("", "{}")


_ARROW = re.compile(r"\s*(?:-+>|=>|→|\\to(?![a-zA-Z])|\\rightarrow(?![a-zA-Z]))\s*")
_JOINER = re.compile(r"\s+(?:and|or|\\text\s*\{\s*(?:and|or)\s*\})\s+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"[A-Z]'?\s*(?=\()")
_PLUS_MINUS = re.compile(r"([A-Za-z]\s*=\s*)?(?:\\pm|\+/-|\+-)\s*(.+)")


@lru_cache(maxsize=4096)
def parse_structure(text: str) -> Structure | None:
    """The entries of a cleaned answer, or None where it is one value."""
    text = text.replace(r"\{", "{").replace(r"\}", "}")
    either = _PLUS_MINUS.fullmatch(text)
    if either and not re.search(r"\\pm|\+-|[,;]", either.group(2)):
        return Structure("", (either.group(2), f"-{either.group(2)}"))
    point = _POINT.match(text)
    if point and closing_bracket(text, point.end()) == len(text) - 1:
        text = text[point.end() :]
    if len(text) > 1 and text[0] in "([{" and closing_bracket(text, 0) == len(text) - 1:
        brackets = text[0] + text[-1]
        entries = _split(text[1:-1], is_bare=False)
        if len(entries) < 2 or brackets not in ("()", "[]", "[)", "(]", "{}"):
            return None
        return _checked(brackets, entries)
    arrows = _ARROW.split(text)
    if len(arrows) > 1:
        return _checked("->", arrows)
    entries = _split(text, is_bare=True)
    return _checked("", entries) if len(entries) > 1 else None


def strip_brackets(text: str) -> str:
    """The inside of brackets around one value: "(5)", "{5}" and "[5]" are "5"."""
    for _ in range(8):
        bare = text.replace(r"\{", "{").replace(r"\}", "}")
        inside = bare[1:-1].strip()
        is_pair = len(bare) > 2 and bare[0] + bare[-1] in ("()", "[]", "{}")
        if not is_pair or closing_bracket(bare, 0) != len(bare) - 1 or not inside:
            return text
        if len(_split(inside, is_bare=False)) > 1:
            return text
        text = inside
    return text


def _checked(brackets: str, entries: Sequence[str]) -> Structure | None:
    cleaned = tuple(entry.strip() for entry in entries)
    return Structure(brackets, cleaned) if all(cleaned) and len(cleaned) <= MAX_ENTRIES else None


def _split(text: str, *, is_bare: bool) -> list[str]:
    """Split at top-level commas and semicolons, in a bare list also at "and" and "or"."""
    protected = text
    if is_bare and re.search(r",\s", text):
        # "1,234, 5,678" holds two numbers; "\0" stands for a comma within one.
        protected = _GROUPED.sub("\0", text)
    if is_bare:
        protected = _JOINER.sub(",", re.sub(r"[,;]\s*(?=(?:and|or)\s)", " ", protected))
    separator = ";" if ";" in protected else ","
    entries, depth, start = [], 0, 0
    for i, sign in enumerate(protected):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif depth == 0 and sign == separator:
            entries.append(protected[start:i])
            start = i + 1
    entries.append(protected[start:])
    if entries and not entries[-1].strip():
        entries.pop()
    return [entry.replace("\0", ",") for entry in entries]


def compare_structures(
    predicted: Structure, gold: Structure, same: Callable[[str, str], bool]
) -> tuple[bool, str]:
    """Entry by entry, in order where either side has one.

    Brackets must agree, except that a bare list may stand for any whole pair, and that round and
    square ones are alike for three or more entries, which are no interval.
    """
    num_entries = len(gold.entries)
    if len(predicted.entries) != num_entries:
        return False, f"{len(predicted.entries)} entries, not {num_entries}"
    if not _brackets_agree(predicted.brackets, gold.brackets, num_entries):
        return False, "brackets conflict"
    if predicted.is_ordered or gold.is_ordered:
        matches = all(same(p, g) for p, g in zip(predicted.entries, gold.entries, strict=True))
        return matches, "entries equal in order" if matches else "entries differ"
    left = list(gold.entries)
    for entry in predicted.entries:
        # The same text first: most lists need no slow comparison at all.
        found = next((g for g in left if g == entry), None) or next(
            (g for g in left if same(entry, g)), None
        )
        if found is None:
            return False, "entries differ"
        left.remove(found)
    return True, "same entries"


def _brackets_agree(predicted: str, gold: str, num_entries: int) -> bool:
    pair = {predicted, gold}
    if len(pair) == 1:
        return True
    if "" in pair:
        return not pair & {"[)", "(]"}
    return num_entries > 2 and pair <= {"()", "[]"}
