"""The groups of the warm-up: the SFT policy's answers, or recorded ones; those kept out of training."""

from __future__ import annotations

from collections.abc import Sequence

from prism_lite.console import say
from prism_lite.data.split import split_by_picture
from prism_lite.discriminator.negatives import StudentGroup
from prism_lite.runs.retry import repeat_with
from prism_lite.sampling.many_prompts import sample_in_pieces
from prism_lite.seeding import epoch_order
from prism_lite.stages.context import Context
from prism_lite.types import Sample

FEWEST_PROMPTS = 4  # of the warm-up
_MIN_HELDOUT, _MAX_HELDOUT = 16, 64  # prompts kept out of training; a tenth in between


def student_groups(context: Context) -> list[StudentGroup]:
    """Return the recorded students by prompt, or let the SFT policy answer prompts of alignment.

    The prompts are the last ones of alignment's first epoch: in its first steps the discriminator then
    judges prompts that it was not trained on, unless alignment uses all of them.

    Raises:
        ValueError: a completion of the data is malformed, or too few samples are well-formed.
    """
    config, task = context.config, context.task
    if task.warmup:
        groups = _recorded_groups(task.warmup, config.warmup.group_size)
        say(
            context.run.console,
            f"warm-up on {len(task.warmup)} recorded pairs of {len(groups)} groups",
        )
        return groups
    order = epoch_order(len(task.align), 0, config.seed, "align")
    samples = [task.align[row] for row in order[-config.warmup.num_prompts :]]
    sampled = sample_in_pieces(
        context.backbone,
        samples,
        with_progress=context.run.with_progress,
        description="sampling the SFT policy",
        group_size=config.warmup.group_size,
        sampling=config.sampling,
        seed=(config.seed, "warmup"),
    )
    answered = [group for group in sampled if group.students]
    groups = [
        StudentGroup(group.sample.with_teacher(number), group.students)
        for group in answered
        for number in range(len(group.sample.teachers))
    ]
    if len(answered) < FEWEST_PROMPTS:
        num_samples = len(samples) * config.warmup.group_size
        num_well_formed = sum(len(group.students) for group in answered)
        raise ValueError(
            f"only {num_well_formed} of {num_samples} samples of the SFT policy are well-formed. "
            f"SFT is finished here and cannot be prolonged: {_longer_sft(context, num_well_formed)}"
        )
    return groups


def _longer_sft(context: Context, num_well_formed: int) -> str:
    """Say how to repeat SFT so that the policy learns the format, and not by doubling it many times."""
    config = context.config
    if config.recipe == config.model.name == "tiny" and config.data.task == "files":
        return (
            "repeat with --recipe tiny-files in another run folder. Its SFT is longer and has a higher "
            "learning rate, as the tiny model knows only the words of the embedded task."
        )
    factor = "*2" if num_well_formed else "*4"
    command = repeat_with(context.run, {"sft.steps": factor})
    return f"repeat with more sft.steps (now {config.sft.steps}){command}"


def _recorded_groups(samples: Sequence[Sample], group_size: int) -> list[StudentGroup]:
    """Group recorded students of the same prompt and teacher, at most `group_size` each."""
    rows: dict[object, list[Sample]] = {}
    for sample in samples:
        pictures = tuple(picture.id for picture in sample.pictures)
        rows.setdefault((sample.turns, pictures, sample.teacher), []).append(sample)
    return [
        StudentGroup(same[0], tuple(s.student_parts for s in same[start : start + group_size]))
        for same in rows.values()
        for start in range(0, len(same), group_size)
    ]


def split_groups(groups: Sequence[StudentGroup]) -> tuple[list[StudentGroup], list[StudentGroup]]:
    """Return the groups to train on and those kept out, a tenth or so, without a common picture."""
    num_heldout = min(max(_MIN_HELDOUT, len(groups) // 10), _MAX_HELDOUT, len(groups) // 3)
    kept, aside = split_by_picture([group.sample for group in groups], num_heldout)
    return [groups[i] for i in kept], [groups[i] for i in aside]


def num_students(groups: Sequence[StudentGroup]) -> int:
    return sum(len(group.students) for group in groups)
