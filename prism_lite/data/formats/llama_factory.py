"""LLaMA-Factory's dataset_info.json: entries that name a file or hub id, its columns and its tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, RowError

_REGISTRY = re.compile(r"(?P<path>.*dataset_info\.json)(?::(?P<name>.+))?")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_ROLE_AND_CONTENT = {"sharegpt": ("from", "value"), "openai": ("role", "content")}


@dataclass(frozen=True)
class Entry:
    """One entry of a registry.

    Attributes:
        path_or_id: what `find_source` takes.
        folder: of the registry, where relative pictures are looked up.
        formatting: alpaca, sharegpt or openai.
        columns: LLaMA-Factory's name of a column by the name that the file has for it.
        tags: names of the role and content fields and of the roles.
    """

    path_or_id: str
    folder: Path
    formatting: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row under the names by which `detect` knows conventions."""
        renamed = {self.columns.get(name, name): value for name, value in row.items()}
        if self.formatting != "alpaca" and isinstance(renamed.get("messages"), list):
            renamed["messages"] = [self._message(message) for message in renamed["messages"]]
            for side in ("chosen", "rejected"):
                if isinstance(renamed.get(side), Mapping):
                    renamed[side] = self._message(renamed[side])
        return renamed

    def _message(self, message: Any) -> dict[str, Any]:
        role_tag, content_tag = self.tags["role_tag"], self.tags["content_tag"]
        if not isinstance(message, Mapping) or not {role_tag, content_tag} <= message.keys():
            raise RowError(
                "message_type",
                f"a message lacks {role_tag!r} or {content_tag!r}, the registry's tags.",
            )
        role = message[role_tag]
        for name in ("user", "assistant", "system"):
            if role == self.tags.get(f"{name}_tag"):
                role = name
        return {"role": role, "content": message[content_tag]}


def find_entry(path_or_id: str) -> Entry | None:
    """Return the entry of `dataset_info.json` or `dataset_info.json:NAME`; None for other paths.

    Raises:
        FileError: no such file, broken JSON, no such entry, or a name is needed.
    """
    match = _REGISTRY.fullmatch(path_or_id)
    if not match or Path(path_or_id).is_dir():
        return None
    path = Path(match["path"])
    if not path.is_file():
        raise FileError("missing_file", f"{path} does not exist: check the path.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError("broken_json", f"{path}: broken JSON ({error}).") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise FileError("bad_registry", f"{path}: expected an object of named data sets.")
    name = match["name"] or (next(iter(entries)) if len(entries) == 1 else None)
    if name not in entries:
        raise FileError(
            "bad_registry",
            f"{path} has no entry {name!r}; write {path.name}:NAME with one of "
            f"{', '.join(entries)}.",
        )
    return _entry(path, str(name), entries[name])


def _entry(path: Path, name: str, entry: Mapping[str, Any]) -> Entry:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", *_ROLE_AND_CONTENT):
        raise FileError("bad_registry", f"{path}, {name}: unknown formatting {formatting!r}.")
    columns: dict[str, str] = dict(entry.get("columns") or {})
    tags: dict[str, str] = dict(entry.get("tags") or {})
    if formatting == "alpaca":
        columns = {_ALPACA.get(ours, ours): theirs for ours, theirs in columns.items()}
    else:
        columns.setdefault("messages", "conversations" if formatting == "sharegpt" else "messages")
        role_tag, content_tag = _ROLE_AND_CONTENT[formatting]
        tags = {"role_tag": role_tag, "content_tag": content_tag} | tags
    if "file_name" in entry:
        path_or_id = str(path.parent / entry["file_name"])
    elif "hf_hub_url" in entry:
        subset = f":{entry['subset']}" if entry.get("subset") else ""
        path_or_id = f"{entry['hf_hub_url']}{subset}@{entry.get('split', 'train')}"
    else:
        message = f"{path}, {name}: neither file_name nor hf_hub_url; name the data."
        raise FileError("bad_registry", message)
    if entry.get("num_samples"):
        path_or_id += f"#{entry['num_samples']}"
    names = {theirs: ours for ours, theirs in columns.items() if theirs}
    return Entry(path_or_id, path.parent, formatting, names, tags)
