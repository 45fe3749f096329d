"""The arms of a study: named sets of overrides, and the runs that make up a study.

All arms of a seed start from the same SFT policy, make the same number of policy updates and learn
from the same number of completions in each; they differ in what is done between SFT and RLVR.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe
from prism_lite.types import STAGES, Stage

START = "start"  # the SFT run that the arms of a seed share
REFERENCE_ARM = "adversarial"  # the arm that the others are compared with
DEFAULT_ARMS = ("none", "sft", "dpo", REFERENCE_ARM)
_SET_BY_STUDY = ("seed", "align.method", "rlvr.start")


@dataclass(frozen=True)
class PlannedRun:
    """One run folder of a study.

    Attributes:
        arm: its name, or "start" for the SFT run that a seed's arms share.
        seed: of all random numbers of this run.
        folder: the run folder.
        stages: the stages to run.
        overrides: "key=value" over the recipe: the user's, then the arm's.
        config: the resolved settings.
    """

    arm: str
    seed: int
    folder: Path
    stages: tuple[Stage, ...]
    overrides: tuple[str, ...]
    config: RunConfig


def _none(config: RunConfig) -> dict[str, Any]:
    """Skip alignment, and extend RLVR by as many rollouts as alignment would sample."""
    align, rlvr = config.align, config.rlvr
    num_rollouts = align.steps * align.prompts_per_step * align.group_size
    extra = math.ceil(num_rollouts / (rlvr.prompts_per_step * rlvr.group_size))
    return {"rlvr.start": "sft", "rlvr.steps": rlvr.steps + extra}


def _sft(config: RunConfig) -> dict[str, Any]:
    """Continue SFT on the teacher's completions, with the optimizer settings of the SFT stage.

    Each update has as many completions as an update of alignment has rollouts.
    """
    optim = dataclasses.asdict(config.sft.optim)
    return {
        **_aligned_by("sft"),
        "align.mode": "align",
        "align.prompts_per_step": config.align.prompts_per_step * config.align.group_size,
        **{f"align.optim.{key}": value for key, value in optim.items()},
    }


def _dpo(config: RunConfig) -> dict[str, Any]:
    """Use DPO on pairs of a teacher completion and one frozen sample of the SFT policy, as SODA does.

    Each update has as many completions, two in a pair, as an update of alignment has rollouts.
    """
    pairs = math.ceil(config.align.prompts_per_step * config.align.group_size / 2)
    return {**_aligned_by("dpo"), "align.mode": "align", "align.prompts_per_step": pairs}


def _aligned_by(method: str) -> dict[str, Any]:
    return {"align.method": method, "rlvr.start": "align"}


# Overrides of each arm, from the settings of the recipe.
ARMS: dict[str, Callable[[RunConfig], dict[str, Any]]] = {
    "none": _none,
    "sft": _sft,
    "dpo": _dpo,
    "adversarial": lambda _: _aligned_by("adversarial"),
    # One dense LoRA in the discriminator instead of the mixture of experts.
    "one-expert": lambda _: {**_aligned_by("adversarial"), "discriminator.routing": "dense"},
}


def plan_study(
    recipe: str,
    overrides: Sequence[str],
    *,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int],
    out: Path,
) -> list[PlannedRun]:
    """List the runs of a study in the order of their execution: seed by seed, SFT first.

    Args:
        recipe: as for `load_recipe`.
        overrides: "key=value" for all runs.
        arms: names from `ARMS`.
        out: the study's folder; runs are stored in `seed-N/ARM`.

    Raises:
        ValueError: an unknown arm, an arm or seed given twice, a setting that the study itself makes,
            no held-out rows, or what `load_recipe` refuses.
    """
    _check(arms, seeds, overrides)
    planned = []
    for seed in seeds:
        of_seed = (*overrides, f"seed={seed}")
        config = load_recipe(recipe, of_seed)
        if config.data.task == "files" and config.data.heldout is None:
            raise ValueError("a study compares held-out figures: set data.heldout.")
        home = out / f"seed-{seed}"
        planned.append(PlannedRun(START, seed, home / START, ("sft",), of_seed, config))
        shared = {"sft.start_from": str(home / START / "policy"), "sft.steps": 0}
        for arm in arms:
            settings = shared | ARMS[arm](config)
            of_arm = (*of_seed, *(_override(key, value) for key, value in settings.items()))
            arm_config = load_recipe(recipe, of_arm)
            stages = ("sft", "rlvr") if arm_config.rlvr.start == "sft" else STAGES
            planned.append(PlannedRun(arm, seed, home / arm, stages, of_arm, arm_config))
    return planned


def budget(config: RunConfig) -> dict[str, int]:
    """Count the policy updates after SFT, and the completions that the policy learns from in them."""
    align, rlvr = config.align, config.rlvr
    steps = align.steps if rlvr.start == "align" else 0
    per_row = {"adversarial": align.group_size, "dpo": 2, "sft": 1}[align.method]
    per_step = align.num_minibatches if align.method == "adversarial" else 1
    return {
        "policy_updates": steps * per_step + rlvr.steps * rlvr.num_minibatches,
        "completions": steps * align.prompts_per_step * per_row
        + rlvr.steps * rlvr.prompts_per_step * rlvr.group_size,
    }


def commands_of(planned: PlannedRun, recipe: str) -> list[str]:
    """Return the `prism-lite` commands that are equivalent to this run of the study."""
    names = ("run",) if planned.stages == STAGES else planned.stages
    rest = ["--recipe", recipe, "--out", str(planned.folder), *planned.overrides]
    return [shlex.join(["prism-lite", name, *rest]) for name in names]


def _check(arms: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"unknown arm {arm!r}: expected one or more of {', '.join(ARMS)}.")
    for option, values in (("--arms", arms), ("--seeds", seeds)):
        if not values:
            raise ValueError(f"{option} is empty: a study needs at least one.")
        if len(set(values)) < len(values):
            raise ValueError(f"{option} {' '.join(map(str, values))}: give each one once.")
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key in _SET_BY_STUDY:
            raise ValueError(f"the study itself sets {key}: use --arms and --seeds instead.")


def _override(key: str, value: Any) -> str:
    """Write a setting as key=value, the value as one line of YAML."""
    text = yaml.safe_dump(value, width=math.inf).removesuffix("\n").removesuffix("\n...")
    return f"{key}={text}"
