"""The small files of a run folder when they are torn, foreign or damaged; the lock; control.json."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from prism_lite import files
from prism_lite.recipe import to_dict
from prism_lite.runs.changes import change_rows
from prism_lite.runs.checkpoint import Trained
from prism_lite.runs.environment import check_same_rewards, write_environment
from prism_lite.runs.folder import open_run
from prism_lite.runs.inputs import check_inputs, write_inputs
from prism_lite.runs.small_files import read_command, read_metrics, read_object, write_object
from prism_lite.types import Stopped
from tests.micro import micro_recipe, quiet_console

CONFIG = micro_recipe()
INPUTS = {"data.train": {"rows.jsonl": [5, 7, "ab"]}, "pictures": {"a.png": [5, 7, None]}}
LINE = {"stage": "sft", "step": 0, "time_s": 1.0, "loss": 2.0}


def printed(console) -> str:
    return " ".join(console.file.getvalue().split())


class Core:
    """What env.json needs of a model."""

    config, device, dtype = None, torch.device("cpu"), torch.float32


def small_run(folder: Path) -> Path:
    with open_run(folder, CONFIG, quiet_console()) as run:
        for step in range(4):
            run.log("sft", step, {"loss": 1.0 / (1 + step)})
        run.write_results(
            {"task": "digits", "n": 8, "seed": 0, "stages": {"base": {"accuracy": 0.5}}}
        )
        for stage in ("base", "sft"):
            run.write_rates(stage, {"accuracy": [0.0, 1.0]})
        write_environment(folder, CONFIG, Core())
        write_inputs(folder, INPUTS, [], run.console)
    return folder


def open_everything(folder: Path) -> str:
    """What a session reads when it starts and ends; returns what it printed."""
    console = quiet_console()
    with open_run(folder, CONFIG, console) as run:
        check_same_rewards(folder, CONFIG, [])
        check_inputs(folder, INPUTS, CONFIG, accept=False)
        write_inputs(folder, INPUTS, [], console)
        run.results()
        write_environment(folder, CONFIG, Core())
        run.restore("sft")
        run.check_stop("here")
        change_rows(folder, rlvr_start="align")
        run.log("sft", 9, {"loss": 0.1})
        assert run.metrics("sft")[-1]["step"] == 9
    return printed(console)


def test_the_first_file_is_config_yaml_and_the_lock_names_its_holder(tmp_path):
    folder = tmp_path / "r"
    with open_run(folder, CONFIG, quiet_console()):
        names = {p.name for p in folder.iterdir()}
        assert names == {"config.yaml", ".lock", "rollouts"}
        words = rf"another process is training in .*process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(ValueError, match=words),
            open_run(folder, CONFIG, quiet_console()),
        ):
            pass
    with open_run(folder, CONFIG, quiet_console()):
        pass


def test_a_lock_that_a_killed_process_left_is_free(tmp_path):
    folder = small_run(tmp_path / "r")
    (folder / ".lock").write_text('{"pid": 1, "host": "elsewhere"')
    open_everything(folder)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").touch()
    (tmp_path / "new" / ".config.yaml.tmp").write_text("recipe: ti")
    with open_run(tmp_path / "new", CONFIG, quiet_console()) as run:
        assert {p.name for p in run.path.iterdir()} == {"config.yaml", ".lock", "rollouts"}


def test_what_fails_before_anything_is_computed_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no such base"), open_run(
        tmp_path / "a" / "b", CONFIG, quiet_console()
    ):  # fmt: skip
        raise ValueError("no such base")
    assert not (tmp_path / "a").exists()


def test_other_settings_may_begin_where_a_kill_came_before_the_first_evaluation(tmp_path):
    with open_run(tmp_path / "r", CONFIG, quiet_console()):
        pass
    with open_run(tmp_path / "r", micro_recipe(seed=5), quiet_console()) as run:
        assert yaml.safe_load((run.path / "config.yaml").read_text())["seed"] == 5
        run.log("sft", 0, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"seed = 5, and now it is 6"), open_run(
        tmp_path / "r", micro_recipe(seed=6), quiet_console()
    ):  # fmt: skip
        pass


def test_a_run_of_an_earlier_edition_is_resumed_and_the_new_settings_are_named(tmp_path):
    folder = small_run(tmp_path / "r")
    settings = to_dict(CONFIG)
    del settings["save_minutes"], settings["model"]["min_pixels"], settings["sampling"]["top_p"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "did not have yet: model.min_pixels, sampling.top_p (defaults)" in open_everything(
        folder
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"sampling\.top_p = None, and now it is 0\.9"), open_run(
        folder, micro_recipe(sampling__top_p=0.9), quiet_console()
    ):  # fmt: skip
        pass


def test_damaged_lines_of_metrics_are_left_out_counted_and_said_once(tmp_path):
    folder = small_run(tmp_path / "r")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "sft", "st\n\0\0\0\0\n[1]\n"text"\n{"stage": 3, "step": 1}\n')
        file.write(b'{"stage": "sft", "step": 4, "loss": "low"}\n\xff\xfe\n')
        file.write(json.dumps(LINE | {"step": 5}).encode() + b'\n{"stage": "sft", "step": 6')
    text = open_everything(folder)
    assert "8 damaged or foreign lines are left out" in text
    assert "damaged" not in open_everything(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"\0" * 900, b"[" * 99999])
@pytest.mark.parametrize(
    "name", ["results.json", "env.json", "inputs.json", "evaluations/sft.json"]
)
def test_any_content_of_a_small_file_is_rebuilt(tmp_path, name, content):
    folder = small_run(tmp_path / "r")
    (folder / name).write_bytes(content)
    text = open_everything(folder)
    if name == "results.json":
        assert "results.json is damaged" in text and "the evaluations are repeated" in text
        assert (folder / "results.json.damaged").read_bytes() == content
        assert not (folder / "results.json").exists()
    if name == "env.json":
        assert json.loads((folder / "env.json").read_text())["seed"] == 0
    assert "damaged" not in open_everything(folder)


def test_a_kill_between_the_two_writes_of_a_file_is_no_damage(tmp_path):
    path = tmp_path / "results.json"
    write_object(path, {"a": 1})
    before = path.read_bytes()
    write_object(path, {"a": 2})
    path.write_bytes(before)
    assert read_object(path) == ({"a": 1}, "")
    (tmp_path / ".results.json.sha256").unlink()  # as earlier editions wrote it
    assert read_object(path) == ({"a": 1}, "")
    path.write_bytes(before.replace(b"1", b"3"))
    write_object(tmp_path / "other.json", {"a": 2})
    (tmp_path / "other.json").write_bytes(before)
    assert read_object(tmp_path / "other.json") == ({}, "it is not what was written")


FILES = [
    "metrics.jsonl", "results.json", ".results.json.sha256", "env.json", "config.yaml", "control.json",
    ".lock", "inputs.json", "evaluations/sft.json", "stages/sft/skipped_steps.jsonl", "stages/sft/LATEST",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_sixty_bit_flips_in_each_small_file(tmp_path, name, monkeypatch):
    """Each start ends with the run opened, or with one sentence that names the file or the setting."""
    monkeypatch.setattr(files.os, "fsync", lambda _descriptor: None)  # many files in little time
    folder = small_run(tmp_path / "r")
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "stages" / "sft" / "LATEST").write_text("checkpoint-2\n")
    (folder / "stages" / "sft" / "skipped_steps.jsonl").write_text('{"step": 3, "reason": "x"}\n')
    contents = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    control = folder / "control.json"
    contents[control] = b'{"command": "resume"}'
    content, rng = contents[folder / name], random.Random(name)
    for _ in range(60):
        for path, original in contents.items():
            path.write_bytes(original)
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(bytes(flipped))
        if name == "control.json":
            assert read_command(control)[0] in ("resume", None)
            continue
        try:
            open_everything(folder)
        except ValueError as error:
            assert name == "config.yaml", (bit, error)
            assert "config.yaml is damaged" in str(error) or "holds a run with" in str(error)


COMMANDS = [
    ('{"command": "stop"}', "stop"),
    ('{"command": "STOP"}', "stop"),
    ('{"Command": " Pause "}', "pause"),
    ('\ufeff{"command": "resume"}', "resume"),
    ('{"command": "stop", "by": "me", "at": [1]}', "stop"),
    ('{"command": "halt"}', None),
    ('{"command": 5}', None),
    ("[]", None),
    ("null", None),
    ('{"command": "st', None),
    ("", None),
]


@pytest.mark.parametrize(("text", "command"), COMMANDS)
def test_control_json_as_people_write_it(tmp_path, text, command):
    (tmp_path / "control.json").write_text(text, encoding="utf-8")
    assert read_command(tmp_path / "control.json")[0] == command


def test_a_command_that_is_not_known_is_said_once_and_ignored(tmp_path):
    console = quiet_console()
    with open_run(tmp_path / "r", CONFIG, console) as run:
        (run.path / "control.json").write_text('{"command": "halt"}')
        run.check_stop("here")
        run.check_stop("here")
        assert printed(console).count("control.json is ignored") == 1
        (run.path / "control.json").write_text('\ufeff{"COMMAND": "Stop"}', encoding="utf-8")
        with pytest.raises(Stopped):
            run.check_stop("here")


def test_a_checkpoint_is_saved_by_time_too(tmp_path):
    config = micro_recipe(save_every=100, save_minutes=0.3 / 60)
    with open_run(tmp_path / "r", config, quiet_console()) as run:
        for step in run.steps("sft", 0, 5, lambda: Trained({"policy": {"w": torch.ones(1)}})):
            if step in (1, 3):
                time.sleep(0.35)
        names = {p.name for p in run.stage("sft").glob("checkpoint-*")}
        assert names == {"checkpoint-2", "checkpoint-4"}


def test_a_foreign_line_while_a_run_writes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINE) + "\nprinted by somebody\n" + json.dumps(LINE) + "\n")
    assert read_metrics(path) == ([LINE, LINE], 1)


def test_a_full_disk_under_metrics_names_the_file(tmp_path):
    with open_run(tmp_path / "r", CONFIG, quiet_console()) as run:
        (run.path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
            run.log("sft", 0, {"loss": 1.0})


def test_no_folder_for_temporary_files_is_needed(tmp_path, monkeypatch, backbone):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    backbone.save_policy(str(tmp_path / "policy"))
    backbone.save_policy(str(tmp_path / "policy"))
    assert {p.name for p in tmp_path.iterdir()} == {"policy"}
    assert (tmp_path / "policy" / "adapter_model.safetensors").is_file()


WRITER = """
import sys, time
from prism_lite.output import lasting_output
with lasting_output():
    for _ in range(20):
        print("step " * 4000, flush=True)
        print("note " * 4000, file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("finished")
"""


@pytest.mark.parametrize("where", ["closed pipe", "full disk", "closed"])
def test_a_program_goes_on_when_its_output_cannot_be_written(tmp_path, where):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "done")]
    if where == "closed pipe":
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout and process.stderr
        process.stdout.close()
        process.stderr.close()
    elif where == "full disk":
        with open("/dev/full", "w") as full:
            process = subprocess.Popen(command, stdout=full, stderr=full)
    else:
        process = subprocess.Popen(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command])
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").read_text() == "finished"
