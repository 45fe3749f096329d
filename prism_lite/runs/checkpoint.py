"""Checkpoints that survive a kill at any instant, and refuse to load when torn or foreign.

A checkpoint is written to a temporary folder, flushed to the disk and renamed; the last two are kept;
`LATEST` names the newest for people; loading goes by the hashes in `state.json`. Tensors are
safetensors; optimizer states are loaded with `weights_only=True`: no pickle is ever executed.
"""

from __future__ import annotations

from prism_lite.files import write_text

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NUM_KEPT = 2


@dataclass(frozen=True)
class Trained:
    """What a stage trains: tensors by name (adapter, discriminator) and optimizers by name; and what
    else it remembers, as JSON-able values by name (the replay buffer)."""

    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    optimizers: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(stage_folder: Path, step: int, trained: Trained, *, fingerprint: str) -> Path:
    """Write `checkpoint-<step>` and make it the LATEST; drop all but the last two."""
    target = stage_folder / f"checkpoint-{step}"
    _write_folder(target, trained, {"step": step, "fingerprint": fingerprint})
    write_text(stage_folder / "LATEST", target.name + "\n")
    for old in _by_step(stage_folder)[:-NUM_KEPT]:
        shutil.rmtree(old)
    return target


def save_final(stage_folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write `final`, which marks the stage as done: tensors only."""
    target = stage_folder / "final"
    _write_folder(target, Trained(tensors), {})
    return target


def load_final(stage_folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a finished stage.

    Raises:
        ValueError: the stage is not finished, or its files are not what was written.
    """
    folder = stage_folder / "final"
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: stage {stage_folder.name} of this run is not finished. Run "
            "`prism-lite run` with the same --out first, or the earlier stages one by one."
        )
    problem = _problem(folder, fingerprint=None)
    if problem:
        raise ValueError(f"{folder}: {problem}. Remove it and run the stage again.")
    return _load_tensors(folder)


@dataclass(frozen=True)
class Restored:
    """A loaded checkpoint: steps done, tensors, optimizer states and values by name."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    optimizers: dict[str, Any]
    values: dict[str, Any]


def load_latest(stage_folder: Path, *, fingerprint: str) -> tuple[Restored | None, list[str]]:
    """The newest good checkpoint of a stage.

    Returns:
        the checkpoint (None if there is none), and a sentence for each one that was refused.
    """
    refused: list[str] = []
    for folder in reversed(_by_step(stage_folder)):
        problem = _problem(folder, fingerprint=fingerprint)
        if problem:
            refused.append(f"{folder} refused: {problem}")
            continue
        state = json.loads((folder / "state.json").read_text())
        optimizers = {
            path.name.removesuffix(".optimizer.pt"): torch.load(
                path, map_location="cpu", weights_only=True
            )
            for path in sorted(folder.glob("*.optimizer.pt"))
        }
        values = {
            path.name.removesuffix(".value.json"): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.value.json"))
        }
        return Restored(state["step"], _load_tensors(folder), optimizers, values), refused
    return None, refused




def _write_folder(target: Path, trained: Trained, state: dict[str, Any]) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in trained.tensors.items():
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary / f"{name}.safetensors")
    for name, optimizer in trained.optimizers.items():
        torch.save(optimizer.state_dict(), temporary / f"{name}.optimizer.pt")
    for name, value in trained.values.items():
        (temporary / f"{name}.value.json").write_text(json.dumps(value), encoding="utf-8")
    hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    write_text(temporary / "state.json", json.dumps(state | {"files": hashes}, indent=1))
    for path in temporary.iterdir():
        _flush(path)
    _flush(temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    _flush(target.parent)


def _problem(folder: Path, *, fingerprint: str | None) -> str | None:
    """Why a checkpoint must not be used, or None."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
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
    folders = [
        path
        for path in stage_folder.glob("checkpoint-*")
        if path.is_dir() and path.name.rpartition("-")[2].isdigit()
    ]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
