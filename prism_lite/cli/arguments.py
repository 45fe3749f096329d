"""What is wrong with a run's arguments and can be known without loading a library or a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `prism-lite --help` does not wait for pydantic
    from prism_lite.config import RunConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_arguments(config: RunConfig, out: Path, keys: Sequence[str]) -> None:
    """Check files, folders and settings before anything heavy is imported.

    Args:
        keys: the settings that the user gives on the command line.

    Raises:
        ValueError: something does not exist, cannot be written, or has no effect.
    """
    from prism_lite.config.idle import idle_setting
    from prism_lite.runs.resume import check_folder
    from prism_lite.runs.trackers import check_trackers

    for key in keys:
        if problem := idle_setting(config, key):
            raise ValueError(problem)
    _check_data(config)
    _check_model(config)
    for name in config.rlvr.rewards:
        file = name.rpartition(":")[0]
        if file.endswith(".py") and not Path(file).is_file():
            raise ValueError(
                f"rlvr.rewards has {name}, but {Path(file).absolute()} does not exist."
            )
    check_trackers(config)
    check_folder(out, config)


def _check_data(config: RunConfig) -> None:
    from prism_lite.data.formats.files import find_source

    data = config.data
    if data.task != "files":
        return
    if data.train is None:
        raise ValueError(
            "data.train is not set: name the file (or hub id) with the training rows, as in "
            "data.train=rows.jsonl."
        )
    for name in ("train", "warmup", "align", "rlvr", "heldout"):
        path = getattr(data, name)
        if path is not None:
            try:
                find_source(path)
            except ValueError as error:
                raise ValueError(f"data.{name} = {path}: {error}") from error
    if data.image_root is not None and not Path(data.image_root).is_dir():
        raise ValueError(f"data.image_root = {data.image_root} is not a folder.")


def _check_model(config: RunConfig) -> None:
    name, start, lora = config.model.name, config.sft.start_from, config.lora
    if name != "tiny" and not (Path(name) / "config.json").is_file() and not _is_hub_id(name):
        raise ValueError(
            f"model.name = {name!r} is neither a folder with a config.json nor a hub id (owner/name)."
        )
    if start is None:
        return
    file = Path(start) / "adapter_config.json"
    if not file.is_file():
        if not _is_hub_id(start):
            raise ValueError(
                f"sft.start_from = {start!r} is neither a folder with an adapter_config.json (a run's "
                "policy/) nor a hub id (owner/name)."
            )
        return
    adapter = json.loads(file.read_text(encoding="utf-8"))
    rank, alpha = adapter.get("r"), adapter.get("lora_alpha")
    if adapter.get("peft_type") == "LORA" and (rank, alpha) != (lora.rank, lora.alpha):
        raise ValueError(
            f"sft.start_from = {start!r} has rank {rank} and alpha {alpha}: set lora.rank={rank} "
            f"lora.alpha={alpha}."
        )


def _is_hub_id(name: str) -> bool:
    """Return whether a name may be on the hub: it is not a path, nor in a folder that exists here."""
    is_path = Path(name).exists() or Path(name.partition("/")[0]).exists()
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not is_path
