"""Negatives beside the students: the teacher's parts of another prompt, and corrupted teacher parts.

Matching-aware negatives (arXiv 1605.05396) have the teacher's style, so that only content tells them from
the teacher. METHOD section 6.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from prism_lite.parts import Parts
from prism_lite.types import Sample

Corrupt = Callable[[Sample, Parts, Random], Parts | None]
_NUMBER = re.compile(r"\d+")


class StudentGroup(NamedTuple):
    """A prompt with its teacher completion, and the parts of some students."""

    sample: Sample
    students: tuple[Parts, ...]


def add_negatives(
    batch: Sequence[StudentGroup],
    rng: Random,
    *,
    mismatched_fraction: float,
    corrupted_fraction: float,
    corrupt: Corrupt,
    splits_parts: bool,
) -> tuple[list[StudentGroup], float]:
    """Replace some students by negatives made from the teachers' parts.

    Args:
        batch: the prompts of a step.
        mismatched_fraction, corrupted_fraction: chance of a student to be replaced by the teacher's parts
            of another prompt of the batch with other pictures, and by its own teacher's parts, corrupted.
            Where there are none the student stays.
        corrupt: returns parts with a wrong fact in caption and reasoning, or None.
        splits_parts: corrupt the caption or the reasoning, with equal chance, not both. For a reasoning
            part that is read with its caption, which would give it away.

    Returns:
        The prompts, and the share of the students that were replaced by corrupted parts.
    """
    result, num_corrupted = [], 0
    for group in batch:
        others = [
            other.sample.teacher_parts for other in batch if not share_picture(group, other.sample)
        ]
        others = [parts for parts in others if parts != group.sample.teacher_parts]
        students = []
        for student in group.students:
            chance, only_caption = rng.random(), rng.random() < 0.5
            negative = None
            if chance < mismatched_fraction:
                negative = rng.choice(others) if others else None
            elif chance < mismatched_fraction + corrupted_fraction:
                teacher = group.sample.teacher_parts
                negative = corrupt(group.sample, teacher, rng)
                if negative is not None and splits_parts:
                    negative = _one_part(teacher, negative, only_caption=only_caption)
                num_corrupted += negative is not None
            students.append(student if negative is None else negative)
        result.append(StudentGroup(group.sample, tuple(students)))
    return result, num_corrupted / sum(len(group.students) for group in batch)


def _one_part(clean: Parts, corrupted: Parts, *, only_caption: bool) -> Parts | None:
    """Return the clean parts with one part corrupted; None if that part is not different."""
    if only_caption:
        mixed = dataclasses.replace(clean, caption=corrupted.caption)
    else:
        mixed = dataclasses.replace(corrupted, caption=clean.caption)
    return None if mixed == clean else mixed


def share_picture(group: StudentGroup, sample: Sample) -> bool:
    """Check whether a row has a picture of a group's prompt; a row shares with itself."""
    ids = {picture.id for picture in group.sample.pictures}
    return group.sample is sample or any(picture.id in ids for picture in sample.pictures)


def corrupt_numbers(_sample: Sample, parts: Parts, rng: Random) -> Parts | None:
    """Change one digit of a number in the caption, and one in the think; None if neither has a number.

    For tasks that cannot verify: whatever the text says, its number was another one. Length and form
    stay the same.
    """
    caption, think = _with_other_digit(parts.caption, rng), _with_other_digit(parts.think, rng)
    if caption is None and think is None:
        return None
    return dataclasses.replace(
        parts,
        caption=parts.caption if caption is None else caption,
        think=parts.think if think is None else think,
    )


def _with_other_digit(text: str, rng: Random) -> str | None:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    number = rng.choice(numbers)
    at = rng.randrange(number.start(), number.end())
    is_leading = at == number.start() and len(number.group()) > 1
    digits = [digit for digit in "0123456789"[is_leading:] if digit != text[at]]
    return text[:at] + rng.choice(digits) + text[at + 1 :]
