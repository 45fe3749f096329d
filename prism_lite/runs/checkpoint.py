"""Checkpoints that survive a kill at any time, and are refused by name when they must not be used.

A checkpoint is written to a temporary folder, flushed to the disk and renamed; the last two are kept.
`LATEST` names the newest one for users; loading relies on `state.json`: it lists each file with its hash,
and has a digest of its own that includes the folder's name. Only listed files are opened. All tensors,
those of optimizers too, are safetensors; nothing is a pickle. None with NaN or infinity is written or
loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism_lite.files import read_json, system_error, write_json, write_text
from prism_lite.models.optimizer_state import join_state, not_finite, split_state
from prism_lite.runs.resume import changed_settings

_NUM_KEPT = 2
_NAME = re.compile(r"checkpoint-([0-9]+)")
_TENSORS, _OPTIMIZER, _VALUE = ".safetensors", ".optimizer.safetensors", ".value.json"
# Whatever a damaged file can cause: the system's errors, those of JSON and UTF-8, missing or wrong fields.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves.

    Attributes:
        tensors: by name ("policy", "discriminator") and parameter.
        optimizers: by name.
        values: further state by name, as JSON values (the stage's buffer).
    """

    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    optimizers: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Restored:
    """A loaded checkpoint: number of finished steps; tensors, optimizer states and values by name."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    optimizers: dict[str, Any]
    values: dict[str, Any]


def save_checkpoint(
    stage_folder: Path, step: int, trained: Trained, *, settings: Mapping[str, Any]
) -> None:
    """Write `checkpoint-<step>`, name it in LATEST, and delete all but the last two.

    Args:
        settings: those that a run must share to resume from it (`stage_settings`).

    Raises:
        RuntimeError: a value is not finite; nothing was written.
    """
    folder = stage_folder / f"checkpoint-{step}"
    _write_folder(folder, trained, {"step": step, "settings": settings})
    write_text(stage_folder / "LATEST", folder.name + "\n")
    for old in checkpoint_folders(stage_folder)[:-_NUM_KEPT]:
        shutil.rmtree(old)


def save_final(stage_folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `final`, which marks the stage as finished: tensors only.

    Raises:
        RuntimeError: a value is not finite; nothing was written.
    """
    _write_folder(stage_folder / "final", Trained(tensors), {})


def load_final(stage_folder: Path) -> dict[str, dict[str, Tensor]]:
    """Load the tensors of a finished stage.

    Raises:
        ValueError: the stage is not finished, or its files are not what was written.
    """
    folder = stage_folder / "final"
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: stage {stage_folder.name} of this run is not finished. Run "
            "`prism-lite run` with the same --out first, or the earlier stages one by one."
        )
    restored, problem = load_folder(folder, settings=None)
    if restored is None:
        raise ValueError(f"{folder}: {problem}. Remove it and run the stage again.")
    return restored.tensors


def load_latest(
    stage_folder: Path, *, settings: Mapping[str, Any], needed: Collection[str] = ()
) -> tuple[Restored | None, list[str]]:
    """Load the newest good checkpoint of a stage.

    Args:
        settings: of this run.
        needed: files that the stage reads; a checkpoint without one is refused.

    Returns:
        the checkpoint (None if there is none), and a sentence for each one that was refused.
    """
    refused: list[str] = []
    for folder in reversed(checkpoint_folders(stage_folder)):
        restored, problem = load_folder(folder, settings=settings, needed=needed)
        if restored is not None:
            return restored, refused
        refused.append(f"{folder} refused: {problem}")
    return None, refused


