"""Read all rows with the model's tokenizer before anything is trained.

So a prompt that is too long, or a completion that fits no pack after its prompt, is found here and not at
the step that meets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from rich.console import Console

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.config.checks import plays_game
from prism_lite.console import say, tracked
from prism_lite.data.formats.base import Finding
from prism_lite.data.stage_rows import describe_skipped
from prism_lite.data.task import TaskData, all_samples, without_samples
from prism_lite.discriminator.part_tokens import part_tokens
from prism_lite.models.backbone import Backbone, encode_samples
from prism_lite.parts import Parts
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
