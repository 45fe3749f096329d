"""inputs.json of a run: fingerprints of everything it reads, so that no input changes without a word.

Data files and adapters by content; pictures and the files of a base in a folder by size and time of change
(`--strict`: by content too); a base of the hub by its commit. Reward files: environment.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.config import DataConfig, RunConfig
from prism_lite.console import say
from prism_lite.data.formats.files import find_source
from prism_lite.data.formats.llama_factory import find_entry
from prism_lite.data.task import TaskData
from prism_lite.runs.small_files import read_object, set_aside, write_object

FILE = "inputs.json"
DATA_SETTINGS = ("train", "warmup", "align", "rlvr", "heldout")
_ACCEPT = "or give --accept-changed-inputs, which records the change"
# Of one file: size, time of change in ns, and the content's hash or None.
Fingerprint = list[Any]
Inputs = dict[str, dict[str, Fingerprint]]  # by setting or kind, then by file


def data_inputs(config: RunConfig, task: TaskData, *, strict: bool) -> Inputs:
    """Return the fingerprints of data files, pictures and `sft.start_from`.

    A hub id has none: its files are in the cache of the hub's library.
    """
    inputs: Inputs = {}
    for name in DATA_SETTINGS if config.data.task == "files" else ():
        files = source_files(getattr(config.data, name))
        if files:
            inputs[f"data.{name}"] = {str(path): file_fingerprint(path, True) for path in files}
    samples = (*task.sft, *task.warmup, *task.align, *task.rlvr, *task.heldout)
    paths = {p.source for s in samples for p in s.pictures if isinstance(p.source, Path)}
    inputs["pictures"] = {str(path): file_fingerprint(path, strict) for path in sorted(paths)}
    start = config.sft.start_from
    if start is not None and Path(start).is_dir():
        inputs["sft.start_from"] = _folder_fingerprints(Path(start), content=True)
    return inputs


def source_files(path_or_id: str | None) -> tuple[Path, ...]:
    """Return the files that a setting of the data resolves to; none for a hub id."""
    if path_or_id is None:
        return ()
    entry = find_entry(path_or_id)
    return find_source(entry.path_or_id if entry else path_or_id).files


def base_inputs(config: RunConfig, path: str, commit: str | None, *, strict: bool) -> Inputs:
    """Return the fingerprints of the base model.

    Args:
        path: folder or hub id it was loaded from.
        commit: of the hub, where it was loaded from there.
    """
    if Path(path).is_dir():
        is_tiny = config.model.name == "tiny"
        return {"model.name": _folder_fingerprints(Path(path), content=strict or is_tiny)}
    return {"model.name": {f"{path} at commit": [0, 0, commit]}}


def _folder_fingerprints(folder: Path, *, content: bool) -> dict[str, Fingerprint]:
    """Return those of a model folder's files, by name: the folder may move."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".bin"))
    return {path.name: file_fingerprint(path, content) for path in files}


def file_fingerprint(path: Path, content: bool) -> Fingerprint:
    """Return size, time of change and, if wanted, 16 hex digits of the content's SHA-256."""
    stat = os.stat(path)
    sha256 = None
    if content:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return [stat.st_size, stat.st_mtime_ns, sha256]


def check_inputs(folder: Path, now: Inputs, config: RunConfig, *, accept: bool) -> list[str]:
    """Check that inputs are those with which the run in a folder started.

    Args:
        accept: return the changes instead of refusing them.

    Returns:
        The names of inputs that have changed.

    Raises:
        ValueError: an input has changed, is new or is gone; names it.
    """
    before, _ = read_object(folder / FILE)
    changes = [*_changes(before.get("files", {}), now)]
    if changes and not accept:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        kind = changes[0].partition(":")[0]
        value = f" = {_value(config, kind)}" if "." in kind else ""
        raise ValueError(
            f"{kind}{value}: {changes[0].partition(': ')[2]} since the run in {folder} started{more}: "
            f"restore the earlier file, give another --out, {_ACCEPT}."
        )
    return changes


def _value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _changes(before: Mapping[str, Any], now: Inputs) -> Iterable[str]:
    """Yield "KIND: FILE has changed" for each file that differs."""
    for kind in now.keys() & before.keys():
        for file in sorted(before[kind].keys() | now[kind].keys()):
            if file not in now[kind]:
                if kind != "pictures":  # rows may be left out, and then their pictures
                    yield f"{kind}: {file} is gone"
            elif file not in before[kind]:
                if kind != "pictures":
                    yield f"{kind}: {file} is new"
            elif _differ(before[kind][file], now[kind][file]):
                yield f"{kind}: {file} has changed"


def _differ(before: Fingerprint, now: Fingerprint) -> bool:
    """Compare by content where both have its hash: then a copy with another time is the same."""
    if before[2] is not None and now[2] is not None:
        return before[2] != now[2]
    return before[:2] != now[:2]


def write_inputs(folder: Path, now: Inputs, accepted: list[str], console: Console) -> None:
    """Write inputs.json; accepted changes are added with the time."""
    before, problem = read_object(folder / FILE)
    if problem:
        damaged = set_aside(folder / FILE)
        text = f"{folder / FILE} is damaged, {problem}: it is now {damaged}. Whether inputs have changed "
        say(console, text + "since the run started is not known.", "yellow")
    history = before.get("accepted", [])
    if accepted:
        say(console, f"accepted: {'; '.join(accepted[:3])} ({len(accepted)} in all)", "yellow")
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        history = [*history, {"time": time, "changes": accepted}]
    files = {kind: entries | now.get(kind, {}) for kind, entries in before.get("files", {}).items()}
    content = {"files": files | {kind: now[kind] for kind in now if kind != "pictures"}}
    content["files"]["pictures"] = files.get("pictures", {}) | now.get("pictures", {})
    write_object(folder / FILE, content | ({"accepted": history} if history else {}))


def accepted_changes(folder: Path) -> list[str]:
    """Return all changes of inputs that were accepted in a run, for its model card."""
    content, _ = read_object(folder / FILE)
    return [change for entry in content.get("accepted", []) for change in entry["changes"]]


def data_hashes(data: DataConfig) -> dict[str, str]:
    """Return 16 hex digits of SHA-256 of each data setting's files, for env.json; hub ids have none."""
    hashes = {}
    for name in DATA_SETTINGS if data.task == "files" else ():
        contents = [file_fingerprint(path, True)[2] for path in source_files(getattr(data, name))]
        if len(contents) == 1:
            hashes[name] = contents[0]
        elif contents:
            hashes[name] = hashlib.sha256("".join(contents).encode()).hexdigest()[:16]
    return hashes
