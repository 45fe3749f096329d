"""The arms of a study: named sets of overrides, and the runs that a study is made of.

All arms of a seed start from the same SFT policy, make the same number of policy updates and learn
from the same number of completions in each; they differ in what stands between SFT and RLVR.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe
from prism_lite.types import STAGES, Stage

START = "start"  # the run folder of a seed whose SFT policy its arms share
REFERENCE_ARM = "adversarial"  # the one that the others are compared with
DEFAULT_ARMS = ("none", "sft", "dpo", REFERENCE_ARM)
# What the arms are about; a study sets them itself.
SET_BY_STUDY = ("seed", "align.method", "rlvr.start")


@dataclass(frozen=True)
class PlannedRun:
    """One run folder of a study.

    Attributes:
        arm: its name, or "start" for the SFT run that a seed's arms share.
        seed: of everything drawn in this run.
        folder: the run folder.
        stages: what runs in it.
        overrides: "key=value" over the recipe: the person's, then the arm's.
        config: the resolved settings.
    """

    arm: str
    seed: int
    folder: Path
    stages: tuple[Stage, ...]
    overrides: tuple[str, ...]
    config: RunConfig


def none_settings(config: RunConfig) -> dict[str, Any]:
    """No alignment: RLVR from SFT, longer by as many rollouts as the game of the other arms draws."""
    align, rlvr = config.align, config.rlvr
    num_rollouts = align.steps * align.prompts_per_step * align.group_size
    extra = math.ceil(num_rollouts / (rlvr.prompts_per_step * rlvr.group_size))
    return {"rlvr.start": "sft", "rlvr.steps": rlvr.steps + extra}


def sft_settings(config: RunConfig) -> dict[str, Any]:
    """More SFT, on the teacher's completions: as many in each update as the game has rollouts, with
    the optimizer settings of the SFT stage."""
    optim = {
        f"align.optim.{key}": value for key, value in dataclasses.asdict(config.sft.optim).items()
    }
    rows = config.align.prompts_per_step * config.align.group_size
    return _aligned("sft") | {"align.mode": "align", "align.prompts_per_step": rows} | optim


def dpo_settings(config: RunConfig) -> dict[str, Any]:
    """DPO on (teacher, one frozen sample of the SFT policy), as SODA: in each update as many
    completions, two in a pair, as the game has rollouts."""
    pairs = math.ceil(config.align.prompts_per_step * config.align.group_size / 2)
    return _aligned("dpo") | {"align.mode": "align", "align.prompts_per_step": pairs}


def adversarial_settings(_config: RunConfig) -> dict[str, Any]:
    """The game, as the recipe has it."""
    return _aligned("adversarial")


def one_expert_settings(_config: RunConfig) -> dict[str, Any]:
    """The game with one dense LoRA instead of the mixture of experts."""
    return _aligned("adversarial") | {"discriminator.routing": "dense"}


def _aligned(method: str) -> dict[str, Any]:
    return {"align.method": method, "rlvr.start": "align"}


ARMS: dict[str, Callable[[RunConfig], dict[str, Any]]] = {
    "none": none_settings,
    "sft": sft_settings,
    "dpo": dpo_settings,
    "adversarial": adversarial_settings,
    "one-expert": one_expert_settings,
}


def plan_study(
    recipe: str,
    overrides: Sequence[str],
    *,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int],
    out: Path,
) -> list[PlannedRun]:
    """The runs of a study in the order in which they are done: seed by seed, SFT first.

    Args:
        recipe: as `load_recipe`.
        overrides: "key=value" for all runs.
        out: the study's folder; runs lie in `seed-N/ARM`.

    Raises:
        ValueError: an unknown arm, an arm or seed given twice, a setting that the study itself makes,
            no held-out rows, or what `load_recipe` refuses.
    """
    _check(arms, seeds, overrides)
    planned = []
    for seed in seeds:
        seeded = (*overrides, f"seed={seed}")
        config = load_recipe(recipe, seeded)
        if config.data.task == "files" and config.data.heldout is None:
            raise ValueError("a study compares held-out figures: set data.heldout.")
        home = out / f"seed-{seed}"
        planned.append(PlannedRun(START, seed, home / START, ("sft",), seeded, config))
        shared = {"sft.start_from": str(home / START / "policy"), "sft.steps": 0}
        for arm in arms:
            given = (*seeded, *_texts(shared | ARMS[arm](config)))
            own = load_recipe(recipe, given)
            stages = ("sft", "rlvr") if own.rlvr.start == "sft" else STAGES
            planned.append(PlannedRun(arm, seed, home / arm, stages, given, own))
    return planned


def budget(config: RunConfig) -> dict[str, int]:
    """Policy updates after SFT, and completions that the policy learns from in them."""
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
    """The ordinary commands that do the same as this run of the study."""
    names = ("run",) if planned.stages == STAGES else planned.stages
    rest = ["--recipe", recipe, "--out", str(planned.folder), *planned.overrides]
    return [shlex.join(["prism-lite", name, *rest]) for name in names]


def _check(arms: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"unknown arm {arm!r}: expected one or more of {', '.join(ARMS)}.")
    for option, given in (("--arms", arms), ("--seeds", seeds)):
        if not given:
            raise ValueError(f"{option} is empty: a study needs at least one.")
        if len(set(given)) < len(given):
            raise ValueError(f"{option} {' '.join(map(str, given))}: give each one once.")
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key in SET_BY_STUDY:
            raise ValueError(
                f"setting {key} is the study's own: choose with --arms and --seeds instead."
            )


def _texts(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    """One line of YAML that reads back as the value."""
    return yaml.safe_dump(value, width=math.inf).removesuffix("\n").removesuffix("\n...")
