"""Small files: written in one step, read line by line, and the cache folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step: a reader sees the old or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def cache_folder() -> Path:
    """Where trained tiny bases and picture features are kept between runs."""
    named = os.environ.get("PRISM_LITE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "prism_lite"


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line cut short by a kill is left out."""
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
