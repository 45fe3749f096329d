"""The names of our settings, and what to say about one that does not exist."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any

import pydantic

from prism_lite.config import RunConfig
from prism_lite.foreign_settings import foreign_setting

# Settings ("key") and values ("key=value") of earlier versions, and what has become of them.
_OLD_SETTINGS = {
    "rlvr.algorithm": "is now called rlvr.preset",
    "align.length_debias": "was removed: no recipe used it, and no measurement showed a gain",
    "model.picture_disk_gib": "was removed: no recipe used it",
    "rlvr.kl_kind=abs": "was removed: it does not estimate the KL divergence; use k2 or k3",
    "rlvr.kl_kind=full": "was removed: k3 estimates the same from the sampled tokens; use k3",
    **{
        f"rlvr.loss={name}": f"is now rlvr.loss.name={name}"
        for name in ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "sapo"]
    },
    **{
        f"rlvr.{name}": f"is now called rlvr.loss.{name}"
        for name in (
            "clip_low",
            "clip_high",
            "clip_dual",
            "sapo_temperature_positive",
            "sapo_temperature_negative",
            "entropy_weight",
        )
    },
    **{
        f"rlvr.{name}_weight": f"is now called rlvr.rewards.{name}; a reward of weight 0 is left out"
        for name in ["accuracy", "format", "ocr", "boxes", "judge", "overlong"]
    },
}


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Return every dotted key that a recipe or override may set."""

    def walk(value: Any, prefix: str) -> list[str]:
        keys = []
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            name = f"{prefix}{item.name}"
            keys += walk(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [name]
        return keys

    return tuple(walk(RunConfig(), ""))


def renamed_setting(key: str, value: Any) -> str | None:
    """Return a sentence about a setting of an earlier version or of another trainer, or None.

    Args:
        value: that the user gives it: some values have changed, and `model=ID` gives one to a section.
    """
    change = _OLD_SETTINGS.get(key)
    if change is None and (change := _OLD_SETTINGS.get(f"{key}={value}")):
        key = f"{key} = {value}"
    is_section = key in _sections()
    is_ours = key in known_keys() or (is_section and isinstance(value, Mapping))
    if change is None and not is_ours:
        change = foreign_setting(key)
    return f"setting {key} {change}." if change else None


def near_settings(key: str) -> list[str]:
    """Return the settings, or else the sections, whose names are most like a wrong key."""
    leaf = key.rpartition(".")[2]
    leaves = {name.rpartition(".")[2] for name in known_keys()}
    return (
        difflib.get_close_matches(key, known_keys(), 3, 0.6)
        or [name for name in known_keys() if name.rpartition(".")[2] == leaf]
        or difflib.get_close_matches(key, _top_sections(), 1, 0.6)
        or [
            name
            for near in difflib.get_close_matches(leaf, leaves, 3, 0.7)
            for name in known_keys()
            if name.rpartition(".")[2] == near
        ][:3]
    )


@functools.cache
def _sections() -> frozenset[str]:
    """Return the dotted names of all sections."""
    parents = (key.split(".")[:-1] for key in known_keys())
    return frozenset(".".join(names[:i]) for names in parents for i in range(1, len(names) + 1))


def _top_sections() -> list[str]:
    return sorted({name.partition(".")[0] for name in known_keys()})


def first_problem(error: pydantic.ValidationError) -> str:
    """Return one sentence for the first thing that is wrong with the settings."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = near_settings(key)
        if near and isinstance(problem["input"], Mapping) and problem["input"]:
            key = f"{key}.{next(iter(problem['input']))}"
            near = near_settings(key) or near
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(_top_sections())}."
        return f"unknown setting {key!r}: {hint}"
    expected = problem["msg"].replace("Input should be", "expected")
    if problem["type"] == "dataclass_type":
        expected = "expected a mapping, this is a section of settings"
    known = max((k for k in known_keys() if f"{key}.".startswith(f"{k}.")), key=len, default=key)
    return (
        f"setting {key} = {problem['input']!r}: {expected}; "
        f"`prism-lite settings {known}` says what it means."
    )
