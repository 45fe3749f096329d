"""easy-VQA as files: what the answers settle, every row, the rates of errors, the verdicts."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageColor

from prism_lite.data.checks.check import check
from prism_lite.data.formats.load import load_samples
from prism_lite.data.task import load_task
from prism_lite.easy_vqa import wording
from prism_lite.easy_vqa.facts import COLORS, SHAPES, Seen, read_question, seen_in
from prism_lite.easy_vqa.rows import Item, Rates, are_ours, demonstration_rows, verify_sample
from prism_lite.parts import Parts, parse
from prism_lite.recipe import load_recipe
from tests.pipeline.commands import check_refused, in_process
from tests.unit.easy_vqa.conftest import FIXTURE, questions

# Read off the pictures by eye; picture 49 and test picture 10 are not settled by their questions.
TRAIN = {
    0: ("blue", "rectangle"),
    1: ("blue", "triangle"),
    2: ("red", "triangle"),
    3: ("brown", "rectangle"),
    347: ("black", "rectangle"),  # the shape by elimination
}
TEST = {
    0: ("red", "triangle"),
    1: ("yellow", "rectangle"),
    2: ("blue", "triangle"),
    220: ("yellow", "circle"),  # the shape by elimination
}
CAPTIONS = ("- a {0} {1}", "- shape: {1}\n- color: {0}", "- one {1}\n- it is {0}")


@pytest.fixture
def folder(package, tmp_path) -> Path:
    done = in_process("data", "easy-vqa", "--out", tmp_path / "easy")
    assert done.returncode == 0, done.stderr
    assert "train.jsonl: 48 rows on 5 pictures; 8 questions are left out" in done.stdout
    assert "heldout.jsonl: 38 rows on 4 pictures; 4 questions are left out" in done.stdout
    return tmp_path / "easy"


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def naive_answer(text: str, color: str, shape: str) -> str:
    """The answer by other means than the program's: the forms of the questions, spelled out."""
    if re.match("what (color is|is the color)", text):
        return color
    if text.startswith("what "):
        return shape
    (asked,) = set(text.rstrip("?").split()) & {*COLORS, *SHAPES}
    is_there = asked in (color, shape)
    negated = text.startswith("is no ") or " not " in text
    return "yes" if is_there is not negated else "no"


@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("test", TEST)])
def test_colors_and_shapes_are_those_of_the_pictures(split, expected):
    pairs: dict[int, list] = {}
    for text, answer, picture in questions(split):
        pairs.setdefault(picture, []).append((read_question(text), answer))
    seen = {picture: seen_in(of_picture) for picture, of_picture in pairs.items()}
    assert {picture: tuple(of) for picture, of in seen.items() if of} == expected
    assert sorted(set(seen) - set(expected)) == ([49] if split == "train" else [10])
    for picture, (color, _) in expected.items():
        with Image.open(FIXTURE / split / "images" / f"{picture}.png") as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        values, counts = np.unique(pixels, axis=0, return_counts=True)
        shape_rgb = values[counts.argsort()[-2]]  # the most common one is the ground's
        assert tuple(shape_rgb) == ImageColor.getrgb(color)


def test_answers_that_contradict_each_other_settle_nothing():
    pairs = [("what shape is present?", "circle"), ("what color is the shape?", "red")]
    assert seen_in((read_question(q), a) for q, a in pairs) == ("red", "circle")
    contradiction = [*pairs, ("is there a circle?", "no")]
    assert seen_in((read_question(q), a) for q, a in contradiction) is None
    with pytest.raises(ValueError, match="pip install easy-vqa==1"):
        read_question("how many shapes are there?")


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("heldout", "test")])
def test_every_row_is_a_public_question_with_its_answer_and_a_right_teacher(folder, name, split):
    expected = TRAIN if split == "train" else TEST
    public = {
        f"{name}-{number}": (text, answer, picture)
        for number, (text, answer, picture) in enumerate(questions(split))
        if picture in expected
    }
    rows = rows_of(folder / f"{name}.jsonl")
    assert sorted(row["id"] for row in rows) == sorted(public)
    assert [row["id"] for row in rows] != list(public), "in a random order"
    for row in rows:
        text, answer, picture = public[row["id"]]
        color, shape = expected[picture]
        teacher = parse(row.pop("teacher"))
        assert row == {
            "id": row["id"],
            "prompt": text,
            "images": f"pictures/{name}/{picture}.png",
            "answer": answer,
            "dataset": "easy-vqa",
            "kind": "other" if text.startswith("what") else "yes/no",
            "color": color,
            "shape": shape,
        }
        assert (folder / row["images"]).read_bytes() == (
            FIXTURE / split / "images" / f"{picture}.png"
        ).read_bytes()
        assert answer == naive_answer(text, color, shape)
        assert isinstance(teacher, Parts)
        assert teacher.caption in [style.format(color, shape) for style in CAPTIONS]
        assert teacher.answer == answer
        assert re.search(rf"\b({color}|{shape})\b", teacher.think)
        assert teacher.think.endswith(answer)


