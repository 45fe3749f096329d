"""Rows of text files: jsonl, json, csv. All of them stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from prism_lite.data.formats.base import FileError, RawRow, RowError, checked_row, parse_json_cell

_CHUNK_CHARACTERS = 1 << 20


def jsonl_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            place = f"{path.name}, line {number}"
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                message = f"{place}: not UTF-8 ({error.reason}); save the file as UTF-8."
                yield RawRow(place, number, RowError("broken_text", message))
                continue
            except (json.JSONDecodeError, RecursionError) as error:
                reason = (
                    error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                )
                message = (
                    f"{place}: broken JSON ({reason}); each line must be one whole JSON object."
                )
                yield RawRow(place, number, RowError("broken_json", message))
                continue
            yield checked_row(place, number, value)


def json_rows(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            start = _first_sign(stream)
            values = _stream_array(stream) if start == "[" else _wrapped_rows(stream, path)
            for number, value in enumerate(values, start=1):
                yield checked_row(f"{path.name}, row {number}", number, value)
        except UnicodeDecodeError as error:
            raise FileError(
                "broken_text", f"{path}: not UTF-8 ({error.reason}); save it as UTF-8."
            ) from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise FileError(
                "broken_json",
                f"{path}: broken JSON ({error}); it must be one array of objects, or use .jsonl "
                "with one object per line.",
            ) from error


def _first_sign(stream: TextIO) -> str:
    """The first sign that is no white space; the stream then stands just after it."""
    while sign := stream.read(1):
        if not sign.isspace():
            return sign
    raise FileError("empty_file", f"{stream.name} holds white space only: it has no rows.")


def _stream_array(stream: TextIO) -> Iterator[Any]:
    """Values of a JSON array whose "[" was read, without holding the whole text."""
    decoder = json.JSONDecoder()
    buffer, position, chunk = "", 0, _CHUNK_CHARACTERS
    at_end = False
    expects_value = True
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n":
            position += 1
        if position < len(buffer):
            sign = buffer[position]
            if sign == "]":
                return
            if sign == "," and not expects_value:
                position, expects_value = position + 1, True
                continue
            try:
                value, end = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError:
                if at_end:
                    raise
            else:
                # A number at the end of the buffer may go on in the next chunk.
                if end < len(buffer) or at_end:
                    if not expects_value:
                        raise json.JSONDecodeError("Expecting ',' delimiter", buffer, position)
                    yield value
                    position, chunk, expects_value = end, _CHUNK_CHARACTERS, False
                    continue
        elif at_end:
            raise json.JSONDecodeError(
                "the array is not closed", buffer[-80:], min(80, len(buffer))
            )
        more = stream.read(chunk)
        chunk *= 2  # a long value is then parsed anew a few times only
        at_end = not more
        buffer, position = buffer[position:] + more, 0


def _wrapped_rows(stream: TextIO, path: Path) -> list[Any]:
    """Rows of {"data": [...]}: an object with exactly one list of objects."""
    stream.seek(0)
    value = json.load(stream)
    lists = (
        [rows for rows in value.values() if isinstance(rows, list)]
        if isinstance(value, dict)
        else []
    )
    if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
        return lists[0]
    if (
        isinstance(value, dict)
        and {"messages", "conversations", "prompt", "question"} & value.keys()
    ):
        return [value]
    raise FileError(
        "not_rows",
        f"{path} is not a list of rows: expected an array of objects, or an object with one such "
        "array.",
    )


def csv_rows(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(1 << 28)  # base64 pictures
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        number = 0
        try:
            header = next(reader, None)
            if not header or len(set(header)) != len(header) or not all(header):
                raise FileError(
                    "bad_header",
                    f"{path}: the first line must name every column once; got {header}.",
                )
            for number, cells in enumerate(reader, start=1):
                place = f"{path.name}, row {number}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    message = (
                        f"{place}: {len(cells)} cells for {len(header)} columns; quote cells that "
                        f"hold {delimiter!r} or line breaks."
                    )
                    yield RawRow(place, number, RowError("cell_count", message))
                    continue
                # An empty cell is a missing value; lists and objects stand in cells as JSON.
                values = [parse_json_cell(cell) if cell else None for cell in cells]
                yield RawRow(place, number, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise FileError(
                "broken_csv", f"{path}, after row {number}: {error}; check the quotes there."
            ) from error
        except UnicodeDecodeError as error:
            raise FileError(
                "broken_text", f"{path}: not UTF-8 ({error.reason}); save it as UTF-8."
            ) from error
