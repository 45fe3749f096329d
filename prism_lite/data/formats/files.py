"""Rows of a data file, one at a time: json, jsonl, csv, parquet, arrow, a folder of them, a hub id.

Files larger than memory stream. Nothing here looks at what a row means; `build` does. Pickle is never
loaded: opening one runs whatever code it holds.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, RawRow, RowError, Source
from prism_lite.data.formats.tables import hub_values, table_values
from prism_lite.data.formats.text import csv_values, json_values, jsonl_values

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".npy", ".npz", ".joblib")
_METADATA_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
_HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.\w+))?(?::(?P<subset>[\w.-]+))?"
    r"(?:@(?P<split>[\w.-]+))?(?:#(?P<count>\d+))?"
)
_COUNT = re.compile(r"(?P<path>.+)#(?P<count>\d+)$")


def find_source(path_or_id: str) -> Source:
    """Resolve a path, a folder, or a hub id `id:subset@split#N`.

    Raises:
        FileError: nothing is there, the folder holds no data, or the file type is refused.
    """
    path, limit = Path(path_or_id), None
    counted = _COUNT.fullmatch(path_or_id)
    if counted and not path.exists():
        path, limit = Path(counted["path"]), int(counted["count"])
    if path.exists():
        return Source(str(path), _files_at(path), limit=limit)
    hub = _HUB_ID.fullmatch(path_or_id)
    # A mistyped path to a file, or in a folder that exists, must not turn into a download.
    names_file = path.suffix.lower() in (*_DATA_SUFFIXES, *_PICKLE_SUFFIXES) and len(path.parts) < 3
    in_folder = len(path.parts) > 1 and Path(path.parts[0]).exists()
    if hub and not names_file and not in_folder and not path_or_id.startswith("."):
        count = int(hub["count"]) if hub["count"] else None
        return Source(path_or_id, hub=hub.groupdict(), limit=count)
    raise FileError(
        "missing_file",
        f"{path} does not exist: check the path (now in {Path.cwd()}), or give a hub id as "
        "owner/name:subset@split#N.",
    )


def _check_type(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _PICKLE_SUFFIXES:
        raise FileError(
            "pickle",
            f"{path}: {suffix} files may hold pickled code and are never loaded; save the rows as "
            ".jsonl or .parquet instead.",
        )
    if suffix not in _DATA_SUFFIXES:
        raise FileError(
            "unknown_suffix",
            f"{path}: unknown file type {suffix or '(none)'}; expected one of "
            f"{' '.join(_DATA_SUFFIXES)}.",
        )
    if path.stat().st_size == 0:
        message = f"{path} is empty: it holds no rows; check how it was written."
        raise FileError("empty_file", message)


def _files_at(path: Path) -> tuple[Path, ...]:
    """Return the file, or the data files of a folder in order."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_data(file))
    if not files:
        suffixes = " ".join(_DATA_SUFFIXES)
        message = f"{path} holds no {suffixes} file: give the file or the folder with it."
        raise FileError("empty_folder", message)
    for file in files:
        _check_type(file)
    return tuple(files)


def _is_data(path: Path) -> bool:
    is_hidden = path.name.startswith(".") or path.name in _METADATA_FILES
    return path.suffix.lower() in _DATA_SUFFIXES and not is_hidden


def iter_rows(source: Source) -> Iterator[RawRow]:
    """Yield the rows of a source in order, at most `source.limit`.

    Raises:
        FileError: a file cannot be read from here on (one bad row is a RawRow with its RowError).
    """
    if source.hub:
        rows = (_raw_row(source.name, f"{source.name}, row", *item) for item in hub_values(source))
    else:
        rows = chain.from_iterable(map(_file_rows, source.files))
    return islice(rows, source.limit)


def _file_rows(path: Path) -> Iterator[RawRow]:
    suffix, number = path.suffix.lower(), 0
    place = f"{path.name}, {'line' if suffix == '.jsonl' else 'row'}"
    if suffix == ".jsonl":
        values = jsonl_values(path)
    elif suffix == ".json":
        values = json_values(path)
    elif suffix in (".csv", ".tsv"):
        values = csv_values(path, "\t" if suffix == ".tsv" else ",")
    else:
        values = table_values(path)
    try:
        for number, value in values:
            yield _raw_row(str(path), place, number, value)
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 ({error.reason}); save it as UTF-8."
        raise FileError("broken_text", message) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileError(
            "broken_json",
            f"{path}: broken JSON ({error}); it must be one array of objects, or use .jsonl with "
            "one object per line.",
        ) from error
    except csv.Error as error:
        message = f"{path}, after row {number}: {error}; check the quotes there."
        raise FileError("broken_csv", message) from error


def _raw_row(file: str, place: str, number: int, value: Any) -> RawRow:
    if not isinstance(value, dict | RowError):
        message = f"a {type(value).__name__} instead of a row; write an object with named fields."
        value = RowError("not_a_row", message)
    return RawRow(file, number, f"{place} {number}", value)
