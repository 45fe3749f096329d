"""Checks of stages, rewards and held-out rows before anything is loaded or trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prism_lite.config import DataConfig, RunConfig
from prism_lite.config.checks import (
    alignment_verifies,
    discriminator_before_rlvr,
    game_begins_in_rlvr,
)
from prism_lite.console import say
from prism_lite.data.probe_rows import FEWEST_PAIRS
from prism_lite.data.task import TaskData
from prism_lite.rewards.boxes import parse_boxes, says_no_box
from prism_lite.rewards.load import Reward
from prism_lite.rewards.user_functions import check_user_function
from prism_lite.stages.evaluate import subset_inside
from prism_lite.stages.gate import no_probe_text
from prism_lite.stages.student_groups import FEWEST_PROMPTS
from prism_lite.types import Sample


def warn_of_shared_rows(config: RunConfig, task: TaskData, console: Console) -> None:
    """Print an alarm where held-out rows are trained on: same file, or same question and pictures."""
    data = config.data
    if data.task != "files" or not task.heldout:
        return

    def key_of(sample: Sample) -> tuple[object, ...]:
        return (" ".join(sample.question.split()), *(picture.id for picture in sample.pictures))

    heldout = {key_of(sample) for sample in task.heldout}
    trained = (*task.sft, *task.warmup, *task.align, *task.rlvr)
    shared = {key: sample.file for sample in trained if (key := key_of(sample)) in heldout}
    if not shared:
        return
    file = next(iter(shared.values()))
    say(
        console,
        f"alarm shared_rows: {len(shared)} of {len(heldout)} held-out questions are also trained on, so "
        f"held-out figures say nothing about new rows. {_how_to_part(file, data, len(heldout))}",
        "bold red",
    )


def _how_to_part(train: str, data: DataConfig, num_heldout: int) -> str:
    """Return the command that keeps the rows of a training file and of the held-out one separate."""
    heldout, num_aside = data.heldout or "", max(1, num_heldout // 10)
    folder, name = Path(train).parent, Path(train.partition("#")[0]).stem
    if train == heldout and train.endswith(".jsonl"):
        parts = [folder / f"{name}-{end}.jsonl" for end in ("train", "heldout")]
        source, kept, aside = (shlex.quote(str(path)) for path in (train, *parts))
        commands = (
            f"head -n {num_aside} {source} > {aside}; tail -n +{num_aside + 1} {source} > {kept}"
        )
        return f"Keep rows aside and name both files, in another --out: {commands}"
    if train == heldout:
        return "Name other rows as data.heldout, in another --out."
    words = ["prism-lite", "data", "check", train]
    words += ["--eval", heldout, "--fix", f"{name}-train.jsonl"]
    if data.columns:
        words += ["--columns", json.dumps(dict(data.columns))]
    if data.image_root:
        words += ["--image_root", data.image_root]
    return f"Train on the rows that are not held out, in another --out: {shlex.join(words)}"


def check_rewards(
    config: RunConfig, rewards: Sequence[Reward], stages: Sequence[str], task: TaskData
) -> None:
    """Check the reward functions on the rows of the stages that use them.

    Raises:
        ValueError: a user's function cannot be called, see `check_user_function`; or a gold answer
            holds no box, where boxes are rewarded.
    """
    samples = [*task.rlvr] if "rlvr" in stages else []
    if "align" in stages and alignment_verifies(config):
        samples += task.align
    for reward in rewards if samples else ():
        if reward.file is not None:
            check_user_function(reward, samples)
        for sample in samples if reward.name == "boxes" else ():
            boxes = config.data.boxes
            if boxes.predicted_unit not in (None, boxes.unit) and len(sample.pictures) != 1:
                raise ValueError(
                    f"{sample.source or sample.id}: the row has {len(sample.pictures)} pictures, and "
                    "boxes are converted between data.boxes.unit and predicted_unit by the size of "
                    "one: give boxes in one unit, or drop the row."
                )
            if sample.answer and not (parse_boxes(sample.answer) or says_no_box(sample.answer)):
                raise ValueError(
                    f"{sample.source or sample.id}: the answer {sample.answer[:80]!r} holds no box, "
                    "which the reward boxes expects: write [x1, y1, x2, y2] or none, or leave boxes out of "
                    "rlvr.rewards."
                )


def check_stages(config: RunConfig, out: Path, stages: Sequence[str], task: TaskData) -> None:
    """Refuse stages that lack rows or an earlier stage, before anything is loaded or trained."""
    needs = {
        "sft": (),
        "warmup": ("sft",),
        "align": ("sft", "warmup") if config.align.method == "adversarial" else ("sft",),
        "control": ("sft",),
        "rlvr": (config.rlvr.start,),
    }
    if config.rlvr.game != "off" and discriminator_before_rlvr(config) == "warmup":
        needs["rlvr"] = (config.rlvr.start, "warmup")
    if task.skipped and config.data.heldout and not task.heldout:
        raise ValueError(
            f"data.heldout = {config.data.heldout}: every row was skipped, one of them: "
            f"{task.skipped[-1].message}"
        )
    if config.eval.every:
        _check_evaluation_inside(config, task)
    for number, stage in enumerate(stages):
        if (out / "stages" / stage / "final").is_dir():
            continue
        if stage != "sft" or config.sft.steps:
            _check_rows(stage, task)
        if stage == "warmup":
            _check_warmup_rows(config, task)
        if stage == "align" and alignment_verifies(config):
            _check_answers(config, task)
        is_stopped = _is_gated(config, stage) and config.align.gate == "stop"
        if is_stopped and len(task.probe) < FEWEST_PAIRS:
            text = no_probe_text(task.align)
            raise ValueError(f"{text}, or set align.gate=warn to do without a check.")
        if stage == "rlvr" and config.rlvr.teacher_rollout:
            for sample in task.rlvr:
                _ = sample.teacher_parts  # raises if it is missing or malformed
        for earlier in needs[stage]:
            if earlier not in stages[:number] and not (out / "stages" / earlier / "final").is_dir():
                raise ValueError(
                    f"stage {stage} continues from stage {earlier}, which is not finished in {out}: "
                    f"run `prism-lite {earlier}` there first, or `prism-lite run` for all stages."
                )


def _check_evaluation_inside(config: RunConfig, task: TaskData) -> None:
    if not task.heldout:
        raise ValueError(
            f"eval.every = {config.eval.every} evaluates held-out rows inside the stages, and there are "
            "none: set data.heldout, or eval.every=0."
        )
    if config.eval.keep == "last":
        return
    name, rows = config.eval.best_by, subset_inside(task.heldout, config)
    is_measured = {
        "accuracy": any(sample.answer is not None for sample in rows),
        "transfer_accuracy": bool(task.transfer),
        "caption_accuracy": task.verify is not None,
        "think_validity": task.verify is not None,
        "format_rate": True,
    }
    if not is_measured[name]:
        measured = ", ".join(figure for figure, is_there in is_measured.items() if is_there)
        raise ValueError(
            f"eval.best_by = {name} is not measured on these held-out rows: choose one of {measured}."
        )


def _check_rows(stage: str, task: TaskData) -> None:
    rows, needed, key = {
        "sft": (task.sft, "demonstration", "data.train"),
        "warmup": (task.align, "teacher completion", "data.align"),
        "align": (task.align, "teacher completion", "data.align"),
        "control": (task.rlvr, "answer", "data.rlvr"),
        "rlvr": (task.rlvr, "answer", "data.rlvr"),
    }[stage]
    if not rows:
        left_out = (
            f" ({len(task.skipped)} rows were skipped, the first: {task.skipped[0].message})"
            if task.skipped
            else ""
        )
        remedy = " `prism-lite teach` writes teacher completions." if "teacher" in needed else ""
        raise ValueError(
            f"stage {stage} has no rows: none of the data has a {needed}{left_out}. Set {key}, or run "
            f"the other stages by name (prism-lite sft, ...).{remedy}"
        )


def _check_warmup_rows(config: RunConfig, task: TaskData) -> None:
    """Check for the fewest prompts that the warm-up can be trained on, before SFT is trained."""
    num_rows = min(len(task.align), config.warmup.num_prompts)
    if not task.warmup and num_rows < FEWEST_PROMPTS:
        raise ValueError(
            f"the warm-up needs at least {FEWEST_PROMPTS} prompts with a teacher completion, and there are "
            f"{num_rows}: give more rows (data.align, warmup.num_prompts), or do without a discriminator "
            "(align.method=sft rlvr.game=off)."
        )


def _is_gated(config: RunConfig, stage: str) -> bool:
    """Return whether a stage begins with the discriminator of the warm-up, see stages/gate.py."""
    if config.discriminator.scores != "learned":
        return False
    if stage == "align":
        return config.align.method == "adversarial" and config.align.steps > 0
    return stage == "rlvr" and game_begins_in_rlvr(config) and config.rlvr.steps > 0


def _check_answers(config: RunConfig, task: TaskData) -> None:
    for sample in task.align:
        if not (sample.answer or "").strip():
            raise ValueError(
                f"{sample.source or sample.id}: no answer to verify, and align.mode = "
                f"{config.align.mode} with align.method = {config.align.method} verifies each rollout. "
                "Give every row of data.align an answer, or set align.mode=align and another method."
            )
