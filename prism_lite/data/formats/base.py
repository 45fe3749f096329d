"""What the format modules share: a raw row, where rows come from, and the two errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RowError(ValueError):
    """A row that cannot be used. `kind` names the defect in reports, the text says how to mend
    it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class FileError(ValueError):
    """A whole file that cannot be read. `kind` as for RowError."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class RawRow:
    """A row as stored.

    Attributes:
        place: "train.jsonl, line 7" or "train.parquet, row 7"; counted from 1.
        number: the 7.
        value: the row, or the error that stands in its place.
        file: path or hub id, which `place` shortens to the file's name.
    """

    place: str
    number: int
    value: dict[str, Any] | RowError
    file: str = ""


@dataclass(frozen=True)
class Source:
    """What a path or hub id names.

    Attributes:
        files: data files in order; empty for a hub id.
        hub: id, file, subset and split of a hub data set, or None.
        limit: rows to take, from "#N", or None.
    """

    name: str
    files: tuple[Path, ...] = ()
    hub: dict[str, str | None] | None = None
    limit: int | None = None


def checked_row(place: str, number: int, value: Any) -> RawRow:
    """The row, or the error where a file has something else in its place."""
    if isinstance(value, dict):
        return RawRow(place, number, value)
    message = (
        f"{place}: a {type(value).__name__} where a row is expected; write an object with named "
        "fields."
    )
    return RawRow(place, number, RowError("not_a_row", message))


# Lists of texts or objects, the empty list, objects. "[1, 2]" stays text: an answer may be an
# interval.
_JSON_CELL = re.compile(r'\s*(?:\[\s*["{]|\[\s*\]|\{\s*")')


def parse_json_cell(value: Any) -> Any:
    """A list or object written as text in one cell (csv, some parquet), else the value itself."""
    if isinstance(value, str) and _JSON_CELL.match(value):
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value
