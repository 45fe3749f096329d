"""Types that the format modules share: a stored row, where rows come from, and what is wrong."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that cannot be used; `kind` names the defect in reports, the text says how to fix it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class FileError(ValueError):
    """A file that cannot be read at all, or not to its end; `kind` as for RowError."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Finding:
    """One defect of a data file.

    Attributes:
        file: path or hub id; "" where the file could not be opened.
        row: number in that file, from 1; 0 for the file itself.
        kind: fixed name ("picture_count").
        message: one sentence with file, row and how to fix it.
    """

    file: str
    row: int
    kind: str
    message: str


@dataclass(frozen=True)
class RawRow:
    """A row as stored.

    Attributes:
        file: path or hub id.
        number: its line (JSONL) or row in that file, from 1.
        place: "train.jsonl, line 7" or "train.parquet, row 7", for messages.
        value: its fields, or why they cannot be read.
    """

    file: str
    number: int
    place: str
    value: dict[str, Any] | RowError


@dataclass(frozen=True)
class Source:
    """What a path or hub id names.

    Attributes:
        name: the path or id.
        files: data files in order; empty for a hub id.
        hub: id, file, subset and split of a hub data set, or None.
        limit: rows to read, from "#N", or None.
        split: of the rows to read, from "@split", or None for all; of a folder its files were chosen by it.
        note: what was chosen of a folder with several splits, or "".
    """

    name: str
    files: tuple[Path, ...] = ()
    hub: dict[str, str | None] | None = None
    limit: int | None = None
    split: str | None = None
    note: str = ""


def first_value(row: Row, names: Sequence[str]) -> Any:
    """Return the first value of these columns that is not None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def as_list(value: Any) -> list[Any]:
    """Return a list of what may be one value, several or none."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


# Lists of texts or objects, the empty list, objects. "[1, 2]" stays text: an answer may be an
# interval.
_LIST_CELL = re.compile(r"""\s*(?:\[\s*["'{]|\[\s*\]|\{\s*["'])""")
# str(numpy array): without commas, Python would join the texts.
_JOINED_TEXTS = re.compile(r"""(?<![\[,:{\s])["']\s+["']""")


def parse_cell(value: Any) -> Any:
    """Parse a list or object that is written as text in one cell, as JSON or as Python writes it."""
    if not isinstance(value, str) or not _LIST_CELL.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if _JOINED_TEXTS.search(value):
        return value
    try:
        parsed = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return parsed if isinstance(parsed, list | dict) else value


def is_empty(value: Any) -> bool:
    """Return whether a stored value is a missing one: None, NaN, "", [] or {}."""
    return value is None or (isinstance(value, str | list | dict) and not value) or value != value


class FieldsOfRow(Mapping[str, Any]):
    """The fields of a row that are not missing; remembers which of them were read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def peek(self, name: str) -> Any:
        """Return a value, or None, without counting it as read."""
        return self._fields.get(name)

    def unread(self) -> list[str]:
        """Return the names of the fields that hold something and were not read."""
        return [n for n, v in self._fields.items() if n not in self._read and not is_empty(v)]