def test_a_row_in_full(package, folder):
    rows = {row["id"]: row for row in rows_of(folder / "train.jsonl")}
    assert rows["train-4"]["prompt"] == "is there a black shape?"
    assert parse(rows["train-4"]["teacher"]).think in (
        "asked for black, the color is blue, so no",
        "the color is blue, black is not there, so no",
    )
    assert parse(rows["train-5"]["teacher"]).think in (
        "asked for no gray, the color is blue, so yes",
        "the color is blue, gray is not there, the question says not, so yes",
    )
    assert parse(rows["train-1"]["teacher"]).think in (
        "the question asks for the color, it is blue",
        "the rectangle is blue, so the color is blue",
    )


def test_the_same_seed_writes_the_same_files_and_the_check_calls_them_clean(folder, tmp_path):
    again = in_process("data", "easy-vqa", "--out", tmp_path / "again")
    other = in_process("data", "easy-vqa", "--out", tmp_path / "other", "--seed", "1")
    assert again.returncode == other.returncode == 0
    for name in ("demonstrations", "train", "heldout"):
        text = (folder / f"{name}.jsonl").read_text()
        assert text == (tmp_path / "again" / f"{name}.jsonl").read_text()
        assert text != (tmp_path / "other" / f"{name}.jsonl").read_text()
        report = check(folder / f"{name}.jsonl")
        assert report.ok, report.findings
        assert report.num_rows == len(text.splitlines())
    overlap = check(folder / "heldout.jsonl", eval_path=str(folder / "train.jsonl"))
    assert overlap.ok


def many_items(num: int) -> list[Item]:
    rng = Random(0)
    texts = [text for text, _, _ in questions("train")]
    items = []
    for number in range(num):
        seen = Seen(rng.choice(COLORS), rng.choice(SHAPES))
        question = read_question(rng.choice(texts))
        items.append(Item(number, Path("0.png"), question, seen, question.answer(seen)))
    return items


MISREAD = {"triangle": "rectangle", "teal": "green", "gray": "black", "brown": "red"}


def test_demonstrations_err_at_the_stated_rates():
    """Four standard deviations of a binomial; the draw is seeded."""
    items, rates = many_items(6000), Rates(misread=0.9, slip=0.2)
    touched = misread = slipped = 0
    for item, row in zip(items, demonstration_rows(items, rates=rates, seed=0), strict=True):
        assert "answer" not in row and "teacher" not in row
        demonstration = parse(row["demonstration"])
        assert isinstance(demonstration, Parts)
        slipped += demonstration.answer != item.answer
        careless = item.seen.shape if item.question.asks == "color" else item.seen.color
        named = {*item.question.names} & {*(SHAPES if item.question.asks == "color" else COLORS)}
        if careless in MISREAD and not named:
            touched += 1
            misread += careless not in demonstration.caption
            assert (MISREAD[careless] in demonstration.caption) == (
                careless not in demonstration.caption
            )
        else:
            assert {item.seen.color, item.seen.shape} <= set(demonstration.caption.split())
    for count, num, rate in ((misread, touched, 0.9), (slipped, len(items), 0.2)):
        assert abs(count / num - rate) < 4 * math.sqrt(rate * (1 - rate) / num)
    clean = demonstration_rows(items, rates=Rates(0, 0), seed=0)
    for item, row in zip(items, clean, strict=True):
        verdicts = wording.verify(item.question, item.seen, parse(row["demonstration"]))
        assert verdicts.caption and verdicts.think and verdicts.answer


def test_no_answer_reveals_the_misreading():
    texts = [text for split in ("train", "test") for text, _, _ in questions(split)]
    changed = 0
    for text, color, shape in product(texts, COLORS, SHAPES):
        question, seen = read_question(text), Seen(color, shape)
        read = wording.misread(question, seen)
        assert question.answer(read) == question.answer(seen) == naive_answer(text, color, shape)
        changed += read != seen
    assert changed


