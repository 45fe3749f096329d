"""Values of text files, numbered from 1: jsonl, json, csv. All of them stream."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from prism_lite.data.formats.base import FileError, RowError, parse_cell
from prism_lite.data.formats.detect import detect

# Suffix of a compressed file and how it is opened.
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

_PEEKED_BYTES = 4096
_CHUNK_CHARACTERS = 1 << 20
_SPACES = re.compile(r"[ \t\r\n]*")


def _open_bytes(path: Path) -> BinaryIO:
    return COMPRESSED.get(path.suffix.lower(), open)(path, "rb")


def _open_text(path: Path, newline: str | None = None) -> TextIO:
    return io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline=newline)


def is_json_lines(path: Path) -> bool:
    """Return whether a file holds one JSON value per line, whatever its name says.

    An array is not; an object is where it fills the first line and others follow, or where the name is
    not .json.
    """
    is_named_json = Path(
        path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path
    ).suffix
    with _open_bytes(path) as stream:
        if stream.read(_PEEKED_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return False
        stream.seek(0)
        lines = (line for line in stream if line.removeprefix(codecs.BOM_UTF8).strip())
        first = next(lines, b"")
        if is_named_json.lower() != ".json":
            return True
        return not isinstance(_line_value(first), RowError) and next(lines, None) is not None


def jsonl_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the value of every line that is not blank, or its RowError."""
    with _open_bytes(path) as stream:
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
    with _open_text(path) as stream:
        while (first := stream.read(1)).isspace():
            pass
        if not first:
            raise FileError("empty_file", f"{path} holds white space only: it has no rows.")
        values = _array_values(stream) if first == "[" else _wrapped_values(stream, path)
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


def _wrapped_values(stream: TextIO, path: Path) -> list[Any]:
    """Return the rows of {"data": [...]}, an object with one list of objects, or of one row."""
    stream.seek(0)
    value = json.load(stream)
    if isinstance(value, dict) and detect(value):
        return [value]
    if isinstance(value, dict):
        lists = [rows for rows in value.values() if isinstance(rows, list)]
        if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            return lists[0]
    raise FileError(
        "not_rows",
        f"{path} is not a list of rows: expected an array of objects, or an object with one such array "
        f"(it holds {', '.join(map(str, value))[:200] if isinstance(value, dict) else 'no object'}); write "
        "one array to a file.",
    )


def csv_values(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Yield each record as a dict, or its RowError; empty cells are missing values (None)."""
    csv.field_size_limit(1 << 28)  # base64 pictures
    with _open_text(path, newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if not header or len(set(header)) != len(header) or not all(header):
            message = f"{path}: the first line must name every column once; got {header}."
            raise FileError("bad_header", message)
        for number, cells in enumerate(reader, start=1):
            if len(cells) == len(header):
                # Lists and objects are written in cells as JSON.
                values = (parse_cell(cell) if cell else None for cell in cells)
                yield number, dict(zip(header, values, strict=True))
            elif cells:
                message = (
                    f"{len(cells)} cells for {len(header)} columns; quote cells that hold "
                    f"{delimiter!r} or line breaks."
                )
                yield number, RowError("cell_count", message)
