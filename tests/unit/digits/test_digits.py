"""The embedded task: pictures, slips at their rates, verifiers that are exact."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from random import Random

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prism_lite.config import DigitsConfig, RunConfig
from prism_lite.data.task import load_task
from prism_lite.digits import wording
from prism_lite.digits.lessons import make_lesson
from prism_lite.digits.task import (
    DIGIT_PIXELS,
    HELDOUT_FROM,
    clean_teacher,
    corrupt,
    digit_images,
    make_samples,
    strip_image,
)
from prism_lite.digits.wording import NUM_CAPTION_STYLES, NUM_THINK_STYLES, DigitsFacts
from prism_lite.parts import Parts, parse

CONFIG = DigitsConfig()
KINDS = tuple(wording.QUESTIONS)


def indices_of(sample) -> list[int]:
    return [int(i) for picture in sample.pictures for i in picture.id.split("-")[1:]]


def test_the_pictures_are_those_of_scikit_learn():
    images, labels = digit_images()
    reference = load_digits()
    assert np.array_equal(images, reference.images)
    assert np.array_equal(labels, reference.target)


def test_train_and_heldout_pictures_are_disjoint():
    used = {
        split: {
            i for s in make_samples(CONFIG, split=split, num=800, seed="x") for i in indices_of(s)
        }
        for split in ("train", "heldout")
    }
    assert max(used["train"]) < HELDOUT_FROM <= min(used["heldout"])
    images, _ = digit_images()
    train = {images[i].tobytes() for i in range(HELDOUT_FROM)}
    shared = sum(images[i].tobytes() in train for i in range(HELDOUT_FROM, len(images)))
    assert shared == 0, "the same picture on both sides"
    rng = Random(0)
    lessons = [make_lesson(CONFIG, rng) for _ in range(500)]
    assert max(i for lesson in lessons for i in lesson.picture) < HELDOUT_FROM


def test_a_run_evaluates_and_probes_on_heldout_pictures_only():
    task = load_task(RunConfig())
    for samples in (task.sft, task.align, task.rlvr):
        assert all(i < HELDOUT_FROM for s in samples for i in indices_of(s))
    for samples in (task.heldout, [pair.sample for pair in task.probe]):
        assert all(i >= HELDOUT_FROM for s in samples for i in indices_of(s))
    ids = [s.id for s in (*task.sft, *task.align, *task.rlvr, *task.heldout)]
    assert len(set(ids)) == len(ids)


def test_a_strip_shows_its_digits():
    images, _ = digit_images()
    image = strip_image((3, 14, 15))
    assert image.size == (3 * DIGIT_PIXELS, DIGIT_PIXELS)
    pixels = np.asarray(image)[..., 0]
    for place, index in enumerate((3, 14, 15)):
        digit = pixels[::4, 32 * place : 32 * place + 32 : 4]
        assert np.array_equal(digit, np.minimum(images[index].astype(int) * 16, 255))


def test_samples_follow_their_name_and_split():
    first = make_samples(CONFIG, split="train", num=20, seed="a")
    assert first == make_samples(CONFIG, split="train", num=20, seed="a")
    assert first[:5] == make_samples(CONFIG, split="train", num=5, seed="a")
    assert [s.teacher for s in first] != [
        s.teacher for s in make_samples(CONFIG, split="train", num=20, seed="b")
    ]


def naive_answer(digits, kind, pivot) -> str:
    if kind == "compare":
        return "yes" if digits[0] > digits[-1] else "no"
    return str(
        {
            "sum": sum(digits),
            "largest": max(digits),
            "smallest": min(digits),
            "difference": max(digits) - min(digits),
            "count": len([d for d in digits if d > pivot]),
        }[kind]
    )


def test_gold_answers_are_right():
    _, labels = digit_images()
    for sample in make_samples(CONFIG, split="train", num=600, seed="gold"):
        digits = [int(labels[i]) for i in indices_of(sample)]
        facts = sample.facts
        assert facts.digits == tuple(digits)
        assert sample.answer == naive_answer(digits, facts.kind, facts.pivot)
        if facts.kind == "count":
            assert str(facts.pivot) in sample.question


def verdicts_of(config: DigitsConfig, source: str, num: int):
    for sample in make_samples(config, split="train", num=num, seed="rates"):
        parts = parse(getattr(sample, source))
        assert isinstance(parts, Parts), sample
        yield wording.verify(sample.facts, parts)


@pytest.mark.parametrize("source", ["demonstration", "teacher"])
def test_slips_come_at_the_stated_rates(source):
    """Four standard deviations of a binomial; the draw is seeded."""
    num = 4000
    verdicts = list(verdicts_of(CONFIG, source, num))
    for name, rate in (
        ("caption", getattr(CONFIG, f"{source}_misread_rate")),
        ("think", getattr(CONFIG, f"{source}_slip_rate")),
    ):
        found = sum(not getattr(v, name) for v in verdicts) / num
        assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / num) + 1e-9, name


def test_reading_and_reasoning_slip_independently():
    verdicts = list(verdicts_of(CONFIG, "demonstration", 4000))
    misread = [v for v in verdicts if not v.caption]
    slipped = sum(not v.think for v in misread) / len(misread)
    assert abs(slipped - CONFIG.demonstration_slip_rate) < 0.07


def test_without_slips_everything_is_right():
    clean = dataclasses.replace(CONFIG, teacher_misread_rate=0.0, teacher_slip_rate=0.0)
    assert all(v.caption and v.think and v.answer for v in verdicts_of(clean, "teacher", 800))


def all_facts():
    """Every kind with digits that tie, carry, lie on the pivot, and lengths from 2 to 4."""
    rows = [(0, 0), (9, 9, 9), (5, 3), (3, 5), (6, 6, 1), (0, 9, 0, 9), (4, 5, 6), (1, 2, 3, 4)]
    return [DigitsFacts(d, k, pivot=p) for d, k, p in product(rows, KINDS, (3, 5, 6))]


@pytest.mark.parametrize("facts", all_facts(), ids=str)
def test_every_wording_of_the_truth_is_right(facts):
    path = wording.steps(facts.digits, facts)
    for styles in product(range(NUM_CAPTION_STYLES), range(NUM_THINK_STYLES)):
        parts = wording.compose(facts.digits, facts, path, *styles)
        assert parse(parts.render()) == parts
        verdict = wording.verify(facts, parts)
        assert verdict.caption and verdict.think and verdict.answer
        assert parts.answer == naive_answer(facts.digits, facts.kind, facts.pivot)


@pytest.mark.parametrize("facts", all_facts(), ids=str)
def test_a_misreading_is_a_wrong_caption_with_valid_reasoning(facts):
    rng = Random(1)
    for style in range(NUM_CAPTION_STYLES):
        seen = wording.misread(facts.digits, rng)
        assert sum(a != b for a, b in zip(seen, facts.digits, strict=True)) == 1
        parts = wording.compose(seen, facts, wording.steps(seen, facts), style, 0)
        verdict = wording.verify(facts, parts)
        assert not verdict.caption and verdict.think
        right = naive_answer(facts.digits, facts.kind, facts.pivot)
        assert verdict.answer == (parts.answer == right)


@pytest.mark.parametrize("facts", all_facts(), ids=str)
def test_a_slip_is_an_invalid_think_under_a_right_caption(facts):
    rng = Random(2)
    path = wording.steps(facts.digits, facts)
    for style, _ in product(range(NUM_THINK_STYLES), range(6)):
        wrong = wording.slip(facts.digits, facts, path, rng)
        parts = wording.compose(facts.digits, facts, wrong, 0, style)
        verdict = wording.verify(facts, parts)
        assert verdict.caption and not verdict.think, parts
        assert isinstance(parse(parts.render()), Parts)


def test_verifiers_want_the_exact_wording():
    facts = DigitsFacts((3, 7), "compare")
    good = Parts("- digits: 3,7", "first 3,last 7,so no", "no")
    assert wording.verify(facts, good) == wording.PartVerdicts(True, True, True)
    for changed, expected in (
        ({"caption": "- digits: 3, 7"}, (False, False, True)),
        ({"caption": "digits 3,7"}, (False, False, True)),
        ({"caption": "- digits: 7,3"}, (False, False, True)),
        ({"caption": "- digits: 3,7,1"}, (False, False, True)),
        ({"caption": "- three digits\n- left to right 3,7"}, (False, False, True)),
        ({"think": "first 3,last 7,so yes"}, (True, False, True)),
        ({"think": "first 7,last 3,so no"}, (True, False, True)),
        ({"think": "no"}, (True, False, True)),
        ({"answer": "yes"}, (True, False, False)),
        ({"answer": "No"}, (True, False, False)),
    ):
        verdict = wording.verify(facts, dataclasses.replace(good, **changed))
        assert (verdict.caption, verdict.think, verdict.answer) == expected, changed


def test_corrupt_makes_both_parts_wrong_and_keeps_the_wording():
    rng = Random(3)
    for sample in make_samples(CONFIG, split="heldout", num=400, seed="probe"):
        clean = clean_teacher(sample, rng)
        assert wording.verify(sample.facts, clean) == wording.PartVerdicts(True, True, True)
        wrong = corrupt(sample, clean, rng)
        assert wrong.caption != clean.caption and wrong.think != clean.think
        assert not wording.verify(sample.facts, wrong).caption
        alone = dataclasses.replace(clean, think=wrong.think, answer=wrong.answer)
        assert not wording.verify(sample.facts, alone).think
        # wording: without digits and verdicts the texts are the same
        assert strip_content(wrong.caption) == strip_content(clean.caption)
        assert strip_content(wrong.think) == strip_content(clean.think)
        changed = sum(a != b for a, b in zip(wrong.caption, clean.caption, strict=True))
        assert changed == 1, "one digit misread"


def strip_content(text: str) -> str:
    for word in ("not greater", "greater", "yes", "no"):
        text = text.replace(word, "?")
    return "".join("#" if c.isdigit() else c for c in text).replace("##", "#")