@pytest.mark.parametrize(
    ("caption", "think", "answer", "expected"),
    [
        ("- a red circle", "the color is red, so yes", "yes", (True, True, True)),
        ("A Red circle on white.", "It is red.", "Yes.", (True, True, True)),
        ("- a red circle", "the color is red, so no", "no", (True, False, False)),
        ("- a blue circle", "the color is blue, red is not there", "no", (False, True, False)),
        ("- a blue circle", "the color is red, so yes", "yes", (False, False, True)),
        ("- a red circle and a blue one", "it is red", "yes", (False, False, True)),
        ("- something red", "it is red", "yes", (False, False, True)),
        ("- a red rectangle", "it is red and not a circle", "yes", (False, False, True)),
        ("- a red circle", "yes", "yes", (True, False, True)),
    ],
)
def test_each_part_is_judged_separately(caption, think, answer, expected):
    question, seen = read_question("is there a red shape?"), Seen("red", "circle")
    verdicts = wording.verify(question, seen, Parts(caption, think, answer))
    assert (verdicts.caption, verdicts.think, verdicts.answer) == expected


def test_a_slip_is_a_think_that_does_not_follow():
    rng = Random(1)
    for item in many_items(500):
        wrong = wording.slip(item.question, item.answer, rng)
        for styles in product(range(3), range(2)):
            parts = wording.compose(item.question, item.seen, wrong, *styles)
            verdicts = wording.verify(item.question, item.seen, parts)
            assert (verdicts.caption, verdicts.think, verdicts.answer) == (True, False, False)


def test_a_corrupted_text_has_one_other_color_or_shape_and_another_conclusion():
    rng, changed = Random(2), set()
    for item in many_items(300):
        for styles in product(range(3), range(2)):
            clean = wording.compose(item.question, item.seen, item.answer, *styles)
            wrong = wording.corrupt(item.question, clean, rng)
            assert wrong is not None
            pairs = [*zip(clean.caption.split(), wrong.caption.split(), strict=True)]
            ((before, after),) = [pair for pair in pairs if pair[0] != pair[1]]
            values = COLORS if before in COLORS else SHAPES
            assert {before, after} <= set(values)
            changed.add(len(values))
            assert wrong.think != clean.think
            assert wrong.think.startswith(clean.think.removesuffix(clean.answer))
            mixed = Parts(clean.caption, wrong.think, wrong.answer)
            verdicts = wording.verify(item.question, item.seen, mixed)
            assert (verdicts.caption, verdicts.think, verdicts.answer) == (True, False, False)
    assert changed == {len(COLORS), len(SHAPES)}
    question = read_question("is there a red shape?")
    for parts in (
        Parts("- a red circle and a blue one", "so yes", "yes"),
        Parts("- a red circle", "yes, it is there", "yes"),
        Parts("- a red circle", "so maybe", "maybe"),
    ):
        assert wording.corrupt(question, parts, rng) is None


def test_the_warm_up_of_the_files_has_corrupted_teachers(folder):
    settings = [f"data.{name}={folder}/train.jsonl" for name in ("train", "align", "rlvr")]
    settings += ["data.task=files", f"data.heldout={folder}/heldout.jsonl", "sft.steps=0"]
    task = load_task(load_recipe("tiny", settings))
    assert task.corrupt is not None
    sample = task.align[0]
    wrong = task.corrupt(sample, sample.teacher_parts, Random(0))
    assert wrong is not None
    assert not verify_sample(sample, wrong).caption


def test_rows_of_the_files_are_verified_and_others_are_not(folder):
    opened = load_samples(str(folder / "heldout.jsonl"))
    samples = [sample for _, sample in opened.rows()]
    assert are_ours(samples)
    for sample in samples:
        verdicts = verify_sample(sample, parse(sample.teacher))
        assert verdicts.caption and verdicts.think and verdicts.answer
    assert not are_ours([])


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    done = in_process("data", "easy-vqa", "--out", tmp_path / "easy")
    check_refused(done, "pip install easy-vqa")
    assert not (tmp_path / "easy" / "train.jsonl").exists()


@pytest.mark.parametrize("rate", ["1.5", "-0.1"])
def test_a_rate_outside_0_to_1_is_refused(rate, tmp_path, capsys):
    with pytest.raises(SystemExit):
        in_process("data", "easy-vqa", "--out", tmp_path, f"--slip_rate={rate}")
