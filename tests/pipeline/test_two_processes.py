"""Two processes against one: the same losses and adapters, per stage and for the whole pipeline."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.__main__ import main
from prism_lite.files import read_jsonl
from prism_lite.models import optim
from prism_lite.recipe import to_dict
from tests.micro import micro_recipe, quiet_console
from tests.several_processes import check_all_done, command, run_processes

TOLERANCE = 1e-5
# Measured in seconds, bytes and tokens per second.
_OF_THE_MACHINE = {
    "time_s",
    "step_time",
    "mem/peak_gib",
    "gen_tokens_per_s",
    "train_tokens_per_s",
    "stage",
}
# What the micro run leaves out: several packs and minibatches, the game in RLVR, uneven prompts.
HARD = {
    "seed": 4,
    "sampling__temperature": 1.05,
    "model__max_pack_tokens": 320,
    "data__num_align": 9,
    "data__num_rlvr": 9,
    "sft__steps": 3,
    "sft__batch_size": 3,
    "warmup__steps": 3,
    "warmup__num_prompts": 9,
    "align__steps": 4,
    "align__prompts_per_step": 3,
    "align__group_size": 2,
    "align__mode": "rlvr",
    "align__replay_fraction": 0.5,
    "align__panel_every": 2,
    "rlvr__steps": 4,
    "rlvr__prompts_per_step": 3,
    "rlvr__group_size": 2,
    "rlvr__game": "on",
    "rlvr__dynamic_sampling": True,
    "rlvr__max_sampled_batches": 1,
    "rlvr__num_minibatches": 2,
    "rlvr__kl_weight": 0.01,
    "eval__stages": ["rlvr"],
    "eval__every": 2,
    "eval__keep": "best",
}


def recipe_file(folder: Path, **overrides: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "micro.yaml"
    file.write_text(yaml.safe_dump(to_dict(micro_recipe(**overrides))))
    return file


def check_equal(one: Path, two: Path, stages: tuple[str, ...] | None = None) -> None:
    """Metrics, rollouts, evaluations and final weights of two runs are equal to 1e-5."""

    def chosen(folder: Path) -> list[dict[str, Any]]:
        lines = read_jsonl(folder / "metrics.jsonl")
        return [line for line in lines if stages is None or line["stage"] in stages]

    expected, lines = chosen(one), chosen(two)
    assert [(m["stage"], m["step"]) for m in lines] == [(m["stage"], m["step"]) for m in expected]
    for line, reference in zip(lines, expected, strict=True):
        where = f"{line['stage']} {line['step']}"
        assert line.keys() == reference.keys(), where
        for name in line.keys() - _OF_THE_MACHINE:
            assert line[name] == pytest.approx(reference[name], rel=0, abs=TOLERANCE), (where, name)
    for file in sorted(one.glob("stages/*/final/*.safetensors")):
        if stages is None or file.parts[-3] in stages:
            check_equal_tensors(file, two / file.relative_to(one))
    for file in sorted(one.glob("rollouts/*.jsonl")):
        if stages is None or file.name.split("-")[0] in stages:
            check_equal_rollouts(read_jsonl(file), read_jsonl(two / file.relative_to(one)))


def check_equal_tensors(one: Path, two: Path) -> None:
    expected, tensors = load_file(one), load_file(two)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert float((tensor - expected[name]).abs().max()) < TOLERANCE, f"{two}: {name}"


def check_equal_rollouts(expected: list[dict], records: list[dict]) -> None:
    assert len(records) == len(expected)
    for record, reference in zip(records, expected, strict=True):
        for name in ("prompt_id", "completion", "finish_reason", "rewards"):
            assert record[name] == reference[name]
        assert record["advantage"] == pytest.approx(reference["advantage"], rel=0, abs=1e-4)


def figures(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The evaluations in results.json, without times."""
    results = json.loads((folder / "results.json").read_text())["stages"]
    return {
        stage: {name: value for name, value in of_stage.items() if name != "seconds"}
        for stage, of_stage in results.items()
    }


@pytest.mark.slow
def test_the_whole_pipeline_of_two_processes_equals_that_of_one(micro_run, tmp_path):
    _, finished, results, _ = micro_run
    out = tmp_path / "two"
    ended = command(2, tmp_path, "run", "--recipe", recipe_file(tmp_path), "--out", out)
    check_all_done(ended)
    check_equal(finished, out)
    assert figures(out) == figures(finished)
    assert json.loads((out / "env.json").read_text())["num_processes"] == 2
    assert json.loads((finished / "env.json").read_text())["num_processes"] == 1
    first, second = (process.text for process in ended)
    assert "run folder:" in first
    assert not second or "Loading weights" in second, second  # it prints nothing of its own
    check_equal_tensors(
        finished / "policy" / "adapter_model.safetensors",
        out / "policy" / "adapter_model.safetensors",
    )
