"""Columns of public layouts, renamed, dropped and added at random: a check is never silently clean."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path
from typing import Any

import pytest
from data_conventions import CONVENTIONS
from data_rows import QUESTION, TRIPLE, png, write_jsonl

from prism_lite.data.checks.check import check
from prism_lite.data.formats.load import load_samples
from prism_lite.rewards.answers.choices import options_in
from prism_lite.rewards.answers.compare import compare_answers

NUM_CASES = int(os.environ.get("PRISM_FUZZ_LAYOUTS", "400"))
EMBEDDED = {"bytes": None, "base64": base64.b64encode(png()).decode()}
OPTIONS = ["low", "3", "tall"]
# Rows of one picture, of the gold "3" and, where the name says so, of options whose second is "3".
LAYOUTS: dict[str, dict[str, Any]] = {name: row for name, (row, *_) in CONVENTIONS.items()} | {
    "mc_geometry": {"problem": QUESTION, "choices": OPTIONS, "answer": "B", "image": "a.png"},
    "mc_scienceqa": {
        "image": EMBEDDED, "question": QUESTION, "choices": ["low", "tall", "wide"], "answer": 1,
        "hint": "Look.", "lecture": "Bars.", "solution": "It is tall, as one sees.",
    },
    "mc_aokvqa": {
        "image": EMBEDDED, "question_id": "q0", "question": QUESTION, "choices": OPTIONS,
        "correct_choice_idx": 1, "direct_answers": "['3','3','three']", "rationales": ["r"],
    },
    "mc_mmbench": {
        "index": 4, "question": QUESTION, "A": "low", "B": "3", "C": "tall", "answer": "B",
        "image": EMBEDDED["base64"], "hint": None, "category": "ocr",
    },
    "mc_mathvision": {
        "id": "0", "question": f"{QUESTION} <image1>", "options": OPTIONS, "image": "images/0.png",
        "decoded_image": EMBEDDED, "answer": "B", "solution": None, "level": 1,
    },
    "mc_video_r1": {
        "problem_id": 0, "problem": QUESTION, "data_type": "image", "options": ["A. low", "B. 3"],
        "solution": "<answer>B</answer>", "path": "./a.png", "process": "",
    },
    "docvqa": {
        "questionId": "0", "question": QUESTION, "image": EMBEDDED, "answers": ["3", "three"],
        "data_split": "val", "docId": 7,
    },
    "vqav2": {
        "question": QUESTION, "multiple_choice_answer": "3", "image": EMBEDDED, "answer_type": "number",
        "answers": [{"answer": "3", "answer_id": 1}],
    },
    "gsm": {"question": QUESTION, "answer": "1+2=<<1+2=3>>3\n#### 3", "image": "a.png"},
    "own": {"prompt": QUESTION, "images": ["a.png"], "answer": "3", "demonstration": TRIPLE},
}  # fmt: skip
OTHER_NAMES = ("zzz", "field_7", "Blob", "my_data", "spalte")
ADDED: dict[str, Any] = {
    "hint": "Look.", "Level": 3, "source": "a book", "tags": ["x", "y"], "meta": {"a": 1},
    "text": "INVOICE total 12", "num_images": 1, "url": "https://example.org/page", "split": "train",
}  # fmt: skip


def _spoil(rng: random.Random, row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return a row with columns renamed, dropped and added, and the names of those dropped."""
    row, dropped = dict(row), set()
    for _ in range(rng.randint(1, 3)):
        kind, name = rng.choice(("rename", "rename", "drop", "add")), rng.choice(sorted(row))
        if kind == "add":
            added = rng.choice(sorted(ADDED))
            row.setdefault(added, ADDED[added])
        elif kind == "drop" and len(row) > 2:
            del row[name]
            dropped.add(name)
        elif kind == "rename":
            other = rng.choice((*OTHER_NAMES, name.upper(), f"{name}s", f"my_{name}"))
            if other not in row:
                row[other] = row.pop(name)
    return row, dropped


def _holds_picture(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_picture, value.values()))
    if isinstance(value, list):
        return any(map(_holds_picture, value))
    return isinstance(value, str) and ("a.png" in value or value.startswith("iVBOR"))


def _lost(path: Path, row: dict[str, Any], layout: str) -> list[str]:
    """Return what the row holds and its sample does not."""
    (sample,) = load_samples(path)
    lost = []
    if _holds_picture(row) and not sample.pictures:
        lost.append("picture")
    has_options = any(value in (OPTIONS, ["A. low", "B. 3"]) for value in row.values())
    if has_options and not (sample.choices and options_in(sample.question)):
        lost.append("options")
    golds = [sample.answer, sample.teacher, sample.demonstration]
    if not any(golds):
        lost.append("gold")
    # Without options a letter cannot be told, but the pictures may show them: the check notes it.
    letter_noted = sample.answer == "B" and not has_options
    if sample.answer is not None and layout != "mc_scienceqa" and not letter_noted:
        choices = sample.choices if options_in(sample.question) else ()
        if not compare_answers("3", (sample.answer, *sample.accepted), choices=choices).matches:
            lost.append("right gold")
    return lost


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts_are_read(tmp_path, layout):
    (tmp_path / "a.png").write_bytes(png())
    path = write_jsonl(tmp_path / "x.jsonl", [LAYOUTS[layout]])
    report = check(path)
    assert report.ok, report.findings
    assert not _lost(path, LAYOUTS[layout], layout)
    (sample,) = load_samples(path)
    assert len(sample.pictures) == 1 and bool(sample.choices) == layout.startswith("mc_")


def test_enough_layouts():
    assert len(LAYOUTS) >= 20


def test_a_spoiled_layout_is_never_silently_clean(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rng, num_clean = random.Random(14), 0
    for _ in range(NUM_CASES):
        layout = rng.choice(sorted(LAYOUTS))
        row, _ = _spoil(rng, LAYOUTS[layout])
        path = write_jsonl(tmp_path / "x.jsonl", [row])
        if check(path).ok:
            num_clean += 1
            assert not _lost(path, row, layout), (layout, row)
    assert NUM_CASES / 10 < num_clean < NUM_CASES, "some are read, some are refused"
