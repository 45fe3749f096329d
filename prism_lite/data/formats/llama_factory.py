"""LLaMA-Factory's dataset_info.json: entries that name a file or hub id, its columns and its
tags.
"""

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
_DEFAULT_TAGS = {
    "sharegpt": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
    },
    "openai": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    },
}


@dataclass(frozen=True)
class Entry:
    """One entry of a registry.

    Attributes:
        path_or_id: what `find_source` takes.
        folder: of the registry, where relative pictures are looked up.
        formatting: alpaca, sharegpt or openai.
        columns: the entry's names for ours.
        tags: names of the role and content fields and of the roles.
    """

    path_or_id: str
    folder: Path
    formatting: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row under the names that the convention tells apart."""
        by_theirs = {theirs: ours for ours, theirs in self.columns.items() if theirs}
        names = _ALPACA if self.formatting == "alpaca" else {}
        renamed = {}
        for name, value in row.items():
            ours = by_theirs.get(name, name)
            renamed[names.get(ours, ours) if name in by_theirs else ours] = value
        if self.formatting != "alpaca" and isinstance(renamed.get("messages"), list):
            renamed["messages"] = [self._message(message) for message in renamed["messages"]]
            for side in ("chosen", "rejected"):
                if isinstance(renamed.get(side), Mapping):
                    renamed[side] = self._message(renamed[side])
        return renamed

    def _message(self, message: Any) -> dict[str, Any]:
        role_tag, content_tag = self.tags["role_tag"], self.tags["content_tag"]
        if (
            not isinstance(message, Mapping)
            or role_tag not in message
            or content_tag not in message
        ):
            raise RowError(
                "message_type",
                f"a message lacks {role_tag!r} or {content_tag!r}, the registry's tags.",
            )
        roles = {
            self.tags["user_tag"]: "user",
            self.tags["assistant_tag"]: "assistant",
            self.tags.get("system_tag", "system"): "system",
        }
        role = message[role_tag]
        return {"role": roles.get(role, role), "content": message[content_tag]}


def find_entry(path_or_id: str) -> Entry | None:
    """The entry that `dataset_info.json` or `dataset_info.json:NAME` names; None for other paths.

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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError("broken_json", f"{path}: broken JSON ({error}).") from error
    if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
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
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise FileError("bad_registry", f"{path}, {name}: unknown formatting {formatting!r}.")
    columns = dict(entry.get("columns") or {})
    if formatting != "alpaca":
        columns.setdefault("messages", "conversations" if formatting == "sharegpt" else "messages")
    if "file_name" in entry:
        target = str(path.parent / entry["file_name"])
    elif "hf_hub_url" in entry:
        subset = f":{entry['subset']}" if entry.get("subset") else ""
        target = f"{entry['hf_hub_url']}{subset}@{entry.get('split', 'train')}"
    else:
        raise FileError(
            "bad_registry", f"{path}, {name}: neither file_name nor hf_hub_url; name the data."
        )
    if entry.get("num_samples"):
        target += f"#{entry['num_samples']}"
    tags = {**_DEFAULT_TAGS.get(formatting, {}), **(entry.get("tags") or {})}
    return Entry(target, path.parent, formatting, columns, tags)
