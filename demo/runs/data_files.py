"""The user's data files: those in the folder `data` beside the folder of the runs, chosen by name."""

from __future__ import annotations

from pathlib import Path

from demo.runs.folder import Home

FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz")


def data_folder(home: Home) -> Path:
    """Return the folder whose files the page offers."""
    return home.root.parent / "data"


def file_names(home: Home) -> list[str]:
    """Return the names of the data files, sorted; [] without the folder."""
    files = data_folder(home).glob("*")
    return sorted(file.name for file in files if file.suffix.lower() in FILE_TYPES)


def data_file(home: Home, name: str | None) -> Path:
    """Return the path of a file by its name.

    Raises:
        ValueError: none is chosen, or the chosen one does not exist.
    """
    if not name:
        raise ValueError(
            f"no file chosen: put one ({', '.join(FILE_TYPES)}) into {data_folder(home)}, then choose it."
        )
    if name not in file_names(home):
        raise ValueError(
            f"{name!r} is not in {data_folder(home)} (any more): choose one from the list."
        )
    return data_folder(home) / name
