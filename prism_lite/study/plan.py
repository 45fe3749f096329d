"""The runs of a study: arms x seeds, in one cell or in several (kinds of drift, errors of the teacher)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.study.arms import ARMS, START, settings_of, stages_of
from prism_lite.types import STAGES, Stage

_SET_BY_STUDY = (
    "seed", "align.method", "rlvr.start", "rlvr.teacher_rollout", "rlvr.control",
    "discriminator.scores", "eval.stages",
)  # fmt: skip
_ABOUT_SAVING = ("save_every", "save_minutes", "max_skipped_steps")
# Sections that do not decide what a stage and those before it compute.
_UNREAD = {
    "sft": ("recipe", *_ABOUT_SAVING, "track", "warmup", "discriminator", "align", "rlvr", "eval"),
    "warmup": ("recipe", *_ABOUT_SAVING, "track", "align", "rlvr", "eval"),
}


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


@dataclass(frozen=True)
class Cell:
    """One drift and one error rate of the teacher, if the study varies them.

    Attributes:
        name: of its folder in the study's; "" for a study without axes.
        drift: the folder's part that SFT depends on.
        overrides: "key=value".
    """

    name: str = ""
    drift: str = ""
    overrides: tuple[str, ...] = ()


def cells_of(drifts: Sequence[str], teacher_errors: Sequence[float]) -> list[Cell]:
    """Return the cells: every drift with every error rate; one without axes."""
    cells = []
    for drift, rate in itertools.product(drifts or [None], teacher_errors or [None]):
        parts, overrides = [], []
        if drift is not None:
            parts.append(f"drift-{drift}")
            overrides.append(f"data.digits.drift={drift}")
        if rate is not None:
            parts.append(f"teacher-{rate:g}")
            names = ("teacher_misread_rate", "teacher_slip_rate")
            overrides += [f"data.digits.{name}={rate:g}" for name in names]
        cells.append(Cell("-".join(parts), drift or "", tuple(overrides)))
    return cells


def plan_study(
    recipe: str,
    overrides: Sequence[str],
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    starts: dict[int, PlannedRun] | None = None,
    base_per_seed: bool = False,
    tuned: Mapping[str, Sequence[str]] | None = None,
) -> list[PlannedRun]:
    """List the runs of a cell in the order of their execution: seed by seed, SFT first.

    Args:
        recipe: as for `load_recipe`.
        overrides: "key=value" for all runs.
        arms: names from `ARMS`.
        out: the cell's folder; runs are stored in `seed-N/ARM`.
        starts: the SFT runs of other cells that this one can use, by seed; new ones are added.
        base_per_seed: train a tiny base with each seed.
        tuned: further "key=value" of arms, by name.

    Raises:
        ValueError: an unknown arm, an arm or seed given twice, a setting that the study itself makes,
            no held-out rows, or what `load_recipe` refuses.
    """
    _check(arms, seeds, overrides)
    starts, tuned = {} if starts is None else starts, tuned or {}
    planned = []
    for seed in seeds:
        base = (f"tiny.seed={seed}",) if base_per_seed else ()
        of_seed = (*overrides, f"seed={seed}", *base)
        config = load_recipe(recipe, of_seed)
        if config.data.task == "files" and config.data.heldout is None:
            raise ValueError("a study compares held-out figures: set data.heldout.")
        home = out / f"seed-{seed}"
        if seed not in starts:
            of_start = (*of_seed, *_of_start(config))
            start = load_recipe(recipe, of_start)
            starts[seed] = PlannedRun(START, seed, home / START, ("sft",), of_start, start)
        planned.append(starts[seed])
        for arm in arms:
            settings = settings_of(arm, config)
            texts = (_override(key, value) for key, value in settings.items())
            of_arm = (*of_seed, *texts, *tuned.get(arm, ()))
            arm_config = load_recipe(recipe, of_arm)
            stages = stages_of(arm_config)
            planned.append(PlannedRun(arm, seed, home / arm, stages, of_arm, arm_config))
    return planned


def _of_start(config: RunConfig) -> list[str]:
    """Return the overrides of the SFT run: inside the stage only its last step is evaluated."""
    every = config.sft.steps if config.eval.every else 0
    return ["eval.stages=[base, sft]", f"eval.every={every}", "eval.keep=last", "eval.drift=false"]


def sources_of(runs: Sequence[PlannedRun]) -> dict[tuple[Path, Stage], PlannedRun]:
    """Return, by folder and stage, the earlier run whose SFT or warm-up computes the same."""
    first: dict[str, PlannedRun] = {}
    sources = {}
    for run in runs:
        for stage in ("sft", "warmup"):
            if stage in run.stages:
                source = first.setdefault(_key_of(run.config, stage), run)
                if source.folder != run.folder:
                    sources[run.folder, stage] = source
    return sources


def _key_of(config: RunConfig, stage: str) -> str:
    """Return a hash of the settings that decide what SFT or the warm-up, and those before, compute."""
    settings = {key: value for key, value in to_dict(config).items() if key not in _UNREAD[stage]}
    if stage == "sft":
        for name in ("teacher_misread_rate", "teacher_slip_rate"):
            del settings["data"]["digits"][name]
    return hashlib.sha256(json.dumps([stage, settings], sort_keys=True).encode()).hexdigest()


def commands_of(planned: PlannedRun, recipe: str) -> list[str]:
    """Return the `prism-lite` commands that are equivalent to this run of the study."""
    is_run = planned.stages == STAGES or planned.config.align.method != "adversarial"
    names = ("run",) if is_run and "align" in planned.stages else planned.stages
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
    text = yaml.safe_dump(value, width=math.inf, default_flow_style=True)
    return f"{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"
