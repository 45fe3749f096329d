"""Which settings may differ when a run is resumed.

Only those that decide how work is laid out in memory and time, and those of stages that have not begun:
a resumed run computes what it would have computed without the interruption.
"""

from __future__ import annotations

import contextlib
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
        "save_minutes",
        "max_skipped_steps",
        "track",
        "align.gate",
        "model.revision",  # the commit is a fingerprint in inputs.json
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
# Settings whose values are mappings.
_MAPPINGS = frozenset({"data.columns", "rlvr.rewards"})
# Sections of the settings by the first stage that reads them, in the order of the stages.
_FIRST_READ_BY = {
    "sft": ("sft",),
    "warmup": ("warmup", "discriminator"),
    "align": ("align",),
    "rlvr": ("rlvr",),
}


def stage_settings(config: RunConfig, stage: str) -> dict[str, Any]:
    """Return the settings that decide what a stage and those before it compute."""
    stage = "rlvr" if stage == "control" else stage  # it reads all sections
    later = [*_FIRST_READ_BY][[*_FIRST_READ_BY].index(stage) + 1 :]
    return _comparable(to_dict(config), _sections(later))


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Compare the settings of a run with those of its resumption.

    An edition adds settings: one that the run did not have yet is not a change if it has its default.

    Returns:
        (key, earlier value, value) of each setting that differs; and the keys that are new.
    """
    changes: list[tuple[str, Any, Any]] = []
    added: list[str] = []
    defaults = dict(_flat(to_dict(RunConfig())))
    before_flat, now_flat = dict(_flat(before)), dict(_flat(now))
    for key in sorted(before_flat.keys() | now_flat.keys()):
        if key not in before_flat and key in defaults and now_flat[key] == defaults[key]:
            added.append(key)
        elif before_flat.get(key) != now_flat.get(key) or key not in now_flat:
            changes += _entries(key, before_flat.get(key), now_flat.get(key))
    return changes, added


def _entries(key: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Return the change of a setting; of two mappings, those of their entries."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [(key, before, now)]
    names = sorted(before.keys() | now.keys())
    pairs = [(f"{key}.{name}", before.get(name), now.get(name)) for name in names]
    return [entry for entry in pairs if entry[1] != entry[2]]


def check_folder(path: Path, config: RunConfig) -> list[str]:
    """Check that a run with these settings may write to a folder; leave no file in it.

    Returns:
        Settings that the run in the folder does not know yet, see `check_same_settings`.

    Raises:
        ValueError: the folder holds a run with other settings, or something else, or cannot be written.
    """
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:
        raise ValueError(f"--out {path} cannot be created: {error.strerror}.") from error
    if not existing.is_dir():
        raise ValueError(f"--out {path}: {existing} is a file; name a folder.")
    added: list[str] = []
    if (path / "config.yaml").exists():
        added = check_same_settings(path, config)
    elif path.is_dir() and any(not _is_left_by_kill(file) for file in path.iterdir()):
        raise ValueError(f"--out {path} is not empty and does not hold a run: name another folder.")
    _check_writable(path)
    return added


def _is_left_by_kill(file: Path) -> bool:
    """Return whether a file is what a kill leaves before config.yaml is written."""
    return file.name == ".lock" or file.name == ".config.yaml.tmp"


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


def check_same_settings(path: Path, config: RunConfig) -> list[str]:
    """Check that the run in a folder may be resumed with these settings.

    Returns:
        Settings that the run does not know yet and that have their default.

    Raises:
        ValueError: a setting differs that has already had an effect, or config.yaml cannot be read.
    """
    before = _read_settings(path / "config.yaml")
    if not has_begun(path):
        return []
    free = _sections(_not_begun(path))
    changes, added = changed_settings(_comparable(before, free), _comparable(to_dict(config), free))
    if changes:
        key, old, new = changes[0]
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise ValueError(
            f"{path} holds a run with {key} = {old!r}, and now it is {new!r}{more}: give the same "
            "settings to resume it, or another --out."
        )
    return added


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    else:
        if isinstance(settings, dict):
            return settings
        problem = f"it holds a {type(settings).__name__} instead of settings"
    raise ValueError(
        f"{path} is damaged ({problem}): write it again with `prism-lite run ... --dry-run > {path}` and "
        "the settings of the run, or give another --out."
    )


def has_begun(path: Path) -> bool:
    """Return whether a run in a folder has computed anything: an evaluation or a step."""
    return any((path / name).exists() for name in ("stages", "results.json", "metrics.jsonl"))


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


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting by its full key; tuples as lists, as files have them.

    A mapping without settings of its own (rewards, columns) is one value.
    """
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in _MAPPINGS:
            yield from _flat(value, f"{key}.")
        else:
            yield key, list(value) if isinstance(value, tuple) else value
