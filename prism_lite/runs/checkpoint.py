"""Checkpoints that survive a kill at any time, and are refused when torn or foreign.

A checkpoint is written to a temporary folder, flushed to the disk and renamed; the last two are kept.
`LATEST` names the newest one for users; loading relies on the hashes in `state.json`. Tensors are
safetensors; optimizer states are loaded with `weights_only=True`: no pickled code is ever executed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism_lite.files import read_json, write_json, write_text

_NUM_KEPT = 2


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


def save_checkpoint(stage_folder: Path, step: int, trained: Trained, *, fingerprint: str) -> None:
    """Write `checkpoint-<step>`, name it in LATEST, and delete all but the last two."""
    folder = stage_folder / f"checkpoint-{step}"
    _write_folder(folder, trained, {"step": step, "fingerprint": fingerprint})
    write_text(stage_folder / "LATEST", folder.name + "\n")
    for old in _by_step(stage_folder)[:-_NUM_KEPT]:
        shutil.rmtree(old)


def save_final(stage_folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `final`, which marks the stage as finished: tensors only."""
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
    if problem := _problem(folder, fingerprint=None):
        raise ValueError(f"{folder}: {problem}. Remove it and run the stage again.")
    return _load_tensors(folder)


def load_latest(stage_folder: Path, *, fingerprint: str) -> tuple[Restored | None, list[str]]:
    """Load the newest good checkpoint of a stage.

    Returns:
        the checkpoint (None if there is none), and a sentence for each one that was refused.
    """
    refused: list[str] = []
    for folder in reversed(_by_step(stage_folder)):
        if problem := _problem(folder, fingerprint=fingerprint):
            refused.append(f"{folder} refused: {problem}")
            continue
        optimizers = {
            path.name.removesuffix(".optimizer.pt"): torch.load(
                path, map_location="cpu", weights_only=True
            )
            for path in sorted(folder.glob("*.optimizer.pt"))
        }
        values = {
            path.name.removesuffix(".value.json"): read_json(path)
            for path in sorted(folder.glob("*.value.json"))
        }
        step = read_json(folder / "state.json")["step"]
        return Restored(step, _load_tensors(folder), optimizers, values), refused
    return None, refused


def _write_folder(folder: Path, trained: Trained, state: dict[str, Any]) -> None:
    """Write a folder in one step; an error leaves nothing behind, so that a full disk has room again."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, trained, state)
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
        OSError: also for what safetensors and torch raise where a file cannot be written.
    """
    for name, tensors in trained.tensors.items():
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        path = temporary / f"{name}.safetensors"
        with disk_errors(path):
            save_file(contiguous, path)
    for name, optimizer in trained.optimizers.items():
        path = temporary / f"{name}.optimizer.pt"
        buffer = io.BytesIO()  # given a file, torch's own writer hides the system's error
        torch.save(optimizer.state_dict(), buffer)
        path.write_bytes(buffer.getbuffer())
    for name, value in trained.values.items():
        (temporary / f"{name}.value.json").write_text(json.dumps(value), encoding="utf-8")
    hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    write_json(temporary / "state.json", state | {"files": hashes})
    for path in (*temporary.iterdir(), temporary):
        _flush(path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors says about a file that cannot be written as the system's own error.

    Raises:
        OSError: with the number of its text, "(os error 28)", which alone says why.
    """
    try:
        yield
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _problem(folder: Path, *, fingerprint: str | None) -> str | None:
    """Return why a checkpoint must not be used, or None."""
    try:
        state = read_json(folder / "state.json")
    except (OSError, json.JSONDecodeError) as error:
        return f"torn, state.json cannot be read ({error})"
    if fingerprint is not None and state.get("fingerprint") != fingerprint:
        return "foreign, it was written by a run with other settings"
    for name, digest in state["files"].items():
        path = folder / name
        if not path.is_file():
            return f"torn, {name} is missing"
        if _sha256(path) != digest:
            return f"torn, {name} is not what was written"
    return None


def _load_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _by_step(stage_folder: Path) -> list[Path]:
    steps = {
        path.name.removeprefix("checkpoint-"): path for path in stage_folder.glob("checkpoint-*")
    }
    return [steps[step] for step in sorted(filter(str.isdigit, steps), key=int)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
