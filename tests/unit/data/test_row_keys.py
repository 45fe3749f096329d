"""Rows of files that have the same name: nothing that is keyed by row may mix them up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from prism_lite.data.formats.load import load_samples
from prism_lite.data.task import load_task, without_samples
from prism_lite.parts import Parts
from prism_lite.stages.align import Replay
from prism_lite.stages.read_prompts import read_prompts
from prism_lite.stages.rollout_batch import _new_prompts
from prism_lite.types import Group, Rollout, Sample, Turn
from tests.file_rows import COLUMNS, files_recipe, make_rows, write_rows
from tests.micro import quiet_console

QUESTIONS = {"train": "Is the first digit greater?", "test": "Is the last digit a seven?"}
NUM_ROWS = 4


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """train/data.jsonl and test/data.jsonl: row by row the same place, another question."""
    files = [
        write_rows(tmp_path / name / "data.jsonl", make_rows(tmp_path / name, NUM_ROWS, question))
        for name, question in QUESTIONS.items()
    ]
    return files[0], files[1]


def test_prompts_of_two_files_of_one_name_are_their_own(backbone, two_files):
    config = files_recipe(*two_files)
    task = load_task(config)
    assert [s.source for s in task.heldout] == [s.source for s in task.sft], "the messages' places"
    task = read_prompts(config, backbone, task, quiet_console())
    for rows, question in ((task.sft, QUESTIONS["train"]), (task.heldout, QUESTIONS["test"])):
        assert len(rows) == NUM_ROWS
        for i, sample in enumerate(rows):
            prompt = backbone.prompt(sample)
            text = backbone.tokenizer.decode(prompt.token_ids_P)
            assert f"{question} ({i})" in text
            assert prompt.pictures == sample.pictures


def test_a_row_left_out_takes_no_row_of_another_file_with_it(backbone, two_files):
    config = files_recipe(*two_files, data__on_bad_row="skip", model__max_prompt_tokens=600)
    rows = make_rows(two_files[1].parent, NUM_ROWS, QUESTIONS["test"])
    rows[2]["prompt"] = "Is it? " * 400
    write_rows(two_files[1], rows)
    task = read_prompts(config, backbone, load_task(config), quiet_console())
    assert [s.row for s in task.heldout] == [1, 2, 4]
    assert [s.row for s in task.rlvr] == [1, 2, 3, 4]


def test_keys_in_memory_and_in_checkpoints(two_files):
    train, test = (tuple(load_samples(path, columns=COLUMNS)) for path in two_files)
    assert len({s.key for s in (*train, *test)}) == 2 * NUM_ROWS
    assert len(_new_prompts([*train, *test, *train], set())) == 2 * NUM_ROWS
    task = dataclasses.replace(load_task(files_recipe(*two_files)), sft=(*train, *test))
    kept = without_samples(task, {train[1].key})
    assert kept.sft == (train[0], *train[2:], *test)

    replay = Replay([*train, *test], num_prompts=10)
    replay.add([_group(train[2], "a"), _group(test[2], "b")])
    again = Replay([*train, *test], num_prompts=10)
    again.load(json.loads(json.dumps(replay.state())))
    assert [(sample.key, parts[0].caption) for sample, parts in again._kept] == [
        (train[2].key, "a"),
        (test[2].key, "b"),
    ]
    assert again._kept[1][0].question == f"<image>{QUESTIONS['test']} (2)"


def _group(sample: Sample, caption: str) -> Group:
    rollout = Rollout((1,), "", Parts(caption, "t", "no"), "end", torch.zeros(1), torch.zeros(1))
    return Group(sample, (rollout,))


def test_files_of_a_folder_and_samples_of_no_file(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"What is {name}?", "answer": "3"}])
    first, second = load_samples(tmp_path, columns={"prompt": "prompt", "answer": "answer"})
    assert first.id == second.id == "1" and first.key != second.key
    drawn = [Sample(i, (Turn("user", "?"),), source="digits train 0") for i in ("x", "y")]
    assert drawn[0].key != drawn[1].key
