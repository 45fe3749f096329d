"""env.json of a run: versions, device, seed, commit, fingerprints of the data; a line per session.

Data that changed between two sessions would make a run that no data file describes: it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prism_lite.files import write_text
from prism_lite.config import DataConfig, RunConfig
from prism_lite.rewards.load import Reward

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton", "safetensors")


def data_fingerprints(data: DataConfig) -> dict[str, str]:
    """SHA-256 (16 hex digits) of each data file of the settings; hub ids have none."""
    named = {name: getattr(data, name) for name in ("train", "warmup", "align", "rlvr", "heldout")}
    return {
        name: fingerprint_of(path) for name, path in named.items() if path and Path(path).is_file()
    }


def check_same_data(folder: Path, data: DataConfig) -> None:
    """Refuse to resume on other data than the run began with.

    Raises:
        ValueError: a data file has changed; names the setting.
    """
    path = folder / "env.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("data", {})
    now = data_fingerprints(data)
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise ValueError(
                f"data.{name} = {getattr(data, name)} has changed since the run in {folder} began: "
                "put the former file back, or give another --out."
            )


def check_same_rewards(folder: Path, config: RunConfig, rewards: Sequence[Reward]) -> None:
    """Refuse to resume a stage with another reward function than it began with.

    Raises:
        ValueError: the file of a function has changed; names it.
    """
    path = folder / "env.json"
    readers = ("rlvr",) if config.align.mode == "align" else ("align", "rlvr")
    begun = [stage for stage in readers if (folder / "stages" / stage).is_dir()]
    if not begun or not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("rewards", {})
    for reward in rewards:
        if reward.name in before and before[reward.name]["sha256"] != reward.sha256:
            stage = folder / "stages" / begun[0]
            again = "" if (stage / "final").is_dir() else f" remove {stage} to begin it again,"
            raise ValueError(
                f"the file of reward {reward.name}, {reward.file}, has changed since stage {begun[0]} "
                f"in {folder} began: put the former file back,{again} or give another --out."
            )


def write_environment(
    folder: Path, config: RunConfig, core: Any, rewards: Sequence[Reward] = ()
) -> None:
    """Write env.json; an earlier session's differing environment is kept in `earlier_sessions`.

    Args:
        core: the loaded model: its device and float type.
        rewards: the reward functions; the files of the user's are recorded.
    """
    path = folder / "env.json"
    now: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(core.device) if core.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "compute_dtype": str(core.dtype).removeprefix("torch."),
        "seed": config.seed,
        "git_commit": _git_commit(),
        "data": data_fingerprints(config.data),
        "rewards": {
            reward.name: {"file": str(reward.file), "sha256": reward.sha256}
            for reward in rewards
            if reward.file is not None
        },
    }
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    earlier = before.pop("earlier_sessions", [])
    if before and before != now:
        earlier = [*earlier, before]
    if earlier:
        now["earlier_sessions"] = earlier
    write_text(path, json.dumps(now, indent=1) + "\n")


def fingerprint_of(path: str) -> str:
    """First 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def installed_version(package: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
