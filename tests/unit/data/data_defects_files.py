"""Files that are broken completely or in one line: name -> kind, file, row, writer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

from data_rows import TEXT


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _parquet_cut(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([TEXT]), path)
    path.write_bytes(path.read_bytes()[:-20])


GOOD_LINE = json.dumps(TEXT).encode()
# name: (kind, file name, row or 0 for the file, writer)
FILE_DEFECTS = {
    "file is missing": ("missing_file", "x.jsonl", 0, lambda path: None),
    "file is empty": ("empty_file", "x.jsonl", 0, _bytes(b"")),
    "file is white space": ("empty_file", "x.jsonl", 0, _bytes(b"\n \n")),
    "json is white space": ("empty_file", "x.json", 0, _bytes(b" \n")),
    "json array is empty": ("empty_file", "x.json", 0, _bytes(b"[]")),
    "json is an object": ("not_rows", "x.json", 0, _bytes(b'{"a": 1}')),
    "json is a number": ("not_rows", "x.json", 0, _bytes(b"5")),
    "json array is not closed": ("broken_json", "x.json", 0, _bytes(b"[" + GOOD_LINE)),
    "json without a comma": ("broken_json", "x.json", 0, _bytes(b"[" + GOOD_LINE * 2 + b"]")),
    "json is not UTF-8": ("broken_text", "x.json", 0, _bytes(b'[{"prompt": "\xff\xfe"}]')),
    "pickle": ("pickle", "x.pkl", 0, _bytes(pickle.dumps([TEXT]))),
    "torch file": ("pickle", "x.pt", 0, _bytes(b"PK\x03\x04")),
    "unknown file type": ("unknown_suffix", "x.docx", 0, _bytes(b"abc")),
    "no suffix": ("unknown_suffix", "rows", 0, _bytes(GOOD_LINE)),
    "folder without data": ("empty_folder", "folder", 0, lambda path: path.mkdir()),
    "unknown format": ("unknown_format", "x.jsonl", 0, _bytes(b'{"a": 1, "b": 2}')),
    "broken JSON line": (
        "broken_json",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b"\n" + GOOD_LINE[:-9] + b"\n"),
    ),
    "line is not UTF-8": (
        "broken_text",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b'\n{"prompt": "caf\xe9"}\n'),
    ),
    "line is a list": ("not_a_row", "x.jsonl", 2, _bytes(GOOD_LINE + b"\n[1, 2]\n")),
    "line nested too deeply": (
        "broken_json",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b"\n" + b"[" * 200_000 + b"\n"),
    ),
    "line with a number of 5,000 digits": (
        "broken_json",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b'\n{"answer": ' + b"1" * 5000 + b"}\n"),
    ),
    "no line is readable": ("no_readable_row", "x.jsonl", 0, _bytes(b"{\n{\n")),
    "csv without header names": ("bad_header", "x.csv", 0, _bytes(b"a,,b\n1,2,3\n")),
    "csv with a name twice": ("bad_header", "x.csv", 0, _bytes(b"a,a\n1,2\n")),
    "csv row with a cell too many": (
        "cell_count",
        "x.csv",
        2,
        _bytes(b"question,answer\nwhy,3\nhow,1,2\n"),
    ),
    "csv with an open quote": (
        "broken_csv",
        "x.csv",
        0,
        _bytes(b'question,answer\nwhy,3\n"how,4\n'),
    ),
    "parquet cut off": ("broken_table", "x.parquet", 0, _parquet_cut),
    "parquet is text": ("broken_table", "x.parquet", 0, _bytes(b"question,answer\n")),
    "arrow is text": ("broken_table", "x.arrow", 0, _bytes(b"question,answer\n" * 9)),
    "registry is broken": ("broken_json", "dataset_info.json", 0, _bytes(b"{")),
    "registry without file": ("bad_registry", "dataset_info.json", 0, _bytes(b'{"a": {}}')),
    "registry names no format": (
        "bad_registry",
        "dataset_info.json",
        0,
        _bytes(b'{"a": {"file_name": "x", "formatting": "xml"}}'),
    ),
}
