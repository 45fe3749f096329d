"""Rows of a data file, one at a time: json, jsonl, csv, parquet, arrow, a folder of them, a hub id.

Files larger than memory stream. Nothing here looks at what a row means; that is `formats_rows`.
Pickle is never loaded: opening one runs whatever code it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from prism_lite.data.formats.base import FileError, RawRow, Source
from prism_lite.data.formats.tables import arrow_rows, hub_rows
from prism_lite.data.formats.text import csv_rows, json_rows, jsonl_rows

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".npy", ".npz", ".joblib")
_HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.\w+))?(?::(?P<subset>[\w.-]+))?"
    r"(?:@(?P<split>[\w.-]+))?(?:#(?P<count>\d+))?"
)
_COUNT = re.compile(r"(?P<path>.+)#(?P<count>\d+)$")


def find_source(path_or_id: str) -> Source:
    """Resolve a path, a folder, or a hub id `id:subset@split#N`.

    Raises:
        FileError: nothing is there, the folder holds no data, or the file is of a refused kind.
    """
    path, limit = Path(path_or_id), None
    counted = _COUNT.fullmatch(path_or_id)
    if counted and not path.exists():
        path, limit = Path(counted["path"]), int(counted["count"])
    if path.is_dir():
        return Source(str(path), _files_in(path), limit=limit)
    if path.exists():
        _refuse_kind(path)
        return Source(str(path), (path,), limit=limit)
    hub = _HUB_ID.fullmatch(path_or_id)
    looks_local = (
        path.suffix.lower() in (*DATA_SUFFIXES, *_PICKLE_SUFFIXES) and path.parts[:-2] == ()
    )
    # A mistyped path in a folder that is here must not turn into a download.
    looks_local = looks_local or (len(path.parts) > 1 and Path(path.parts[0]).exists())
    if hub and not looks_local and not path_or_id.startswith("."):
        count = int(hub["count"]) if hub["count"] else None
        return Source(path_or_id, hub=hub.groupdict(), limit=count)
    raise FileError(
        "missing_file",
        f"{path} does not exist: check the path (now in {Path.cwd()}), or give a hub id as "
        "owner/name:subset@split#N.",
    )


def _refuse_kind(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _PICKLE_SUFFIXES:
        raise FileError(
            "pickle",
            f"{path}: {suffix} files may hold pickled code and are never loaded; save the rows as "
            ".jsonl or .parquet instead.",
        )
    if suffix not in DATA_SUFFIXES:
        raise FileError(
            "unknown_suffix",
            f"{path}: unknown file type {suffix or '(none)'}; expected one of "
            f"{' '.join(DATA_SUFFIXES)}.",
        )
    if path.stat().st_size == 0:
        raise FileError(
            "empty_file", f"{path} is empty: it holds no rows; check how it was written."
        )


def _files_in(folder: Path) -> tuple[Path, ...]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in DATA_SUFFIXES
        and path.name not in ("dataset_info.json", "state.json", "dataset_dict.json")
        and not path.name.startswith(".")
    )
    if not files:
        raise FileError(
            "empty_folder",
            f"{folder} holds no {' '.join(DATA_SUFFIXES)} file: point at the file or the folder "
            "with it.",
        )
    for path in files:
        _refuse_kind(path)
    return tuple(files)


def iter_rows(source: Source) -> Iterator[RawRow]:
    """All rows of a source, in order, at most `source.limit`.

    Raises:
        FileError: a file is broken as a whole (not one row of it).
    """
    files = (
        [(source.name, hub_rows(source))]
        if source.hub
        else ((str(path), _file_rows(path)) for path in source.files)
    )
    rows = (replace(row, file=name) for name, found in files for row in found)
    yield from rows if source.limit is None else islice(rows, source.limit)


def _file_rows(path: Path) -> Iterator[RawRow]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return jsonl_rows(path)
    if suffix == ".json":
        return json_rows(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, "\t" if suffix == ".tsv" else ",")
    return arrow_rows(path)
