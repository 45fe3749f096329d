"""Going back to a checkpoint; damaged results; output and temporary folders that fail during a training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml

from prism_lite import pipeline
from prism_lite.__main__ import _without_once
from prism_lite.files import read_jsonl
from prism_lite.recipe import to_dict
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.commands import REPOSITORY
from tests.pipeline.test_resume import check_same_as, truncate


def test_a_run_goes_back_to_a_checkpoint_and_ends_with_the_same_bytes(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    folder, console = tmp_path / "r", quiet_console()
    shutil.copytree(finished, folder)
    pipeline.run(config, folder, console=console, from_checkpoint="align:2")
    printed = " ".join(console.file.getvalue().split())
    assert "stage align resumes from step 2" in printed and "superseded-1" in printed
    check_same_as(finished, folder)
    moved = folder / "superseded-1"
    assert {str(p.relative_to(moved)) for p in moved.glob("*/*")} >= {
        "stages/align", "stages/rlvr", "evaluations/align.json", "evaluations/rlvr.json"
    }  # fmt: skip
    assert (moved / "stages" / "align" / "checkpoint-4").is_dir()
    assert (moved / "stages" / "align" / "final" / "policy.safetensors").is_file()
    lines = read_jsonl(folder / "metrics.jsonl")
    assert [m["step"] for m in lines if m["stage"] == "align" and "loss" in m] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("place", ["align:3", "align", "sft:", "nothing:2", "../sft:2", "align:-2"])
def test_a_place_that_is_not_there_is_refused(micro_run, tmp_path, place):
    config, finished, _, _ = micro_run
    shutil.copytree(finished, tmp_path / "r")
    with pytest.raises(ValueError, match=r"no such checkpoint\. It has sft:2, sft:4, warmup:2"):
        pipeline.run(config, tmp_path / "r", console=quiet_console(), from_checkpoint=place)
    truncate(tmp_path / "r" / "stages" / "sft" / "checkpoint-2" / "policy.safetensors")
    with pytest.raises(ValueError, match=r"sft:2: .*checkpoint-2 refused: torn"):
        pipeline.run(config, tmp_path / "r", console=quiet_console(), from_checkpoint="sft:2")
    assert not list((tmp_path / "r").glob("superseded*"))
    check_same_as(finished, tmp_path / "r")


def test_the_command_that_resumes_does_not_go_back_again():
    command = ["run", "--out", "r", "--from-checkpoint", "sft:2", "--accept-changed-inputs", "a=1"]
    assert _without_once(command) == ["run", "--out", "r", "a=1"]
    assert _without_once(["run", "--from-checkpoint=sft:2"]) == ["run"]


def test_results_that_are_torn_are_measured_again(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    folder, console = tmp_path / "r", quiet_console()
    shutil.copytree(finished, folder)
    truncate(folder / "results.json")
    pipeline.run(config, folder, console=console)
    assert "results.json is damaged" in " ".join(console.file.getvalue().split())
    check_same_as(finished, folder)


def test_a_run_needs_no_folder_for_temporary_files(micro_cache, tmp_path, monkeypatch):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    config = micro_recipe(
        sft__steps=1, warmup__steps=1, align__steps=1, rlvr__steps=1, eval__num_samples=1
    )
    pipeline.run(config, tmp_path / "r", console=quiet_console())
    assert (tmp_path / "r" / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("where", ["closed pipe", "full disk"])
def test_a_training_survives_its_output(micro_cache, tmp_path, where):
    config = micro_recipe(sft__steps=2, eval__stages=[])
    recipe = tmp_path / "micro.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    out = tmp_path / "r"
    command = [
        sys.executable,
        "-m",
        "prism_lite",
        "sft",
        "--recipe",
        str(recipe),
        "--out",
        str(out),
    ]
    options = {"cwd": REPOSITORY, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    if where == "closed pipe":
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.close()
    else:
        with open("/dev/full", "w") as full:
            process = subprocess.Popen(command, stdout=full, stderr=full, **options)
    assert process.wait(timeout=120) == 0
    assert (out / "stages" / "sft" / "final" / "policy.safetensors").is_file()
    assert json.loads((out / "env.json").read_text())["seed"] == 0
