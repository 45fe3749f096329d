"""Checks of stages and rows before anything is trained.

All rows are read with the model's tokenizer once, so that a prompt that is too long, or a completion that
fits no pack after its prompt, is found here and not at the step that meets it.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.config.checks import (
    alignment_verifies,
    discriminator_before_rlvr,
    game_begins_in_rlvr,
    plays_game,
)
from prism_lite.console import say, tracked
from prism_lite.data.formats.base import Finding
from prism_lite.data.stage_rows import describe_skipped
from prism_lite.data.task import TaskData, all_samples, without_samples
from prism_lite.discriminator.part_tokens import part_tokens
from prism_lite.models.backbone import Backbone, encode_samples
from prism_lite.parts import Parts
from prism_lite.rewards.boxes import parse_boxes, says_no_box
from prism_lite.rewards.load import Reward
from prism_lite.rewards.user_functions import check_user_function
from prism_lite.stages.evaluate import subset_inside
from prism_lite.stages.gate import NO_PROBE
from prism_lite.stages.student_groups import FEWEST_PROMPTS
from prism_lite.types import Sample

_PICTURES_AT_ONCE = 256  # small ones of the embedded task, in one pass of the vision tower
# Tags and line ends that the parts of a completion may add to it; other digits of a corrupted teacher.
_REWRITTEN_TOKENS = 8


def read_prompts(
    config: RunConfig, backbone: Backbone, task: TaskData, console: Console
) -> TaskData:
    """Tokenise every row once before training, so that a bad one cannot stop a stage midway.

    The embedded task's small pictures are encoded too; real ones are encoded when they are needed.

    Returns:
        The task without the rows that were left out; they are added to its `skipped`.

    Raises:
        ValueError: a row is too long (and data.on_bad_row is "error"); names it.
    """
    samples = {sample.key: sample for sample in all_samples(task)}
    stages = _stages_of(config, task)
    bad: dict[str, Finding] = {}
    for key, sample in tracked(
        samples.items(), "reading prompts", total=len(samples), console=console
    ):
        try:
            _check_room(config, backbone, sample, stages.get(key, ()))
        except ValueError as error:
            if config.data.on_bad_row == "error":
                raise
            bad[key] = Finding(sample.file, sample.row, "too_long", str(error))
    if bad:
        skipped = tuple(bad.values())
        say(console, describe_skipped(skipped))
        task = without_samples(task, bad.keys())
        task = dataclasses.replace(task, skipped=(*task.skipped, *skipped))
    if config.data.task == "digits":
        kept = [sample for key, sample in samples.items() if key not in bad]
        starts = range(0, len(kept), _PICTURES_AT_ONCE)
        for start in tracked(starts, "encoding pictures", console=console):
            encode_samples(backbone, kept[start : start + _PICTURES_AT_ONCE])
    return task


def _check_room(
    config: RunConfig, backbone: Backbone, sample: Sample, stages: Collection[str]
) -> None:
    """Raise if the prompt and what follows it in some stage do not fit one pack."""
    num_prompt_tokens, limit = len(backbone.prompt(sample)), backbone.config.max_pack_tokens
    for name, num_tokens, remedy in _continuations(config, backbone, sample, stages):
        if num_prompt_tokens + num_tokens > limit:
            raise ValueError(
                f"{sample.source or sample.id}: the prompt has {num_prompt_tokens} tokens, with {name} "
                f"{num_prompt_tokens + num_tokens}, more than model.max_pack_tokens = {limit}. Raise "
                f"that, {remedy}, or drop the row."
            )


def _stages_of(config: RunConfig, task: TaskData) -> dict[str, set[str]]:
    """Return, by row, the stages that forward a completion after its prompt."""
    rows = {
        "sft": task.sft if config.sft.steps else (),
        "align": task.align if config.align.steps else (),
        "discriminator": (*task.align, *task.warmup, *(p.sample for p in task.probe))
        if plays_game(config)
        else (),
        "rlvr": task.rlvr if config.rlvr.steps else (),
    }
    stages: dict[str, set[str]] = {}
    for stage, samples in rows.items():
        for sample in samples:
            stages.setdefault(sample.key, set()).add(stage)
    return stages


def _continuations(
    config: RunConfig, backbone: Backbone, sample: Sample, stages: Collection[str]
) -> Iterator[tuple[str, int, str]]:
    """Yield what follows a row's prompt, in the largest units that a pack must hold.

    Each with its name, its number of tokens, and a remedy besides a larger pack.
    """
    limit = config.sampling.max_completion_tokens
    sampled = f"a completion of sampling.max_completion_tokens = {limit}"
    shorten_sampled = "lower sampling.max_completion_tokens or model.max_pixels"
    if "sft" in stages:
        num_tokens = len(backbone.tokenize(sample.demonstration or ""))
        yield "its demonstration", num_tokens, "shorten the demonstration"
    samples = config.align.method in ("adversarial", "best_of_n")
    if "rlvr" in stages or ("align" in stages and samples):
        yield sampled, limit, shorten_sampled
    teachers = [parsed for parsed in map(parts.parse, sample.teachers) if isinstance(parsed, Parts)]
    num_teacher = max((len(backbone.tokenize(t.render())) for t in teachers), default=0)
    if "rlvr" in stages and config.rlvr.teacher_rollout:
        yield "its teacher completion", num_teacher, "shorten that completion"
    if "discriminator" in stages:
        yield from _discriminator_continuations(config, backbone, sample)
    elif "align" in stages:
        if config.align.method == "dpo":
            yield f"its teacher completion and {sampled}", num_teacher + limit, shorten_sampled
        elif config.align.method == "sft":
            yield "its teacher completion", num_teacher, "shorten that completion"


def _discriminator_continuations(
    config: RunConfig, backbone: Backbone, sample: Sample
) -> Iterator[tuple[str, int, str]]:
    """Yield the two parts of a completion, as the discriminator reads them."""
    disc, remedy = config.discriminator, "lower discriminator.max_part_tokens"
    texts = [*(("teacher", text) for text in sample.teachers), ("student", sample.student or "")]
    for side, text in texts:
        parsed = parts.parse(text)
        if isinstance(parsed, Parts):
            num_tokens = part_tokens(backbone, disc, parsed).num_tokens
            if side == "teacher" and config.warmup.corrupted_fraction > 0:
                num_tokens = min(num_tokens + _REWRITTEN_TOKENS, 2 * disc.max_part_tokens)
            yield f"the parts of its {side}", num_tokens, remedy
    longest = 2 * disc.max_part_tokens
    if config.warmup.mismatched_fraction == 0:  # otherwise the parts of any other row may follow
        copies = 2 if disc.reasoning_sees_caption else 1
        sampled = copies * config.sampling.max_completion_tokens + _REWRITTEN_TOKENS
        longest = min(longest, sampled)
    yield "the longest parts of a completion", longest, remedy


def warn_of_shared_rows(config: RunConfig, task: TaskData, console: Console) -> None:
    """Print an alarm where held-out rows are trained on: same file, or same question and pictures."""
    data = config.data
    if data.task != "files" or not task.heldout:
        return

    def key_of(sample: Sample) -> tuple[object, ...]:
        return (" ".join(sample.question.split()), *(picture.id for picture in sample.pictures))

    heldout = {key_of(sample) for sample in task.heldout}
    for setting in ("train", "warmup", "align", "rlvr"):
        if getattr(data, setting) is not None and getattr(data, setting) == data.heldout:
            what = f"data.heldout and data.{setting} are the same rows ({data.heldout})"
            break
    else:
        trained = (*task.sft, *task.warmup, *task.align, *task.rlvr)
        shared = heldout & {key_of(sample) for sample in trained}
        if not shared:
            return
        what = f"{len(shared)} of {len(heldout)} held-out questions are also trained on"
    fix = f"prism-lite data check {shlex.quote(data.train or '')} --eval {shlex.quote(data.heldout or '')}"
    say(
        console,
        f"alarm shared_rows: {what}, so held-out figures say nothing about new rows. Keep other rows aside "
        f"for data.heldout, in another --out; `{fix} --fix OUT` writes the training rows without them.",
        "bold red",
    )


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
        if _is_gated(config, stage) and config.align.gate == "stop" and not task.probe:
            raise ValueError(f"{NO_PROBE}, or set align.gate=warn to do without a check.")
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
        way_on = " `prism-lite teach` writes teacher completions." if "teacher" in needed else ""
        raise ValueError(
            f"stage {stage} has no rows: none of the data has a {needed}{left_out}. Set {key}, or run "
            f"the other stages by name (prism-lite sft, ...).{way_on}"
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
