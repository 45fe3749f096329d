"""Values of text files, numbered from 1: jsonl, json, csv. All of them stream."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from prism_lite.data.formats.base import FileError, RowError, parse_json_cell

_CHUNK_CHARACTERS = 1 << 20
_SPACES = re.compile(r"[ \t\r\n]*")


def jsonl_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the value of every line that is not blank, or its RowError."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield number, _line_value(line)


def _line_value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return RowError("broken_text", f"not UTF-8 ({error.reason}); save the file as UTF-8.")
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        return RowError("broken_json", f"broken JSON ({reason}); write one JSON object per line.")


def json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of an array, or of the one array inside an object."""
    with path.open(encoding="utf-8-sig") as stream:
        while (first := stream.read(1)).isspace():
            pass
        if not first:
            raise FileError("empty_file", f"{path} holds white space only: it has no rows.")
        values = _array_values(stream) if first == "[" else _wrapped_values(stream)
        yield from enumerate(values, start=1)


def _array_values(stream: TextIO) -> Iterator[Any]:
    """Yield the values of a JSON array whose "[" was read, without holding its whole text."""
    decode = json.JSONDecoder().raw_decode
    text, start, num_characters = "", 0, _CHUNK_CHARACTERS
    while True:
        start = _end_of_spaces(text, start)
        if text.startswith("]", start):
            return
        try:
            value, end = decode(text, start)
            end = _end_of_spaces(text, end)
            if not text.startswith((",", "]"), end):  # a number may continue in the next chunk
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
        except json.JSONDecodeError as error:
            chunk = stream.read(num_characters)
            if not chunk:
                raise error
            num_characters *= 2  # a long value is then parsed again a few times only
            text, start = text[start:] + chunk, 0
        else:
            yield value
            start = end + text.startswith(",", end)
            num_characters = _CHUNK_CHARACTERS


def _end_of_spaces(text: str, start: int) -> int:
    match = _SPACES.match(text, start)
    assert match is not None  # it matches the empty text too
    return match.end()


def _wrapped_values(stream: TextIO) -> list[Any]:
    """Return the rows of {"data": [...]}, an object with one list of objects, or of one row."""
    stream.seek(0)
    value = json.load(stream)
    if isinstance(value, dict):
        lists = [rows for rows in value.values() if isinstance(rows, list)]
        if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            return lists[0]
        if {"messages", "conversations", "prompt", "question"} & value.keys():
            return [value]
    raise FileError(
        "not_rows",
        f"{stream.name} is not a list of rows: expected an array of objects, or an object with one "
        "such array.",
    )


def csv_values(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Yield each record as a dict, or its RowError; empty cells are missing values (None)."""
    csv.field_size_limit(1 << 28)  # base64 pictures
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if not header or len(set(header)) != len(header) or not all(header):
            message = f"{path}: the first line must name every column once; got {header}."
            raise FileError("bad_header", message)
        for number, cells in enumerate(reader, start=1):
            if len(cells) == len(header):
                # Lists and objects are written in cells as JSON.
                values = (parse_json_cell(cell) if cell else None for cell in cells)
                yield number, dict(zip(header, values, strict=True))
            elif cells:
                message = (
                    f"{len(cells)} cells for {len(header)} columns; quote cells that hold "
                    f"{delimiter!r} or line breaks."
                )
                yield number, RowError("cell_count", message)
