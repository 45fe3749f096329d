"""Two processes against one: the same losses and adapters, per stage and for the whole pipeline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.__main__ import main
from prism_lite.files import read_jsonl
from prism_lite.models import optim
from prism_lite.recipe import to_dict
from prism_lite.runs import plots
from prism_lite.sampling import rollouts
from prism_lite.stages import in_stage
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.commands import REPOSITORY
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
    # Adam divides a gradient by its size: where it is nearly 0, rounding moves a weight by a share of this.
    "rlvr__optim__learning_rate": 1e-4,
    "eval__stages": ["rlvr"],
    "eval__every": 4,
    "eval__keep": "best",
}


QUICK = {"eval__stages": [], "eval__drift": False}  # trained without being evaluated


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Forked processes inherit it."""
    monkeypatch.setattr(plots, "write_plots", lambda *_arguments: None)
    monkeypatch.setattr(in_stage, "write_plots", lambda *_arguments: None)


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
    _, finished, _, _ = micro_run
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


@pytest.mark.slow
def test_uneven_work_of_two_processes_equals_that_of_one(micro_cache, no_plots, tmp_path):
    """Three prompts a step, and steps in which a process has nothing to judge or to train on."""
    pipeline.run(micro_recipe(**HARD), tmp_path / "one", console=quiet_console())
    out = tmp_path / "two"
    check_all_done(
        command(2, tmp_path, "run", "--recipe", recipe_file(tmp_path, **HARD), "--out", out)
    )
    check_equal(tmp_path / "one", out)
    assert figures(out) == figures(tmp_path / "one")
    steps = [m for m in read_jsonl(out / "metrics.jsonl") if m["stage"] == "rlvr"]
    num_kept = {m["dynamic_sampling/num_kept"] for m in steps if "loss" in m or "reward" in m}
    assert num_kept & {0, 1}, "no step trains on fewer groups than there are processes"
    firsts = [read_jsonl(file)[:2] for file in out.glob("rollouts/*.jsonl")]
    assert any(all("malformed" in r for r in first) for first in firsts), "the first group"


@pytest.mark.parametrize("method", ["dpo", "best_of_n"])
def test_the_baselines_of_alignment(micro_run, no_plots, tmp_path, method):
    settings = {"align__method": method, "align__steps": 2, "align__prompts_per_step": 3}
    outs, recipe = [tmp_path / "one", tmp_path / "two"], recipe_file(tmp_path, **settings, **QUICK)
    for out in outs:
        copy_finals(micro_run, out, recipe, "sft")
    assert main(["align", "--recipe", str(recipe), "--out", str(outs[0])]) == 0
    check_all_done(command(2, tmp_path, "align", "--recipe", recipe, "--out", outs[1]))
    check_equal(*outs, ("align",))


def copy_finals(micro_run: tuple, folder: Path, recipe: Path, *stages: str) -> None:
    """Make a run of this recipe in which stages of the micro run are finished."""
    for stage in stages:
        source = micro_run[1] / "stages" / stage / "final"
        shutil.copytree(source, folder / "stages" / stage / "final")
    shutil.copy(recipe, folder / "config.yaml")


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_run_resumes(
    micro_run, no_plots, tmp_path
):
    """In the last step of alignment, while the first process waits for gradients."""
    out, alone, recipe = tmp_path / "two", tmp_path / "alone", recipe_file(tmp_path, **QUICK)
    copy_finals(micro_run, out, recipe, "sft", "warmup")
    arguments = ["align", "--recipe", str(recipe), "--out"]

    def work() -> int:
        if os.environ["RANK"] == "1":
            kill_at_sum(10)  # discriminator and policy, each in five steps
        return main([*arguments, str(out)])

    first, second = run_processes(2, tmp_path, work, most_s=90)
    assert second.code == -signal.SIGKILL
    assert first.code == 1 and first.seconds < 90
    [sentence] = [line for line in first.text.splitlines() if line.startswith("prism-lite: ")]
    assert "another one has ended" in sentence and "resumes from the last checkpoint" in sentence
    assert "Traceback" not in first.text
    assert (out / "stages" / "align" / "LATEST").read_text().strip() == "checkpoint-4"
    shutil.copytree(out, alone)
    check_all_done(command(2, tmp_path, *arguments, out))
    check_equal(micro_run[1], out, ("align",))
    assert main([*arguments, str(alone)]) == 0
    check_equal(micro_run[1], alone, ("align",))
    environment = json.loads((alone / "env.json").read_text())
    assert environment["num_processes"] == 1
    assert environment["earlier_sessions"][-1]["num_processes"] == 2


