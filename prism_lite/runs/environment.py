"""env.json of a run: versions, device, seed, commit, hashes of data and reward files, by session."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prism_lite.config import RunConfig
from prism_lite.config.checks import alignment_verifies
from prism_lite.processes import num_processes
from prism_lite.rewards.load import Reward
from prism_lite.runs.inputs import data_hashes
from prism_lite.runs.small_files import read_object, set_aside, write_object
from prism_lite.version import git_commit, installed_version

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton", "safetensors")


def check_same_rewards(
    folder: Path, config: RunConfig, rewards: Sequence[Reward], *, accept: bool = False
) -> list[str]:
    """Check that the reward functions are those with which a stage has started.

    Args:
        accept: return the changes instead of refusing them.

    Returns:
        The names of reward files that have changed.

    Raises:
        ValueError: the file of a function has changed; names it.
    """
    readers = ("align", "rlvr") if alignment_verifies(config) else ("rlvr",)
    started = [stage for stage in readers if (folder / "stages" / stage).is_dir()]
    environment, _ = read_object(folder / "env.json")
    before = environment.get("rewards", {}) if started else {}
    changes: list[str] = []
    for reward in rewards:
        if reward.name in before and before[reward.name]["sha256"] != reward.sha256:
            if accept:
                changes.append(f"rlvr.rewards: {reward.file} has changed")
                continue
            stage = folder / "stages" / started[0]
            again = "" if (stage / "final").is_dir() else f" remove {stage} to repeat the stage,"
            raise ValueError(
                f"the file of reward {reward.name}, {reward.file}, has changed since stage {started[0]} "
                f"in {folder} started: restore the earlier file,{again} give another --out, or give "
                "--accept-changed-inputs, which records the change."
            )
    return changes


def write_environment(
    folder: Path,
    config: RunConfig,
    core: Any,
    rewards: Sequence[Reward] = (),
    command: str | None = None,
) -> None:
    """Write env.json; a different environment of an earlier session is kept in `earlier_sessions`.

    Args:
        core: the loaded model: its device and float type.
        rewards: the reward functions; the files of the user's are recorded.
        command: the command line; None for a run from Python.
    """
    path = folder / "env.json"
    now: dict[str, Any] = {
        "command": command,
        "prism_lite": installed_version("prism-lite"),
        "model_revision": getattr(core.config, "_commit_hash", None),
        "python": platform.python_version(),
        "packages": package_versions(),
        "device": torch.cuda.get_device_name(core.device) if core.device.type == "cuda" else "cpu",
        "num_processes": num_processes(),
        "threads": torch.get_num_threads(),
        "compute_dtype": str(core.dtype).removeprefix("torch."),
        "seed": config.seed,
        "git_commit": git_commit(),
        "data": data_hashes(config.data),
        "rewards": {
            reward.name: {"file": str(reward.file), "sha256": reward.sha256}
            for reward in rewards
            if reward.file is not None
        },
    }
    before, problem = read_object(path)
    if problem:
        set_aside(path)
    earlier = before.pop("earlier_sessions", [])
    if before and before != now:
        earlier = [*earlier, before]
    if earlier:
        now["earlier_sessions"] = earlier
    write_object(path, now)


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on; None where one is not installed."""
    return {name: installed_version(name) for name in _PACKAGES}
