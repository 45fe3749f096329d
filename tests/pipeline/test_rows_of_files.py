"""What a run makes of its data files: rows left out, rows too long, files that are gone."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from prism_lite import pipeline
from prism_lite.cli.trained import evaluate_run
from prism_lite.data import stage_rows
from prism_lite.data.checks import rules
from prism_lite.data.task import load_task
from prism_lite.deploy.chat import chat
from prism_lite.deploy.export import export_discriminator, export_merged
from prism_lite.files import read_jsonl
from prism_lite.stages.read_prompts import read_prompts
from tests.file_rows import completion, files_recipe, make_rows, write_rows
from tests.micro import quiet_console

LONG = "so " * 300


def printed(console) -> str:
    return " ".join(console.file.getvalue().split())


@pytest.fixture
def rows(tmp_path):
    return make_rows(tmp_path, 8)


@pytest.mark.parametrize(
    ("field", "settings", "message"),
    [
        ("demonstration", {}, r"with its demonstration \d+, .*shorten the demonstration"),
        ("teacher", {"align__method": "sft"}, r"with its teacher completion \d+"),
        ("teacher", {"align__method": "dpo"}, r"its teacher completion and a completion of"),
        ("teacher", {"discriminator__max_part_tokens": 2048}, r"with the parts of its teacher \d+"),
    ],
)
def test_a_completion_that_fits_no_pack_is_found_before_the_first_step(
    backbone, rows, tmp_path, field, settings, message
):
    rows[4][field] = completion("3,7", think=LONG)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    settings = {"model__max_pack_tokens": 700} | settings
    for on_bad_row in ("error", "skip"):
        config = files_recipe(path, data__on_bad_row=on_bad_row, **settings)
        backbone.config = config.model
        task, console = load_task(config), quiet_console()
        if on_bad_row == "error":
            with pytest.raises(ValueError, match=rf"rows\.jsonl, line 5: .*{message}"):
                read_prompts(config, backbone, task, console)
            continue
        read = read_prompts(config, backbone, task, console)
        assert [s.row for s in read.sft] == [1, 2, 3, 4, 6, 7, 8]
        assert [(r.row, r.kind) for r in read.skipped] == [(5, "too_long")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"a completion of sampling\.max_completion_tokens = 400 \d+"),
        ({"rlvr__steps": 0}, r"a completion of sampling\.max_completion_tokens = 400"),
        (
            {"align__steps": 0, "rlvr__steps": 0, "discriminator__reasoning_sees_caption": True},
            r"the longest parts of a completion \d+, .*lower discriminator\.max_part_tokens",
        ),
    ],
)
def test_prompts_that_leave_no_room_for_what_is_sampled(
    backbone, rows, tmp_path, settings, message
):
    config = files_recipe(
        write_rows(tmp_path / "rows.jsonl", rows),
        model__max_pack_tokens=450,
        sampling__max_completion_tokens=400,
        **settings,
    )
    backbone.config = config.model
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: .*with {message}"):
        read_prompts(config, backbone, load_task(config), quiet_console())


def test_every_skipped_row_is_named_and_none_left_is_an_error(rows, tmp_path):
    rows[1]["answer"] = ""
    rows[2]["prompt"] = "Is it? " * 400
    rows[3]["teacher"] = "<caption>a</caption>"
    rows[4]["answer"] = ""
    (tmp_path / "5.png").write_bytes(b"no picture")
    path, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    config = files_recipe(path, data__on_bad_row="skip", model__max_prompt_tokens=600)
    console = quiet_console()
    pipeline.run(config, out, stages=("sft",), console=console)
    lines = read_jsonl(out / "skipped.jsonl")
    assert {(line["file"], line["row"], line["kind"]) for line in lines} == {
        (str(path), 2, "empty_answer"),
        (str(path), 3, "too_long"),
        (str(path), 4, "malformed_teacher"),
        (str(path), 5, "empty_answer"),
        (str(path), 6, "unreadable_picture"),
    }
    assert all(line["message"].startswith("rows.jsonl, line ") for line in lines)
    text = printed(console)
    for skipped in ("1 unreadable_picture", "1 malformed_teacher", "2 empty_answer"):  # by stage
        assert f"({skipped}): rows.jsonl, line " in text
    assert "rows.jsonl, line 2: the answer is empty" in text

    rest = write_rows(
        tmp_path / "long.jsonl", [row | {"prompt": "Is it? " * 400} for row in rows[6:]]
    )
    short = files_recipe(rest, data__on_bad_row="skip", model__max_prompt_tokens=600)
    with pytest.raises(ValueError, match=r"stage sft has no rows.*2 rows were skipped.*line 1"):
        pipeline.run(short, tmp_path / "none", stages=("sft",), console=quiet_console())
    assert not (tmp_path / "none").exists()
    held = files_recipe(path, rest, data__on_bad_row="skip", model__max_prompt_tokens=600)
    with pytest.raises(ValueError, match=r"data\.heldout = .*long\.jsonl: every row was skipped"):
        pipeline.run(held, tmp_path / "none", stages=("sft",), console=quiet_console())


def test_a_finished_run_needs_its_training_file_no_more(tmp_path, micro_cache):
    train = write_rows(tmp_path / "train.jsonl", make_rows(tmp_path, 8))
    held = write_rows(tmp_path / "held.jsonl", make_rows(tmp_path, 2, "Is the last one a seven?"))
    run = tmp_path / "run"
    pipeline.run(files_recipe(train, held), run, stages=("sft",), console=quiet_console())
    train.unlink()
    assert chat(run, [tmp_path / "0.png"], "Is it?", max_tokens=2)
    record = export_merged(run, tmp_path / "merged", bound=10.0, console=quiet_console())
    assert record["num_completions"] == 2
    assert evaluate_run(run, console=quiet_console())["n"] == 2
    held.unlink()
    assert (
        evaluate_run(
            run, data=str(write_rows(held, make_rows(tmp_path, 3))), console=quiet_console()
        )["n"]
        == 3
    )


def test_the_discriminator_is_exported_without_the_data(micro_run, tmp_path, monkeypatch):
    _, folder, _, _ = micro_run

    def refuse(*_arguments, **_named):
        raise AssertionError("the data was read")

    monkeypatch.setattr("prism_lite.data.task.load_task", refuse)
    monkeypatch.setattr("prism_lite.deploy.export.load_task", refuse)
    out = export_discriminator(folder, tmp_path / "d", console=quiet_console())
    assert json.loads((out / "reward.json").read_text())["system_prompt"]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the pictures whose pixels were read."""
    rules._inspect_path.cache_clear()
    names: list[str] = []
    inspect = rules._inspect

    def noted(picture, decode_up_to):
        if decode_up_to:
            names.append(picture.id.rsplit("/", 1)[-1])
        return inspect(picture, decode_up_to)

    monkeypatch.setattr(rules, "_inspect", noted)
    return names


