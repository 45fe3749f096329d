"""The arms of a study: what each one does between the SFT policy and the last evaluation.

With N = align.steps + rlvr.steps of the recipe, every arm makes N updates after SFT, each of the same
number of completions: those of an RLVR batch. Arms with an alignment stage give it `align.steps` of
them, or half of N where the recipe has none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.recipe import to_dict
from prism_lite.types import STAGES, Stage

START = "start"  # the SFT run that the arms of a seed share
DEFAULT_ARMS = ("none", "sft-10", "sft-30", "dpo", "frozen", "adversarial", "game-on")
# Settings of every arm that does not say otherwise: only the last policy is evaluated.
_COMMON = {
    "rlvr.game": "off",
    "rlvr.control": False,
    "rlvr.teacher_rollout": False,
    "eval.stages": ["rlvr"],
    "eval.drift": False,
}

Settings = dict[str, Any]


def num_updates(config: RunConfig) -> int:
    """Return N, the steps after SFT."""
    return config.align.steps + config.rlvr.steps


def _num_aligned(config: RunConfig) -> int:
    """Return how many of the N steps are alignment, in arms that have it."""
    return config.align.steps or num_updates(config) // 2


def _rlvr_alone(config: RunConfig) -> Settings:
    return {"rlvr.start": "sft", "rlvr.steps": num_updates(config)}


def _aligned(config: RunConfig, method: str, num_steps: int) -> Settings:
    """Align for `num_steps`, then RLVR for the rest; a gate that stays shut is a result of a study."""
    return {
        **({"align.gate": "warn"} if method == "adversarial" else {}),
        "align.method": method,
        "align.steps": num_steps,
        "rlvr.start": "align",
        "rlvr.steps": num_updates(config) - num_steps,
    }


def _imitation(config: RunConfig, method: str, num_steps: int) -> Settings:
    """Imitate completions with the optimizer settings of SFT; each update has a batch of RLVR."""
    optim = dataclasses.asdict(config.sft.optim)
    return {
        **_aligned(config, method, num_steps),
        "align.mode": "align",
        "align.prompts_per_step": _batch_size(config),
        **{f"align.optim.{key}": value for key, value in optim.items()},
    }


def _teacher_sft(num_steps: int) -> Callable[[RunConfig], Settings]:
    return lambda config: _imitation(config, "sft", min(num_steps, num_updates(config)))


def _dpo(config: RunConfig) -> Settings:
    """Use pairs of a teacher completion and one sample of the SFT policy, as SODA does."""
    return {
        **_aligned(config, "dpo", _num_aligned(config)),
        "align.mode": "align",
        "align.prompts_per_step": math.ceil(_batch_size(config) / 2),
    }


def _game_on(config: RunConfig, **changes: Any) -> Settings:
    """Keep the game on during RLVR, in all N updates; `routing="free"` sets discriminator.routing."""
    return {
        **_aligned(config, "adversarial", 0),
        "rlvr.game": _game_mode(config),
        **{f"discriminator.{key}": value for key, value in changes.items()},
    }


def _game_mode(config: RunConfig) -> str:
    return "on" if config.rlvr.game == "off" else config.rlvr.game


def _batch_size(config: RunConfig) -> int:
    return config.rlvr.prompts_per_step * config.rlvr.group_size


# Settings of each arm, from those of the recipe. One that learns nothing has no warm-up.
ARMS: dict[str, Callable[[RunConfig], Settings]] = {
    "none": _rlvr_alone,
    "base": lambda config: {**_rlvr_alone(config), "sft.start_from": None, "sft.steps": 0},
    "sft-10": _teacher_sft(10),
    "sft-30": _teacher_sft(30),
    "best-of-n": lambda config: _imitation(config, "best_of_n", _num_aligned(config)),
    "dpo": _dpo,
    "mixed": lambda config: {**_rlvr_alone(config), "rlvr.teacher_rollout": True},
    "adversarial": lambda config: _aligned(config, "adversarial", _num_aligned(config)),
    "game-on": _game_on,
    "game-both": lambda config: {
        **_aligned(config, "adversarial", _num_aligned(config)),
        "rlvr.game": _game_mode(config),
    },
    "frozen": lambda config: {**_game_on(config, scores="frozen"), "warmup.steps": 0},
    "oracle": lambda config: {**_game_on(config, scores="oracle"), "warmup.steps": 0},
    "one-expert": lambda config: _game_on(config, routing="dense"),
    "free": lambda config: _game_on(config, routing="free"),
}


def settings_of(arm: str, config: RunConfig) -> Settings:
    """Return the settings by which an arm differs from the recipe, by dotted key."""
    recipe = to_dict(config)
    settings = _COMMON | ARMS[arm](config)
    return {key: value for key, value in settings.items() if _value_at(recipe, key) != value}


def _value_at(settings: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        settings = settings[name]
    return settings


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages of an arm with these settings."""
    if config.rlvr.start == "sft":
        return ("sft", "rlvr")
    if config.align.method != "adversarial":
        return ("sft", "align", "rlvr")
    return STAGES


def recipe_arm(config: RunConfig) -> str:
    """Return the arm that equals the recipe, as far as the names of the arms go."""
    if config.rlvr.start == "sft":
        return "none"
    if config.align.method != "adversarial":
        return {"sft": "sft-30", "best_of_n": "best-of-n"}.get(config.align.method, "dpo")
    if config.rlvr.game == "off":
        return "adversarial"
    return "game-both" if config.align.steps else "game-on"


def completions_per_step(config: RunConfig) -> dict[str, int]:
    """Return how many completions a step of alignment and of RLVR learns from."""
    align = config.align
    per_row = {"adversarial": align.group_size, "dpo": 2, "sft": 1, "best_of_n": 1}[align.method]
    return {"align": align.prompts_per_step * per_row, "rlvr": _batch_size(config)}


def budget(config: RunConfig) -> dict[str, int]:
    """Count the policy updates after SFT, and the completions that the policy learns from in them."""
    align, rlvr, per_step = config.align, config.rlvr, completions_per_step(config)
    steps = align.steps if rlvr.start == "align" else 0
    aligned = steps * (align.num_minibatches if align.method == "adversarial" else 1)
    return {
        "alignment_updates": aligned,
        "policy_updates": aligned + rlvr.steps * rlvr.num_minibatches,
        "completions": steps * per_step["align"] + rlvr.steps * per_step["rlvr"],
    }
