"""Rows with several teacher completions: read, checked, and used in turn."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from prism_lite.data.checks.check import check
from prism_lite.data.checks.keys import conversation_key, row_key
from prism_lite.data.formats.load import load_samples
from prism_lite.seeding import batch_at, samples_at
from prism_lite.types import Sample, Turn

TEXTS = [
    f"<caption>- {i} dots</caption>\n<think>so {i}</think>\n<answer>1</answer>" for i in range(3)
]


def sample_of(tmp_path, **fields) -> Sample:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "How many?", "answer": "1"} | fields) + "\n")
    (sample,) = load_samples(path)
    return sample


def test_a_list_is_read(tmp_path):
    sample = sample_of(tmp_path, teacher=TEXTS)
    assert sample.teachers == tuple(TEXTS) and sample.teacher == TEXTS[0]
    assert sample_of(tmp_path, teacher=TEXTS[:1]).other_teachers == ()
    assert sample_of(tmp_path, teacher=TEXTS[1]).teachers == (TEXTS[1],)
    assert sample_of(tmp_path, teacher=[], demonstration=TEXTS[0]).teachers == ()
    foreign = TEXTS[1].replace("caption", "DESCRIPTION").replace("think", "REASONING")
    assert sample_of(tmp_path, teacher=[TEXTS[0], foreign]).teachers == tuple(TEXTS[:2])
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = [["prompt", "answer", "teacher"], ["How many?", "1", json.dumps(TEXTS)]]
        csv.writer(file).writerows(table)
    (sample,) = load_samples(tmp_path / "rows.csv")
    assert sample.teachers == tuple(TEXTS)


@pytest.mark.parametrize("name", ["teacher", "student", "demonstration"])
def test_what_is_not_text_is_named(tmp_path, name):
    for value in ([3], {"a": TEXTS[0]}, 7, [TEXTS[0], None] if name == "student" else [[TEXTS[0]]]):
        with pytest.raises(ValueError, match=rf"line 1: {name} is a \w+; expected text"):
            sample_of(tmp_path, **{name: value})


def test_every_one_is_checked(tmp_path):
    bad = [TEXTS[0], TEXTS[1].replace("</think>", ""), TEXTS[2].replace(">1<", ">2<"), "<image>"]
    for texts, kinds in (
        (TEXTS, []),
        (bad[:2], ["malformed_teacher"]),
        ([bad[0], bad[2]], ["wrong_teacher"]),
        ([bad[0], bad[0].replace("dots", "dots <|im_end|>")], ["special_token"]),
        ([bad[0], bad[0].replace("dots", "<image>")], ["mark_in_completion"]),
    ):
        sample_of(tmp_path, teacher=texts)
        report = check(tmp_path / "rows.jsonl")
        assert [finding.kind for finding in report.findings] == kinds
    sample_of(tmp_path, teacher=TEXTS)
    shown = check(tmp_path / "rows.jsonl").first_sample
    assert "first row of align, rlvr" in shown and "[teacher 3] <caption>- 2 dots" in shown


def test_each_epoch_has_the_next_one():
    rows = [
        Sample(
            f"{i}", (Turn("user", "?"),), teacher=TEXTS[0], other_teachers=tuple(TEXTS[1 : i + 1])
        )
        for i in range(3)
    ]  # one, two and three teachers
    steps = [samples_at(rows, step, 4, 0, "align") for step in range(9)]  # 36 rows: 12 epochs
    plain = [batch_at(rows, step, 4, 0, "align") for step in range(9)]
    assert [[s.id for s in step] for step in steps] == [[s.id for s in step] for step in plain]
    counts = Counter((s.id, s.teacher) for step in steps for s in step)
    assert counts == {
        ("0", TEXTS[0]): 12,
        **{("1", text): 6 for text in TEXTS[:2]},
        **{("2", text): 4 for text in TEXTS},
    }
    assert all(
        sorted(s.teachers) == sorted(rows[int(s.id)].teachers) for step in steps for s in step
    )
    assert steps[5] == samples_at(rows, 5, 4, 0, "align"), "of the step alone: a resumed run agrees"
    assert rows[0].with_teacher(5) is rows[0] and rows[2].with_teacher(3) == rows[2]
    assert rows[2].with_teacher(4).teacher_parts.caption == "- 1 dots"


def test_keys(tmp_path):
    one, two = (sample_of(tmp_path, teacher=TEXTS[:n]) for n in (1, 2))
    assert row_key(one) != row_key(two) and conversation_key(one) == conversation_key(two)
