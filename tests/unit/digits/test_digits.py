"""The embedded task: pictures, slips at their rates, verifiers that are exact."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from random import Random

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prism_lite import load_recipe
from prism_lite.config import DigitsConfig, RunConfig
from prism_lite.data.task import load_task
from prism_lite.digits import wording
from prism_lite.digits.lessons import make_lesson
from prism_lite.digits.task import (
    DIGIT_PIXELS,
    HELDOUT_FROM,
    corrupt,
    digit_images,
    make_samples,
    probe_pairs,
    strip_image,
)
from prism_lite.digits.wording import NUM_CAPTION_STYLES, NUM_THINK_STYLES, DigitsFacts
from prism_lite.parts import Parts, parse

CONFIG = DigitsConfig()
KINDS = tuple(wording.QUESTIONS)
MISREADINGS = {0: 2, 1: 3, 7: 9, 8: 7}  # of the issue that the default drift is about


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
            i
            for s in make_samples(CONFIG, split=split, kinds=KINDS, num=800, seed="x")
            for i in indices_of(s)
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
    for samples in (task.sft, task.align, task.rlvr, task.familiar):
        assert all(i < HELDOUT_FROM for s in samples for i in indices_of(s))
    for samples in (task.heldout, task.transfer, [pair.sample for pair in task.probe]):
        assert all(i >= HELDOUT_FROM for s in samples for i in indices_of(s))
    ids = [s.id for s in (*task.sft, *task.align, *task.rlvr, *task.heldout, *task.transfer)]
    assert len(set(ids)) == len(ids)
    trained_strips = {s.pictures[0].id for s in (*task.sft, *task.align, *task.rlvr)}
    assert not trained_strips & {s.pictures[0].id for s in task.familiar}


def test_kinds_are_set_for_sft_the_later_stages_and_transfer():
    task = load_task(RunConfig())
    kinds = {
        name: {sample.facts.kind for sample in getattr(task, name)}
        for name in ("sft", "align", "rlvr", "heldout", "familiar", "transfer")
    }
    assert kinds.pop("sft") == {"sum", "count", "compare"}
    assert kinds.pop("transfer") == {"sum"}
    assert all(of_name == {"count", "compare"} for of_name in kinds.values())
    without = load_task(load_recipe("tiny", ["data.digits.transfer_kinds=[]"]))
    assert without.transfer == ()


def test_seeds_draw_other_training_rows_and_the_same_heldout_rows():
    first, second = (load_task(dataclasses.replace(RunConfig(), seed=seed)) for seed in (0, 1))
    for name in ("sft", "align", "rlvr"):
        pictures = [[s.pictures[0].id for s in getattr(t, name)] for t in (first, second)]
        assert sum(a == b for a, b in zip(*pictures, strict=True)) < 5
    for name in ("heldout", "transfer", "familiar"):
        assert getattr(first, name) == getattr(second, name)


def test_a_strip_shows_its_digits():
    images, _ = digit_images()
    image = strip_image((3, 14, 15))
    assert image.size == (3 * DIGIT_PIXELS, DIGIT_PIXELS)
    pixels = np.asarray(image)[..., 0]
    for place, index in enumerate((3, 14, 15)):
        digit = pixels[::4, 32 * place : 32 * place + 32 : 4]
        assert np.array_equal(digit, np.minimum(images[index].astype(int) * 16, 255))


def test_samples_follow_their_name_and_split():
    first = make_samples(CONFIG, split="train", kinds=KINDS, num=20, seed="a")
    assert first == make_samples(CONFIG, split="train", kinds=KINDS, num=20, seed="a")
    assert first[:5] == make_samples(CONFIG, split="train", kinds=KINDS, num=5, seed="a")
    assert [s.teacher for s in first] != [
        s.teacher for s in make_samples(CONFIG, split="train", kinds=KINDS, num=20, seed="b")
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
    for sample in make_samples(CONFIG, split="train", kinds=KINDS, num=600, seed="gold"):
        digits = [int(labels[i]) for i in indices_of(sample)]
        facts = sample.facts
        assert facts.digits == tuple(digits)
        assert sample.answer == naive_answer(digits, facts.kind, facts.pivot)
        if facts.kind == "count":
            assert str(facts.pivot) in sample.question


def verdicts_of(config: DigitsConfig, source: str, num: int):
    for sample in make_samples(config, split="train", kinds=KINDS, num=num, seed="rates"):
        parts = parse(getattr(sample, source))
        assert isinstance(parts, Parts), sample
        yield wording.verify(sample.facts, parts)


def stated_digits(caption: str) -> tuple[int, ...]:
    return tuple(
        int(c) for c in caption.replace("five digits", "").replace("four", "") if c.isdigit()
    )


@pytest.mark.parametrize("source", ["demonstration", "teacher"])
def test_random_slips_come_at_the_stated_rates(source):
    """Four standard deviations of a binomial; the draw is seeded."""
    num, config = 4000, dataclasses.replace(CONFIG, drift="random")
    verdicts = list(verdicts_of(config, source, num))
    for name, rate in (
        ("caption", getattr(config, f"{source}_misread_rate")),
        ("think", getattr(config, f"{source}_slip_rate")),
    ):
        found = sum(not getattr(v, name) for v in verdicts) / num
        assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / num) + 1e-9, name


@pytest.mark.parametrize("drift", ["shared", "public"])
def test_systematic_misreading_comes_at_the_stated_rate(drift):
    config = dataclasses.replace(CONFIG, drift=drift)
    samples = make_samples(config, split="train", kinds=KINDS, num=4000, seed="rates")
    touched = [s for s in samples if set(s.facts.digits) & MISREADINGS.keys()]
    captions = [(s.facts.digits, stated_digits(parse(s.demonstration).caption)) for s in touched]
    misread = [
        tuple(MISREADINGS.get(d, d) for d in digits) == stated for digits, stated in captions
    ]
    right = [digits == stated for digits, stated in captions]
    assert all(a != b for a, b in zip(misread, right, strict=True)), "one or the other"
    rate, num = config.demonstration_misread_rate, len(touched)
    assert abs(sum(misread) / num - rate) < 4 * math.sqrt(rate * (1 - rate) / num)
    untouched = [s for s in samples if s not in touched]
    assert all(stated_digits(parse(s.demonstration).caption) == s.facts.digits for s in untouched)


def test_no_count_reveals_the_systematic_misreading():
    for digits in product(range(10), repeat=2):
        for pivot in range(3, 7):
            facts = DigitsFacts(digits, "count", pivot=pivot)
            read = wording.misread_all(digits)
            assert wording.steps(read, facts) == wording.steps(digits, facts)


@pytest.mark.parametrize("drift", ["shared", "public", "random"])
def test_only_the_shared_drift_is_in_the_lessons_about_pictures(drift):
    config, rng = dataclasses.replace(CONFIG, drift=drift), Random(5)
    _, labels = digit_images()
    misread, num_touched = 0, 0
    for _ in range(3000):
        lesson = make_lesson(config, rng)
        digits = tuple(int(labels[i]) for i in lesson.picture)
        reply = lesson.replies[0]
        if lesson.picture and reply.startswith("<caption>") and "</think>" not in reply:
            assert stated_digits(reply) == digits, "plain descriptions are right"
        elif not lesson.picture:
            given = stated_digits(lesson.question.splitlines()[-2])
            facts = facts_of(lesson.question, given)
            path = wording.steps(given, facts)
            renderings = [wording.think_text(given, facts, path, style) for style in range(2)]
            assert any(f"<think>{text}</think>" in reply for text in renderings)
        elif "</think>" in reply and set(digits) & MISREADINGS.keys():
            num_touched += 1
            misread += stated_digits(parse(reply).caption) != digits
    rate = config.demonstration_misread_rate if drift == "shared" else 0.0
    assert abs(misread / num_touched - rate) <= 4 * math.sqrt(rate * (1 - rate) / num_touched)


def facts_of(question: str, digits: tuple[int, ...]) -> DigitsFacts:
    for kind, text in wording.QUESTIONS.items():
        for pivot in range(3, 7):
            if question.endswith(text.format(pivot=pivot)):
                return DigitsFacts(digits, kind, pivot=pivot)
    raise AssertionError(question)


def test_reading_and_reasoning_slip_independently():
    config = dataclasses.replace(CONFIG, drift="random", demonstration_misread_rate=0.3)
    verdicts = list(verdicts_of(config, "demonstration", 4000))
    misread = [v for v in verdicts if not v.caption]
    slipped = sum(not v.think for v in misread) / len(misread)
    assert abs(slipped - config.demonstration_slip_rate) < 0.07


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


def clean_samples(num: int):
    """Samples with parts of the true digits and right steps, in every wording."""
    for sample in make_samples(CONFIG, split="heldout", kinds=KINDS, num=num, seed="probe"):
        digits, facts = sample.facts.digits, sample.facts
        style = num % 3, num % 2
        yield sample, wording.compose(digits, facts, wording.steps(digits, facts), *style)


def test_corrupt_makes_both_parts_wrong_and_keeps_the_wording():
    rng = Random(3)
    for sample, clean in clean_samples(400):
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


def test_corrupt_refuses_parts_that_are_not_clean():
    rng = Random(4)
    for sample, clean in clean_samples(20):
        wrong = corrupt(sample, clean, rng)
        assert corrupt(sample, dataclasses.replace(clean, caption=wrong.caption), rng) is None
        assert corrupt(sample, dataclasses.replace(clean, think=wrong.think), rng) is None


@pytest.mark.parametrize("drift", ["shared", "random"])
def test_the_probe_misreads_as_the_drift_does(drift):
    config = dataclasses.replace(CONFIG, drift=drift)
    pairs = probe_pairs(config, num=100, rng=Random(0))
    assert len(pairs) == 100
    for pair in pairs:
        digits = pair.sample.facts.digits
        assert wording.verify(pair.sample.facts, pair.clean) == wording.PartVerdicts(
            True, True, True
        )
        stated = stated_digits(pair.corrupted.caption)
        if drift == "shared":
            assert stated == tuple(MISREADINGS.get(d, d) for d in digits) != digits
        else:
            assert sum(a != b for a, b in zip(stated, digits, strict=True)) == 1


def strip_content(text: str) -> str:
    for word in ("not greater", "greater", "yes", "no"):
        text = text.replace(word, "?")
    return "".join("#" if c.isdigit() else c for c in text).replace("##", "#")