def checkpoint_folders(stage_folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, the newest last; copies under other names are left out."""
    folders = [path for path in stage_folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(filter(Path.is_dir, folders), key=step_of)


def step_of(folder: Path) -> int:
    """Return the number of finished steps in a checkpoint's name."""
    return int(folder.name.removeprefix("checkpoint-"))


def needed_files(
    tensors: Collection[str], optimizers: Collection[str], values: Collection[str]
) -> list[str]:
    """Return the names of the files with these tensors, optimizers and values."""
    names = [(tensors, _TENSORS), (optimizers, _OPTIMIZER), (values, _VALUE)]
    return [f"{name}{suffix}" for group, suffix in names for name in group]


def _write_folder(folder: Path, trained: Trained, state: dict[str, Any]) -> None:
    """Write a folder in one step; an error removes it again, so that a full disk has room."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, trained, state | {"folder": folder.name})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        strerror = error.strerror or str(error)
        raise OSError(
            error.errno, f"the checkpoint was not written ({strerror})", str(folder)
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(folder.parent)


def _write_files(temporary: Path, trained: Trained, state: dict[str, Any]) -> None:
    """Write the files of a checkpoint and flush them.

    Raises:
        OSError: also for what safetensors raises where a file cannot be written.
        RuntimeError: a value is not finite.
    """
    for name, tensors in trained.tensors.items():
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        _save_tensors(temporary / f"{name}{_TENSORS}", contiguous, {})
    for name, optimizer in trained.optimizers.items():
        tensors, layout = split_state(optimizer.state_dict())
        _save_tensors(temporary / f"{name}{_OPTIMIZER}", tensors, {"layout": layout})
    for name, value in trained.values.items():
        try:
            text = json.dumps(value, allow_nan=False)
        except ValueError:
            raise RuntimeError(_poison(f"{name}{_VALUE}", "a number")) from None
        (temporary / f"{name}{_VALUE}").write_text(text, encoding="utf-8")
    state |= {"files": {path.name: _sha256(path) for path in sorted(temporary.iterdir())}}
    write_json(temporary / "state.json", state | {"digest": _digest(state)})
    for path in (*temporary.iterdir(), temporary):
        _flush(path)


def _save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    name = not_finite(tensors)
    if name is not None:
        raise RuntimeError(_poison(path.name, name))
    with disk_errors(path):
        save_file(tensors, path, metadata)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors says about a file that cannot be written as the system's own error.

    Raises:
        OSError: such as "no space left on device".
    """
    try:
        yield
    except SafetensorError as error:
        number = system_error(error).errno or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _poison(file: str, name: str) -> str:
    return (
        f"{file} is not written, {name} in it is not finite (NaN or infinity): training has diverged, or "
        "the memory of this machine is defective. The same command resumes from the last checkpoint, in "
        "which all values are finite; if it happens again, give another --out with a lower "
        "STAGE.optim.learning_rate."
    )


def load_folder(
    folder: Path, *, settings: Mapping[str, Any] | None, needed: Collection[str] = ()
) -> tuple[Restored | None, str]:
    """Load a folder; None, and the reason, where it must not be used."""
    try:
        state = read_json(folder / "state.json")
        problem = _problem(folder, state, settings, needed)
        if problem is not None:
            return None, problem
        return _load_files(folder, state)
    except _UNREADABLE as error:
        return None, f"torn, it cannot be read ({type(error).__name__}: {error})"


def _problem(
    folder: Path,
    state: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    needed: Collection[str],
) -> str | None:
    """Return why a checkpoint or a final folder must not be used, or None."""
    if settings is not None or "digest" in state:  # final folders of earlier editions have none
        written = {key: value for key, value in state.items() if key != "digest"}
        if "digest" not in state:
            return "an earlier edition of prism_lite wrote it, or state.json is damaged (no digest)"
        if state["digest"] != _digest(written):
            return "torn, state.json is not what was written"
        if state["folder"] != folder.name:
            return f"foreign, it is a copy of {state['folder']}"
    if settings is not None:
        changes, _ = changed_settings(state["settings"], settings)
        if changes:
            key, old, new = changes[0]
            return f"foreign, it was written with other settings ({key} = {old!r}, now {new!r})"
    for name, sha256 in state["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"torn, {name} is missing"
        if _sha256(path) != sha256:
            return f"torn, {name} is not what was written"
    for name in needed:
        if name not in state["files"]:
            return f"foreign, it has no {name}: another edition of prism_lite wrote it"
    return None


def _load_files(folder: Path, state: Mapping[str, Any]) -> tuple[Restored | None, str]:
    """Load the listed files."""
    restored = Restored(state.get("step", 0), {}, {}, {})
    for file in state["files"]:
        path = folder / file
        if file.endswith(_VALUE):
            restored.values[file.removesuffix(_VALUE)] = read_json(path)
            continue
        tensors = load_file(path)
        name = not_finite(tensors)
        if name is not None:
            return None, f"poisoned, {name} in {file} is not finite (NaN or infinity)"
        if file.endswith(_OPTIMIZER):
            with safe_open(path, "pt") as opened:
                layout = opened.metadata()["layout"]
            restored.optimizers[file.removesuffix(_OPTIMIZER)] = join_state(tensors, layout)
        else:
            restored.tensors[file.removesuffix(_TENSORS)] = tensors
    return restored, ""


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
