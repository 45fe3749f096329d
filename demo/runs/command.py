"""The training that the Train tab's form stands for: a preset, a few knobs, a command line."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from typing import Any

from prism_lite.recipe import load_recipe, recipe_names

# The few settings that a first experiment turns; all others by the command line.
KNOBS = (
    ("seed", "Seed", "names every random choice of the run"),
    ("sft.steps", "SFT steps", "updates on the demonstrations"),
    ("warmup.steps", "Warm-up steps", "updates of the discriminator before the game"),
    ("align.steps", "Alignment steps", "updates of policy and discriminator"),
    ("align.group_size", "Group size", "completions sampled of each prompt in alignment"),
    ("rlvr.steps", "RLVR steps", "updates on verifiable rewards"),
)
MAX_KNOB = 100_000


@functools.cache
def _preset(name: str) -> Any:
    return load_recipe(name)


def arguments(preset: str, values: Sequence[float | None]) -> list[str]:
    """What follows `prism-lite run --out DIR`: the preset, and the knobs that differ from it.

    Args:
        values: one per knob; None is the preset's own.

    Raises:
        ValueError: no such preset, or a knob out of range.
    """
    if preset not in recipe_names():
        raise ValueError(f"preset {preset!r}: choose one of {', '.join(recipe_names())}.")
    changed = []
    for (key, title, _), value in zip(KNOBS, values, strict=True):
        if value is None:
            continue
        if not 0 <= value <= MAX_KNOB:
            raise ValueError(f"{title} = {value:g}: expected 0 to {MAX_KNOB}.")
        if int(value) != functools.reduce(getattr, key.split("."), _preset(preset)):
            changed.append(f"{key}={int(value)}")
    load_recipe(preset, changed)  # what it says about a wrong value is said before anything starts
    return ["--recipe", preset, *changed]


def command_line(run_name: str, preset: str, values: Sequence[float | None]) -> str:
    """What a person would type for it."""
    out = f"runs/{run_name or 'NAME'}"
    return shlex.join(["prism-lite", "run", "--out", out, *arguments(preset, values)])


def demand_startable(preset: str) -> None:
    """Refuse a preset that needs a file of the person's own.

    Raises:
        ValueError: it does.
    """
    data = _preset(preset).data
    if data.task == "files" and data.train is None:
        raise ValueError(
            f"preset {preset} trains on your own file, and no path is taken from a browser: copy the "
            "command above, add data.train=FILE, and watch the run here."
        )
