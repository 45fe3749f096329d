"""The small JSON files of a run folder: a damaged one is left out or rebuilt, and never stops a run.

An object file (results.json, env.json, ...) has its hashes beside it, `.NAME.sha256`: that of the content
and that of the one before, so that a kill between two writes is not damage. A file without hashes, as
earlier editions wrote it, is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism_lite.files import write_text


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file and its hashes."""
    text = json.dumps(value, indent=1) + "\n"
    before = _sha256(path.read_bytes()) if path.is_file() else ""
    now = _sha256(text.encode())
    write_text(_hashes(path), f"{now}\n{before}\n")
    write_text(path, text)


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a JSON file, {} where there is none.

    Returns:
        the content, and what is wrong with the file ("" if nothing); its content is then {}.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"it cannot be read ({error.strerror})"
    try:
        hashes = _hashes(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        hashes = [_sha256(content)]
    except (OSError, UnicodeDecodeError):
        hashes = []
    if _sha256(content) not in hashes:
        return {}, "it is not what was written"
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        return {}, f"it is not JSON ({error})"
    return (value, "") if isinstance(value, dict) else ({}, "it holds no object")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `NAME.damaged` and remove its hashes; return the new path."""
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    _hashes(path).unlink(missing_ok=True)
    return damaged


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of metrics.jsonl, and the number of lines that are not metrics of a step."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    records, num_damaged = [], 0
    for line in filter(None, map(bytes.strip, lines)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_metrics(record):
            records.append(record)
        else:
            num_damaged += 1
    return records, num_damaged


def _is_metrics(record: Any) -> bool:
    """Check that a line has a stage, a step and numbers."""
    if not isinstance(record, dict):
        return False
    values = [value for name, value in record.items() if name != "stage"]
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return are_numbers and isinstance(record.get("stage"), str) and type(record.get("step")) is int


def read_command(path: Path) -> tuple[str | None, str]:
    """Return the command of control.json ("pause", "resume", "stop"), in any case, or None.

    Returns:
        the command, and a sentence on content that is ignored ("" if there is none). A file that cannot be
        read is being written, and is read again after the next step.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None, ""
    fields = content if isinstance(content, dict) else {}
    named = {str(name).strip().lower(): value for name, value in fields.items()}
    command = str(named.get("command")).strip().lower()
    if command in ("pause", "resume", "stop"):
        return command, ""
    return None, f'{path} is ignored: expected {{"command": "pause"}}, "resume" or "stop".'


def _hashes(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
