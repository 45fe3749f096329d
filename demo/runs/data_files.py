"""The user's data files: those in the folder `data` beside the folder of the runs, chosen by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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


def column_map(text: str) -> dict[str, str]:
    """Return what the user wrote as columns: our name -> the file's.

    Braces may be left out, and the text may be a setting, as the check and the command line write it.

    Raises:
        ValueError: it is not a mapping of names to names.
    """
    inner = (
        text.strip().removeprefix("data.columns=").strip("'\" ").removeprefix("{").removesuffix("}")
    )
    try:
        names: Any = yaml.safe_load(f"{{{inner}}}")
    except yaml.YAMLError:
        names = None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f"columns {text.strip()}: expected our name: your name of the column, separated by commas, as "
            "prompt: question, images: image, answer: answer."
        )
    return {str(ours): name for ours, name in names.items()}
