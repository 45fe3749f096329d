"""Which settings may differ when a run is resumed.

Only those that decide how work is laid out in memory and time, and those of stages that have not begun:
a resumed run computes what it would have computed without the interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from prism_lite.config import RunConfig
from prism_lite.recipe import to_dict

# They do not decide what is computed: a run that ran out of memory resumes with smaller ones, and one
# that was stopped before alignment may begin it.
_MAY_CHANGE = frozenset(
    {
        "save_every",
        "track",
        "align.gate",
        "model.max_pack_tokens",
        "model.max_cached_pictures",
        "model.picture_cache_gib",
        "model.attention",
        "model.gradient_checkpointing",
        "model.offload_checkpoints",
        "model.vision_on_cpu",
        "model.embeddings_on_cpu",
        "model.min_gpu_gib",
        "sampling.max_rows",
        "sampling.dense_weights",
        "sampling.cuda_graph",
        "discriminator.prompt_cache_gib",
    }
)
# Sections of the settings by the first stage that reads them, in the order of the stages.
_FIRST_READ_BY = {
    "sft": ("sft",),
    "warmup": ("warmup", "discriminator"),
    "align": ("align",),
    "rlvr": ("rlvr",),
}


def fingerprint(config: RunConfig, stage: str) -> str:
    """Return a hash of the settings that decide what a stage and those before it compute."""
    stage = "rlvr" if stage == "control" else stage  # it reads all sections
    later = [*_FIRST_READ_BY][[*_FIRST_READ_BY].index(stage) + 1 :]
    settings = _comparable(to_dict(config), _sections(later))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_folder(path: Path, config: RunConfig) -> None:
    """Check that a run with these settings may write to a folder; leave nothing behind.

    Raises:
        ValueError: the folder holds a run with other settings, or something else, or cannot be written.
    """
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:
        raise ValueError(f"--out {path} cannot be created: {error.strerror}.") from error
    if not existing.is_dir():
        raise ValueError(f"--out {path}: {existing} is a file; name a folder.")
    if (path / "config.yaml").exists():
        check_same_settings(path, config)
    elif path.is_dir() and any(path.iterdir()):
        raise ValueError(f"--out {path} is not empty and does not hold a run: name another folder.")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    """Create the folder and a file in it, and remove what was created."""
    missing = [p for p in (path.absolute(), *path.absolute().parents) if not p.exists()]
    created: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            created.append(folder)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be created or written ({error.strerror}): name another folder."
        ) from error
    finally:
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # another process has begun to write there
                folder.rmdir()


def check_same_settings(path: Path, config: RunConfig) -> None:
    """Check that the run in a folder may be resumed with these settings.

    Raises:
        ValueError: a setting differs that has already had an effect.
    """
    before = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    free = _sections(_not_begun(path))
    differences = list(_differences(_comparable(before, free), _comparable(to_dict(config), free)))
    if differences:
        key, old, new = differences[0]
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise ValueError(
            f"{path} holds a run with {key} = {old!r}, and now it is {new!r}{more}: give the same "
            "settings to resume it, or another --out."
        )


def _not_begun(path: Path) -> list[str]:
    """Return the last stages of a run: those without a folder yet."""
    waiting: list[str] = []
    if (path / "stages" / "control").exists():
        return waiting
    for stage in reversed(_FIRST_READ_BY):
        if (path / "stages" / stage).exists():
            break
        waiting.append(stage)
    return waiting


def _sections(stages: Collection[str]) -> frozenset[str]:
    return frozenset(section for stage in stages for section in _FIRST_READ_BY[stage])


def _comparable(
    settings: Mapping[str, Any], free: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """Return the settings without the free sections and those in _MAY_CHANGE."""
    return {
        name: _comparable(value, (), f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{prefix}{name}" not in _MAY_CHANGE and name not in free
    }


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}".strip("."))
    elif before != after:
        yield key, before, after
