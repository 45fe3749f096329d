"""A file whose rows have teacher text and no demonstration: what is advised works."""

from __future__ import annotations

import re

import pytest
import yaml

from prism_lite.data.task import load_task
from tests.file_rows import completion, files_recipe, make_rows, write_rows


@pytest.mark.parametrize("names", [{}, {"prompt": "question", "teacher": "better"}])
def test_teacher_text_becomes_the_demonstration_with_the_setting_that_is_named(tmp_path, names):
    rows = make_rows(tmp_path, 8)
    for row in rows:
        del row["demonstration"]
        for ours, theirs in names.items():
            row[theirs] = row.pop(ours)
    train = write_rows(tmp_path / "train.jsonl", rows[:6])
    heldout = [{k: v for k, v in row.items() if k in ("images", "answer")} for row in rows[6:]]
    for row, whole in zip(heldout, rows[6:], strict=True):  # no teacher's column at all
        row[names.get("prompt", "prompt")] = whole[names.get("prompt", "prompt")]
    files = (train, write_rows(tmp_path / "heldout.jsonl", heldout))
    with pytest.raises(ValueError, match=r"no row has a demonstration") as raised:
        load_task(files_recipe(*files, data__columns=names))
    found = re.search(r"data\.columns='(\{.*?\})'", str(raised.value))
    assert found, raised.value
    task = load_task(files_recipe(*files, data__columns=yaml.safe_load(found[1])))
    assert [sample.demonstration for sample in task.sft] == [completion("2,7")] * 6
    assert all(sample.teacher == completion("2,7") for sample in task.align)
    assert [sample.answer for sample in task.heldout] == ["no", "no"]


def test_a_mistyped_column_is_still_an_error(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", make_rows(tmp_path, 4))
    columns = {"prompt": "prompt", "images": "images", "answer": "answer"}
    with pytest.raises(ValueError, match="no column 'anwser'"):
        load_task(files_recipe(train, data__columns=columns | {"answer": "anwser"}))
    with pytest.raises(ValueError, match="no row has a demonstration"):
        load_task(files_recipe(train, data__columns=columns | {"demonstration": "demo"}))
