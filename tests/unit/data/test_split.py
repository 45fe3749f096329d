"""Rows kept aside share no picture with the others."""

from __future__ import annotations

from random import Random

import pytest

from prism_lite.data.split import picture_ids, split_by_picture
from prism_lite.data.task import load_task
from prism_lite.types import Picture, Sample, Turn
from tests.file_rows import completion, files_recipe, make_rows, write_rows


def rows(*pictures: str) -> list[Sample]:
    """One row for each text, with a picture for each of its letters."""
    turns = (Turn("user", "?"),)
    return [
        Sample(str(row), turns, tuple(Picture(name, b"") for name in names))
        for row, names in enumerate(pictures)
    ]


def test_the_last_rows_are_kept_aside_with_all_that_share_their_pictures():
    assert split_by_picture(rows("a", "b", "c", "d"), 2) == ([0, 1], [2, 3])
    assert split_by_picture(rows("a", "b", "a", "c"), 2) == ([0, 2], [1, 3])
    assert split_by_picture(rows("a", "b", "a"), 2) == ([1], [0, 2])
    # connected through a row with two pictures: too many, so others are taken
    assert split_by_picture(rows("a", "bc", "b", "c"), 2) == ([1, 2, 3], [0])
    assert split_by_picture(rows("a", "a", "a"), 2) == ([0, 1, 2], [])
    assert split_by_picture(rows("", "", "a"), 2) == ([0], [1, 2])
    assert split_by_picture([], 2) == ([], [])


@pytest.mark.parametrize("seed", range(20))
def test_no_picture_is_on_both_sides(seed):
    rng = Random(seed)
    samples = rows(*("".join(rng.sample("abcdefghijklmnop", rng.randint(0, 2))) for _ in range(15)))
    kept, aside = split_by_picture(samples, 5)
    assert sorted(kept + aside) == list(range(15)) and len(aside) <= 5
    assert not picture_ids([samples[i] for i in kept]) & picture_ids([samples[i] for i in aside])


def test_the_probe_of_files_shares_no_picture_with_rows_of_the_discriminator(tmp_path):
    """Forty rows, each picture in two of them and in two recorded pairs."""
    stored = make_rows(tmp_path, 40)
    for i, row in enumerate(stored):
        row |= {"images": f"{i % 20}.png", "teacher": completion(f"{i // 10},{i % 10}")}
        row["student"] = completion("8,8")
    path = write_rows(tmp_path / "rows.jsonl", stored)
    columns = {name: name for name in ("prompt", "images", "answer", "demonstration", "teacher")}
    columns["student"] = "student"
    config = files_recipe(path, data__warmup=str(path), data__columns=columns, warmup__num_probe=4)
    task = load_task(config)
    probed = picture_ids([pair.sample for pair in task.probe])
    assert len(task.probe) == 4 and len(probed) == 2
    assert (len(task.align), len(task.warmup)) == (36, 36)
    assert not probed & (picture_ids(task.align) | picture_ids(task.warmup))
    other_pictures = {
        sample.teacher_parts: picture_ids([sample]) for sample in (p.sample for p in task.probe)
    }
    for pair in task.probe:
        assert not other_pictures[pair.corrupted] & picture_ids([pair.sample])
