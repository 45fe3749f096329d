"""All rows of a run read with the model's tokenizer, once, before anything is trained.

A prompt that is too long, or a completion that fits no pack behind its prompt, is found here and not at
the step that meets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.data.formats.base import Finding
from prism_lite.data.stage_rows import describe_skipped
from prism_lite.data.task import TaskData, all_samples, without_samples
from prism_lite.discriminator.part_tokens import part_tokens
from prism_lite.models.backbone import Backbone, encode_samples
from prism_lite.parts import Parts
from prism_lite.types import Sample

PICTURES_AT_ONCE = 256  # of the embedded task's small ones, through the vision tower
REWRITTEN_TOKENS = 8  # tags and line ends that a completion's parts may have more than it had


def read_prompts(
    config: RunConfig, backbone: Backbone, task: TaskData, console: Console
) -> TaskData:
    """Tokenise every row once before training, so that a bad one cannot stop a stage midway.

    The embedded task's small pictures are encoded too; real ones are encoded as they come.

    Returns:
        The task without the rows that were left out; they are added to its `skipped`.

    Raises:
        ValueError: a row is too long (where data.on_bad_row is "error"); names it.
    """
    samples = {sample.key: sample for sample in all_samples(task)}
    stages = _stages_of(config, task)
    bad: dict[str, Finding] = {}
    for key, sample in track(
        samples.items(), "reading prompts", total=len(samples), console=console, transient=True
    ):
        try:
            num_prompt_tokens = len(backbone.prompt(sample))
            for companion in _companions(config, backbone, sample, stages.get(key, ())):
                _check_room(sample, num_prompt_tokens, companion, backbone.config.max_pack_tokens)
        except ValueError as error:
            if config.data.on_bad_row == "error":
                raise
            bad[key] = Finding(sample.file, sample.row, "too_long", str(error))
    if bad:
        skipped = tuple(bad.values())
        console.print(describe_skipped(skipped), markup=False, highlight=False)
        task = without_samples(task, bad.keys())
        task = dataclasses.replace(task, skipped=(*task.skipped, *skipped))
    if config.data.task == "digits":
        kept = [sample for key, sample in samples.items() if key not in bad]
        starts = range(0, len(kept), PICTURES_AT_ONCE)
        for start in track(starts, "encoding pictures", console=console, transient=True):
            piece = kept[start : start + PICTURES_AT_ONCE]
            encode_samples(backbone, piece)
    return task


@dataclass(frozen=True)
class Companion:
    """What goes through one forward with a prompt, in some stage.

    Attributes:
        what: for the message.
        num_tokens: of all its branches.
        remedy: what else a person can change, beside model.max_pack_tokens and the row.
    """

    what: str
    num_tokens: int
    remedy: str


def _check_room(
    sample: Sample, num_prompt_tokens: int, companion: Companion, max_pack_tokens: int
) -> None:
    total = num_prompt_tokens + companion.num_tokens
    if total > max_pack_tokens:
        raise ValueError(
            f"{sample.source or sample.id}: the prompt has {num_prompt_tokens} tokens, with "
            f"{companion.what} {total}, more than model.max_pack_tokens = {max_pack_tokens}. Raise "
            f"that, {companion.remedy}, or drop the row."
        )


def _stages_of(config: RunConfig, task: TaskData) -> dict[str, set[str]]:
    """By row: the stages that forward a completion behind its prompt."""
    is_game = config.align.method == "adversarial"
    rows = {
        "sft": task.sft if config.sft.steps else (),
        "align": task.align if config.align.steps else (),
        "judged": (*task.align, *task.warmup, *(p.sample for p in task.probe)) if is_game else (),
        "rlvr": task.rlvr if config.rlvr.steps else (),
    }
    stages: dict[str, set[str]] = {}
    for stage, samples in rows.items():
        for sample in samples:
            stages.setdefault(sample.key, set()).add(stage)
    return stages


def _companions(
    config: RunConfig, backbone: Backbone, sample: Sample, stages: Collection[str]
) -> Iterator[Companion]:
    """What stands behind a row's prompt, in the largest units that a pack must hold."""
    limit = config.sampling.max_completion_tokens
    sampled = Companion(
        f"a completion of sampling.max_completion_tokens = {limit}",
        limit,
        "lower sampling.max_completion_tokens or model.max_pixels",
    )
    if "sft" in stages:
        num_tokens = len(backbone.tokenize(sample.demonstration or ""))
        yield Companion("its demonstration", num_tokens, "shorten the demonstration")
    if "rlvr" in stages or ("align" in stages and config.align.method == "adversarial"):
        yield sampled
    if "judged" in stages:
        yield from _judged(config, backbone, sample)
    elif "align" in stages:
        teacher = parts.parse(sample.teacher or "")
        num_tokens = len(backbone.tokenize(teacher.render())) if isinstance(teacher, Parts) else 0
        completion = Companion("its teacher completion", num_tokens, "shorten that completion")
        if config.align.method == "dpo":
            completion = Companion(
                f"{completion.what} and {sampled.what}", num_tokens + limit, sampled.remedy
            )
        yield completion


