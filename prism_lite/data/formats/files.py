"""Rows of a data file, one at a time: json, jsonl, csv, parquet, arrow, a folder of them, a hub id.

Text files may be compressed (.gz, .bz2, .xz); whether one holds an array or a row per line is seen from
its content. Of a folder with several splits only one is read.

Files larger than memory stream. Nothing here looks at what a row means; `build` does. Pickle is never
loaded: opening one runs whatever code it holds.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, RawRow, RowError, Source
from prism_lite.data.formats.names import split_kind
from prism_lite.data.formats.tables import hub_values, table_values
from prism_lite.data.formats.text import (
    COMPRESSED,
    csv_values,
    is_json_lines,
    json_values,
    jsonl_values,
)

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_DATA_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", ".arrow")
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".npy", ".npz", ".joblib")
_METADATA_FILE = re.compile(
    r"(?:.*config|dataset_infos?|state|dataset_dict|.*index|tokenizer|vocab|croissant)\.json"
)
_HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.\w+))?(?::(?P<subset>[\w.-]+))?"
    r"(?:@(?P<split>[\w.-]+))?(?:#(?P<count>\d+))?"
)
_LOCAL = re.compile(r"(?P<path>.+?)(?:@(?P<split>[\w.-]+))?(?:#(?P<count>\d+))?")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")


def find_source(path_or_id: str) -> Source:
    """Resolve a path or folder `path@split#N`, or a hub id `id:subset@split#N`.

    Raises:
        FileError: nothing is there, the folder holds no data, or the file type is refused.
    """
    path, limit, split = Path(path_or_id), None, None
    parsed = _LOCAL.fullmatch(path_or_id)
    if parsed and not path.exists() and Path(parsed["path"]).exists():
        path, split = Path(parsed["path"]), parsed["split"]
        limit = int(parsed["count"]) if parsed["count"] else None
    if path.is_dir():
        files, row_split, note = _files_of_split(path, split)
        return Source(str(path), files, limit=limit, split=row_split, note=note)
    if path.exists():
        _check_type(path)
        return Source(str(path), (path,), limit=limit, split=split)
    hub = _HUB_ID.fullmatch(path_or_id)
    # A mistyped path to a file, or in a folder that exists, must not turn into a download.
    names_file = path.suffix.lower() in (*_DATA_SUFFIXES, *_PICKLE_SUFFIXES) and len(path.parts) < 3
    in_folder = len(path.parts) > 1 and Path(path.parts[0]).exists()
    if hub and not names_file and not in_folder and not path_or_id.startswith("."):
        count = int(hub["count"]) if hub["count"] else None
        note = (
            ""
            if hub["split"]
            else f"reads split train of {path_or_id} ({hub['id']}@SPLIT reads others)"
        )
        return Source(path_or_id, hub=hub.groupdict(), limit=count, note=note)
    raise FileError(
        "missing_file",
        f"{path} does not exist: check the path (now in {Path.cwd()}), or give a hub id as "
        "owner/name:subset@split#N.",
    )


def _suffix(path: Path) -> str:
    """Return the suffix that names the file's type, in lower case: ".jsonl" for rows.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def _check_type(path: Path) -> None:
    suffix = _suffix(path)
    if suffix in _PICKLE_SUFFIXES:
        raise FileError(
            "pickle",
            f"{path}: {suffix} files may hold pickled code and are never loaded; save the rows as "
            ".jsonl or .parquet instead.",
        )
    is_compressed = path.suffix.lower() in COMPRESSED
    if suffix not in (_TEXT_SUFFIXES if is_compressed else _DATA_SUFFIXES):
        raise FileError(
            "unknown_suffix",
            f"{path}: unknown file type {path.suffix or '(none)'}; expected one of "
            f"{' '.join(_DATA_SUFFIXES)}, text files also with {' '.join(COMPRESSED)}.",
        )
    if path.stat().st_size == 0:
        message = f"{path} is empty: it holds no rows; check how it was written."
        raise FileError("empty_file", message)


