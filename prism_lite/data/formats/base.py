"""Types that the format modules share: a stored row, where rows come from, and what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
    """

    name: str
    files: tuple[Path, ...] = ()
    hub: dict[str, str | None] | None = None
    limit: int | None = None


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
_JSON_CELL = re.compile(r'\s*(?:\[\s*["{]|\[\s*\]|\{\s*")')


def parse_json_cell(value: Any) -> Any:
    """Parse a list or object that is written as text in one cell (csv, some parquet files)."""
    if isinstance(value, str) and _JSON_CELL.match(value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
