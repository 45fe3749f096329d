"""What is logged of the two sides' parts: lengths, form, and how many are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prism_lite.parts import Parts, num_bullets, num_steps

CUT_WARNING = 0.01  # share of cut parts above which a person is warned


def share_cut(lengths: Sequence[int], max_part_tokens: int) -> float:
    """Share of parts of these uncut lengths that are cut."""
    return sum(length > max_part_tokens for length in lengths) / len(lengths)


def cut_metrics(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> dict[str, float]:
    """Share of each side's parts that are cut, of their uncut lengths."""
    return {
        "disc/cut_teacher": share_cut(teacher, max_part_tokens),
        "disc/cut_student": share_cut(student, max_part_tokens),
    }


def about_cuts(
    teacher: Sequence[int], student: Sequence[int], max_part_tokens: int
) -> tuple[float, str]:
    """The larger side's share of cut parts, and one sentence about both and what would hold them."""
    shares = [share_cut(lengths, max_part_tokens) for lengths in (teacher, student)]
    enough = max(
        sorted(lengths)[math.ceil((1 - CUT_WARNING) * len(lengths)) - 1]
        for lengths in (teacher, student)
    )
    return max(shares), (
        f"{shares[0]:.1%} of the teacher's and {shares[1]:.1%} of the student's parts are longer than "
        f"discriminator.max_part_tokens = {max_part_tokens} and are judged without their end"
        + (
            f": where they are cut tells the sides apart without content. Set it to {enough}, which "
            f"holds {1 - CUT_WARNING:.0%} of them"
            if max(shares) > CUT_WARNING
            else ""
        )
    )


def form_metrics(teachers: Sequence[Parts], students: Sequence[Parts]) -> dict[str, float]:
    """Mean length in characters, bullets and steps of both sides: do they grow alike in form?"""
    metrics = {}
    for name, side in (("teacher", teachers), ("student", students)):
        measured = {
            "length": [len(parts.render()) for parts in side],
            "bullets": [num_bullets(parts.caption) for parts in side],
            "steps": [num_steps(parts.think) for parts in side],
        }
        metrics |= {f"form/{name}_{what}": sum(v) / len(v) for what, v in measured.items()}
    return metrics