def _files_of_split(folder: Path, split: str | None) -> tuple[tuple[Path, ...], str | None, str]:
    """Return the data files of a folder in order: of the split that is asked for, or of train.

    Returns:
        The files; the split that their rows must have, where no file is named after a split; and what was
        chosen.

    Raises:
        FileError: no data, no such split, or several splits without train.
    """
    files = sorted(file for file in folder.rglob("*") if _is_data(file, folder))
    if not files:
        suffixes = " ".join(_DATA_SUFFIXES)
        message = f"{folder} holds no {suffixes} file: give the file or the folder with it."
        raise FileError("empty_folder", message)
    for file in files:
        _check_type(file)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of_file(file, folder), []).append(file)
    others = by_split.pop("", [])
    if not by_split or (split is None and len(by_split) == 1 and not others):
        return tuple(files), split, ""
    chosen = split or next((name for name in by_split if split_kind(name) == "train"), None)
    names = ", ".join(by_split)
    if chosen not in by_split:
        problem = f"no split {chosen}" if chosen else "several splits and none is train"
        beside = f", and {others[0].name} of none" if others else ""
        raise FileError(
            "mixed_splits",
            f"{folder} has {problem}: it holds {names}{beside}. Write {folder}@SPLIT with one of them, or "
            "give the file.",
        )
    left_out = [name for name in by_split if name != chosen] + [file.name for file in others]
    note = f"reads split {chosen} of {folder}; not read: {', '.join(left_out)} ({folder}@SPLIT)"
    return tuple(by_split[chosen]), None, note if left_out else ""


def _split_of_file(path: Path, folder: Path) -> str:
    """Return the split that a file's name, or a folder above it, says, or ""."""
    relative = path.relative_to(folder)
    stem = relative.name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard and shard["split"] != "data":  # save_to_disk: the folder has the split's name
        return shard["split"]
    saved = folder / "dataset_dict.json"
    if saved.is_file() and len(relative.parts) > 1:
        return relative.parts[0]
    for part in (*re.split(r"[-_.]", stem), *reversed(relative.parts[:-1])):
        if split_kind(part):
            return part
    return ""


def _is_data(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    is_metadata = is_hidden or _METADATA_FILE.fullmatch(path.name)
    return _suffix(path) in _DATA_SUFFIXES and not is_metadata


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
    number = 0
    try:
        unit, values = _values(path)
        for number, value in values:
            yield _raw_row(str(path), f"{path.name}, {unit}", number, value)
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 ({error.reason}); save it as UTF-8."
        raise FileError("broken_text", message) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileError(
            "broken_json",
            f"{path}: broken JSON ({error}); it must be one array of objects, or use .jsonl with "
            "one object per line.",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        message = (
            f"{path}, after row {number}: cannot be decompressed ({error}); compress it again."
        )
        raise FileError("broken_compression", message) from error
    except csv.Error as error:
        message = f"{path}, after row {number}: {error}; check the quotes there."
        raise FileError("broken_csv", message) from error


def _values(path: Path) -> tuple[str, Iterator[tuple[int, Any]]]:
    """Return what a row of the file is called, and its numbered values."""
    suffix = _suffix(path)
    if suffix in (".csv", ".tsv"):
        return "row", csv_values(path, "\t" if suffix == ".tsv" else ",")
    if suffix not in _TEXT_SUFFIXES:
        return "row", table_values(path)
    return ("line", jsonl_values(path)) if is_json_lines(path) else ("row", json_values(path))


def _raw_row(file: str, place: str, number: int, value: Any) -> RawRow:
    if not isinstance(value, dict | RowError):
        message = f"a {type(value).__name__} instead of a row; write an object with named fields."
        value = RowError("not_a_row", message)
    return RawRow(file, number, f"{place} {number}", value)
