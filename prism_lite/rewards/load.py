"""Load the rewards of a run: the built-in ones, and functions from the user's own files and modules.

A user's function has TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`, may
be async, and is named in `rlvr.rewards` as `package.module:function` or `path/to/file.py:function`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from prism_lite.config import BUILT_IN_REWARDS, RunConfig
from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.rewards.boxes import iou_reward
from prism_lite.rewards.format import format_reward
from prism_lite.rewards.judge import judge_reward
from prism_lite.rewards.ocr import ocr_reward
from prism_lite.rewards.overlong import overlong_reward


@dataclass(frozen=True)
class Reward:
    """One reward of a run.

    Attributes:
        name: the built-in's or the function's name; metrics and records have it.
        weight: its weight in the sum.
        function: has TRL's signature.
        file: where a user's function is; None for a built-in one.
        sha256: first 16 hex digits of that file's hash when it was loaded.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    file: Path | None = None
    sha256: str = ""


def load_rewards(config: RunConfig) -> tuple[Reward, ...]:
    """Load the functions of `rlvr.rewards`, in its order.

    Raises:
        ValueError: a user's function cannot be imported.
    """
    rlvr, max_tokens = config.rlvr, config.sampling.max_completion_tokens
    built_in = {
        "accuracy": accuracy_reward,
        "format": format_reward,
        "ocr": ocr_reward,
        "boxes": functools.partial(iou_reward, settings=config.data.boxes),
        "judge": functools.partial(judge_reward, settings=rlvr.judge),
        "overlong": functools.partial(
            overlong_reward,
            max_tokens=max_tokens,
            buffer_tokens=max(1, round(rlvr.overlong_buffer * max_tokens)),
        ),
    }
    return tuple(
        Reward(setting, weight, built_in[setting])
        if setting in BUILT_IN_REWARDS
        else _load_user_reward(setting, weight)
        for setting, weight in rlvr.rewards.items()
    )


def _load_user_reward(setting: str, weight: float) -> Reward:
    place, _, name = setting.rpartition(":")
    path = Path(place).resolve() if place.endswith(".py") else None
    if path and not path.is_file():
        raise ValueError(
            f"rlvr.rewards.{setting}: {path} does not exist. Correct the path (a relative one starts "
            "at the current folder), or give package.module:function."
        )
    if name in BUILT_IN_REWARDS:
        raise ValueError(
            f"rlvr.rewards.{setting}: {name} is the name of a built-in reward, and metrics are named "
            "after the function. Rename the function."
        )
    try:
        module = _run_file(path) if path else importlib.import_module(place)
    except Exception as error:
        hint = "Fix the file." if path else "Install it, or give path/to/file.py:function."
        raise ValueError(
            f"rlvr.rewards.{setting}: importing {place} failed: {describe_error(error, path)}. {hint}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"rlvr.rewards.{setting}: {place} has no function {name}; its functions are "
            f"{', '.join(names) or 'none'}. Correct the name."
        )
    file = Path(getattr(module, "__file__", None) or place)  # modules built into Python have none
    content = file.read_bytes() if file.is_file() else b""
    return Reward(name, weight, function, file, hashlib.sha256(content).hexdigest()[:16])


def describe_error(error: Exception, file: Path | None, function: Any = None) -> str:
    """Return the error after the last line of the user's file that it came through.

    Args:
        function: its first line is named where the error did not arise inside the file.
    """
    code = getattr(inspect.unwrap(function), "__code__", None) if function else None
    frames = traceback.extract_tb(error.__traceback__)
    lines = [code.co_firstlineno] if code else []
    lines += [frame.lineno for frame in frames if frame.filename == str(file)]
    place = f"{file}, line {lines[-1]}: " if lines else ""
    text = " ".join(str(error).split())  # some messages have several lines
    return f"{place}{type(error).__name__}: {text}".rstrip(".")


def _run_file(path: Path) -> ModuleType:
    """Run a Python file as a module: its source, never a cached compilation of an earlier one."""
    module = ModuleType(f"rlvr_rewards_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module
