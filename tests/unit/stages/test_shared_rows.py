"""Held-out rows that are trained on: the alarm names a command that works."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from prism_lite.__main__ import main
from prism_lite.data.task import load_task
from prism_lite.stages.preflight import warn_of_shared_rows
from tests.file_rows import files_recipe, make_rows, write_rows
from tests.micro import quiet_console


@pytest.fixture
def rows(tmp_path):
    return make_rows(tmp_path, 20)


def alarm_of(train, heldout) -> str:
    config, console = files_recipe(train, heldout), quiet_console()
    warn_of_shared_rows(config, load_task(config), console)
    return console.file.getvalue()


def test_other_rows_raise_no_alarm(rows, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", rows[:15])
    assert alarm_of(train, write_rows(tmp_path / "heldout.jsonl", rows[15:])) == ""


def test_the_same_file_is_parted_by_the_named_command(rows, tmp_path):
    file = write_rows(tmp_path / "my rows.jsonl", rows)
    alarm = alarm_of(file, file)
    assert alarm.startswith("alarm shared_rows: 20 of 20 held-out questions are also trained on")
    subprocess.run(["sh", "-c", alarm.partition("another --out: ")[2]], check=True)
    parts = [tmp_path / f"my rows-{end}.jsonl" for end in ("train", "heldout")]
    assert [len(part.read_text().splitlines()) for part in parts] == [18, 2]
    assert alarm_of(*parts) == ""


def test_shared_rows_are_left_out_by_the_named_command(rows, tmp_path, monkeypatch, capsys):
    train = write_rows(tmp_path / "train.jsonl", rows)
    heldout = write_rows(tmp_path / "heldout.jsonl", rows[:3])
    alarm = alarm_of(train, heldout)
    assert "3 of 3 held-out questions" in alarm
    program, *words = shlex.split(alarm.partition("another --out: ")[2])
    assert program == "prism-lite"
    monkeypatch.chdir(tmp_path)
    main(words)
    assert "3 rejected rows" in capsys.readouterr().out
    assert alarm_of(tmp_path / "train-train.jsonl", heldout) == ""
