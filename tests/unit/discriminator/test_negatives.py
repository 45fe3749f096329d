"""Negatives made from teachers' parts: how many, of which prompts, and what is wrong with them."""

from __future__ import annotations

import re
from random import Random

import pytest

from prism_lite.discriminator.negatives import StudentGroup, add_negatives, corrupt_numbers
from prism_lite.parts import Parts
from prism_lite.types import Picture, Sample, Turn

STUDENT = Parts("a student", "said so", "so")


def group(row: int, picture: str, num_students: int = 4) -> StudentGroup:
    # two digits of each differ from another row's, so that a corrupted one is not that
    teacher = Parts(f"- digits: {row}{row},7", f"first {row}{row},last 7,so no", "no")
    pictures = (Picture(picture, b""),)
    sample = Sample(f"r{row}", (Turn("user", "?"),), pictures, teacher=teacher.render())
    return StudentGroup(sample, (STUDENT,) * num_students)


def negatives_of(batch, seed=0, corrupt=corrupt_numbers, splits_parts=False, **fractions):
    fractions = {"mismatched_fraction": 0.0, "corrupted_fraction": 0.0} | fractions
    return add_negatives(
        batch, Random(seed), corrupt=corrupt, splits_parts=splits_parts, **fractions
    )


def test_without_fractions_the_students_stay():
    batch = [group(1, "a"), group(2, "b")]
    assert negatives_of(batch) == (batch, 0.0)


def test_the_shares_are_those_asked_for():
    batch = [group(row, f"p{row}", 50) for row in range(9)]
    result, corrupted = negatives_of(batch, mismatched_fraction=0.3, corrupted_fraction=0.25)
    teachers = {item.sample.teacher_parts for item in batch}
    students = [(item, student) for item in result for student in item.students]
    mismatched = [s in teachers for _, s in students]
    stayed = [s == STUDENT for _, s in students]
    assert sum(mismatched) / 450 == pytest.approx(0.3, abs=0.06)
    assert corrupted == pytest.approx(1 - (sum(mismatched) + sum(stayed)) / 450)
    assert corrupted == pytest.approx(0.25, abs=0.06)
    assert all(s != item.sample.teacher_parts for item, s in students)


def test_a_negative_of_another_prompt_has_another_picture():
    batch = [group(1, "a"), group(2, "a"), group(3, "b")]
    result, _ = negatives_of(batch, mismatched_fraction=1.0)
    own = [item.sample.teacher_parts for item in batch]
    assert set(result[0].students) == set(result[1].students) == {own[2]}
    assert set(result[2].students) <= {own[0], own[1]}
    alone, _ = negatives_of(batch[:2], mismatched_fraction=1.0)
    assert alone == batch[:2], "where there is no other picture the students stay"


@pytest.mark.parametrize("seed", range(20))
def test_corrupted_numbers_change_one_digit_in_caption_and_think(seed):
    clean = Parts("- 12 cars, 3 trees", "12 + 30 is 42", "42")
    wrong = corrupt_numbers(group(1, "a").sample, clean, Random(seed))
    assert wrong is not None and wrong.answer == clean.answer
    for before, after in ((clean.caption, wrong.caption), (clean.think, wrong.think)):
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1 and changed[0][1].isdigit()
        assert not re.search(r"\b0\d", after), "no leading zero"


def test_without_a_number_nothing_is_corrupted():
    sample = group(1, "a").sample
    assert corrupt_numbers(sample, Parts("a red car", "so it is red", "red"), Random(0)) is None
    wrong = corrupt_numbers(sample, Parts("a red car", "1 car", "1"), Random(0))
    assert wrong is not None and wrong.caption == "a red car" and wrong.think != "1 car"
    batch = [group(1, "a")]
    result, corrupted = negatives_of(batch, corrupted_fraction=1.0, corrupt=lambda *_: None)
    assert (result, corrupted) == (batch, 0.0)


def test_a_reasoning_that_is_read_with_its_caption_is_corrupted_alone():
    batch = [group(1, "a", 40)]
    (result,), corrupted = negatives_of(batch, corrupted_fraction=1.0, splits_parts=True)
    clean = batch[0].sample.teacher_parts
    wrong = [(s.caption != clean.caption, s.think != clean.think) for s in result.students]
    assert set(wrong) == {(True, False), (False, True)} and corrupted == 1.0
