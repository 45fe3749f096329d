"""Text, JSON and JSON-lines files, and the cache folder."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # a full disk has no room for it
        raise OSError(error.errno, error.strerror, str(path)) from error


def system_error(error: Exception) -> OSError:
    """Return the system's error that a library's text names, as safetensors' "(os error 28)"."""
    match = re.search(r"os error (\d+)", str(error))
    return OSError(int(match[1]) if match else errno.EIO, str(error))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step, indented for readers."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, without a last line that a kill has truncated."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise
    return records


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one step."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def cache_folder() -> Path:
    """Return the folder of what is kept between runs: trained tiny bases, picture features.

    $PRISM_LITE_CACHE, or prism_lite in $XDG_CACHE_HOME or ~/.cache.
    """
    named = os.environ.get("PRISM_LITE_CACHE")
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification ignores relative paths
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "prism_lite"


def make_cache_folder() -> Path:
    """Create the cache folder and return it.

    Raises:
        ValueError: it cannot be created.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} cannot be created ({error.strerror}): set PRISM_LITE_CACHE to a "
            "folder that can be written."
        ) from error
    return folder