def _judged(config: RunConfig, backbone: Backbone, sample: Sample) -> Iterator[Companion]:
    """The two parts of a completion, as the discriminator reads them."""
    disc, remedy = config.discriminator, "lower discriminator.max_part_tokens"
    for side in ("teacher", "student"):
        found = parts.parse(getattr(sample, side) or "")
        if isinstance(found, Parts):
            num_tokens = part_tokens(backbone, disc, found).num_tokens
            yield Companion(f"the parts of its {side}", num_tokens, remedy)
    longest = 2 * disc.max_part_tokens
    if config.warmup.mismatched_fraction == 0:  # else the parts of any other row may come
        copies = 2 if disc.reasoning_sees_caption else 1
        sampled = copies * config.sampling.max_completion_tokens + REWRITTEN_TOKENS
        longest = min(longest, sampled)
    yield Companion("the longest parts of a completion", longest, remedy)


def _check_stages(config: RunConfig, out: Path, stages: Sequence[str], task: TaskData) -> None:
    """Refuse stages that lack rows or an earlier stage, before anything is loaded or trained."""
    needs = {
        "sft": (),
        "warmup": ("sft",),
        "align": ("sft", "warmup") if config.align.method == "adversarial" else ("sft",),
        "rlvr": (config.rlvr.start,),
    }
    if task.skipped and config.data.heldout and not task.heldout:
        raise ValueError(
            f"data.heldout = {config.data.heldout}: every row was skipped, one of them: "
            f"{task.skipped[-1].message}"
        )
    for number, stage in enumerate(stages):
        if (out / "stages" / stage / "final").is_dir():
            continue
        if stage != "sft" or config.sft.steps:
            _check_rows(stage, task)
        if stage == "align" and config.align.mode != "align":
            _check_answers(config, task)
        for earlier in needs[stage]:
            if earlier not in stages[:number] and not (out / "stages" / earlier / "final").is_dir():
                raise ValueError(
                    f"stage {stage} goes on from stage {earlier}, which is not finished in {out}: "
                    f"run `prism-lite {earlier}` there first, or `prism-lite run` for all stages."
                )


def _check_rows(stage: str, task: TaskData) -> None:
    rows, needed, key = {
        "sft": (task.sft, "demonstration", "data.train"),
        "warmup": (task.align, "teacher completion", "data.align"),
        "align": (task.align, "teacher completion", "data.align"),
        "rlvr": (task.rlvr, "answer", "data.rlvr"),
    }[stage]
    if not rows:
        left_out = (
            f" ({len(task.skipped)} rows were skipped, the first: {task.skipped[0].message})"
            if task.skipped
            else ""
        )
        raise ValueError(
            f"stage {stage} has no rows: none of the data has a {needed}{left_out}. Set {key}, or run "
            "the other stages by name (prism-lite sft, ...)."
        )


def _check_answers(config: RunConfig, task: TaskData) -> None:
    for sample in task.align:
        if not (sample.answer or "").strip():
            raise ValueError(
                f"{sample.source or sample.id}: no answer to verify, and align.mode = "
                f"{config.align.mode} verifies each rollout. Give every row of data.align an answer, "
                "or set align.mode=align."
            )