def kill_at_sum(number: int) -> None:
    """Kill this process where it would sum gradients for this time."""
    sum_gradients, calls = optim.sum_gradients, []

    def count(parameters) -> None:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sum_gradients(parameters)

    optim.sum_gradients = count


@pytest.mark.slow
def test_sigterm_stops_both_after_the_same_step_and_one_process_resumes(
    micro_run, no_plots, tmp_path
):
    """The signal reaches both, as torchrun sends it; the first one decides."""
    out, recipe = tmp_path / "two", recipe_file(tmp_path, **QUICK)
    copy_finals(micro_run, out, recipe, "sft", "warmup", "align")
    arguments = ["rlvr", "--recipe", str(recipe), "--out", str(out)]

    def work() -> int:
        sum_gradients = optim.sum_gradients

        def stop(parameters) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum_gradients(parameters)

        optim.sum_gradients = stop
        return main(arguments)

    for process in run_processes(2, tmp_path, work):
        assert process.code == 3, process.text
        assert "stopped in stage rlvr after step 1 of 5; resume with:" in process.text
    assert (out / "stages" / "rlvr" / "LATEST").read_text().strip() == "checkpoint-1"
    assert main(arguments) == 0
    check_equal(micro_run[1], out, ("rlvr",))


def test_a_gradient_of_one_process_that_is_not_finite_leaves_the_step_out_in_both(
    micro_cache, no_plots, tmp_path
):
    out, alone, recipe = tmp_path / "two", tmp_path / "alone", recipe_file(tmp_path, **QUICK)
    arguments = ["sft", "--recipe", str(recipe), "--out"]

    def work() -> int:
        if os.environ["RANK"] == "1":
            poison_first_sum()
        return main([*arguments, str(out)])

    check_all_done(run_processes(2, tmp_path, work))
    [record] = read_jsonl(out / "stages" / "sft" / "skipped_steps.jsonl")
    assert record["step"] == 0 and "nan" in record["reason"] and len(record["batch"]) == 4
    (alone / "stages" / "sft").mkdir(parents=True)
    (alone / "stages" / "sft" / "skipped_steps.jsonl").write_text('{"step": 0}\n')
    shutil.copy(recipe, alone / "config.yaml")
    assert main([*arguments, str(alone)]) == 0
    check_equal(alone, out)


def poison_first_sum() -> None:
    """Make the gradients NaN that this process adds to the first sum."""
    sum_gradients, is_poisoned = optim.sum_gradients, []

    def poison(parameters) -> None:
        if not is_poisoned:
            is_poisoned.append(True)
            for parameter in parameters:
                parameter.grad = parameter.detach() * float("nan")
        sum_gradients(parameters)

    optim.sum_gradients = poison


def test_what_the_user_gave_wrong_is_refused_in_a_sentence_by_every_process(micro_cache, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for process in command(2, tmp_path, "run", "--out", tmp_path / "out"):
        assert process.code == 2, process.text
        [sentence] = [t for t in process.text.splitlines() if t.startswith("prism-lite: ")]
        assert "is not empty and does not hold a run" in sentence
        assert "Traceback" not in process.text
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_study_is_refused_by_every_process(tmp_path):
    for process in command(2, tmp_path, "study", "--out", tmp_path / "study"):
        assert process.code == 2
        assert "2 processes were started (WORLD_SIZE=2)" in process.text
        assert "prism-lite study runs in one" in process.text
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_torchrun_from_the_command_line(micro_cache, tmp_path):
    settings = {"sft__steps": 2, **QUICK}
    recipe = recipe_file(tmp_path, **settings)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launch, "-m", "prism_lite", "sft", "--recipe", recipe, "--out", tmp_path / "two"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder:") == 1
    config = micro_recipe(**settings)
    pipeline.run(config, tmp_path / "one", stages=("sft",), console=quiet_console())
    check_equal(tmp_path / "one", tmp_path / "two")


def test_memory_that_one_process_lacks_makes_both_continue_with_fewer_rows(
    micro_run, no_plots, tmp_path
):
    out, recipe = tmp_path / "two", recipe_file(tmp_path, **QUICK)
    copy_finals(micro_run, out, recipe, "sft", "warmup", "align")

    def work() -> int:
        decode, calls = rollouts._decode, []

        def fail_once(*arguments):
            calls.append(1)
            if os.environ["RANK"] == "1" and len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(*arguments)

        rollouts._decode = fail_once
        return main(["rlvr", "--recipe", str(recipe), "--out", str(out)])

    ended = run_processes(2, tmp_path, work)
    check_all_done(ended)
    assert "out of memory in stage rlvr: it continues with" in ended[0].text
    assert "sampling.max_rows=256 (before" in ended[0].text.replace("\n", " ")
    check_equal(micro_run[1], out, ("rlvr",))