def test_a_file_is_read_once_and_its_pictures_decoded_once(rows, tmp_path, decoded, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    opened = []
    load = stage_rows.load_samples
    monkeypatch.setattr(
        stage_rows, "load_samples", lambda *a, **named: opened.append(a) or load(*a, **named)
    )
    config = files_recipe(path, path)
    stamps = tmp_path / "stamps"
    task = load_task(config, stamps=stamps)
    assert len(opened) == 1
    assert sorted(decoded) == [f"{i}.png" for i in range(8)]
    for stage in (task.align, task.rlvr, task.heldout):
        assert all(a is b for a, b in zip(stage, task.sft, strict=True))

    def again() -> list[str]:
        decoded.clear()
        rules._inspect_path.cache_clear()
        assert load_task(config, stamps=stamps).sft == task.sft
        return list(decoded)

    assert again() == []
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes() + b" ")
    assert "3.png" in again() and again() == []
    rules._inspect_path.cache_clear()
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"line 4: .*3\.png cannot be read"):
        load_task(config, stamps=stamps)


def test_a_file_shows_its_progress(rows, tmp_path):
    config = files_recipe(write_rows(tmp_path / "rows.jsonl", rows))
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=200, force_terminal=is_terminal)
        load_task(config, console=console)
        text = printed(console)
        assert is_terminal == ("reading " in text and "checking pictures of " in text), text
        assert is_terminal or not text, "a log has no progress bars"
