"""NaN in a gradient, a weight or a picture, in every stage: the step is left out and recorded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.files import read_jsonl
from prism_lite.models import vision
from prism_lite.models.optim import Optimizer
from prism_lite.models.vision import PictureFeatures
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.test_resume import cut_back, final_bytes


def start_at_step_two(finished: Path, folder: Path, stage: str) -> Path:
    stage_folder = cut_back(finished, folder, stage)
    shutil.rmtree(stage_folder / "checkpoint-4")
    return stage_folder


def run_stage(config, folder: Path, stage: str) -> str:
    console = quiet_console()
    pipeline.run(config, folder, stages=(stage,), console=console)
    return " ".join(console.file.getvalue().split())


def check_finite(stage_folder: Path) -> None:
    for file in (stage_folder / "final").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


@contextmanager
def bad_gradients(count: int, *, of_policy: bool) -> Iterator[None]:
    """Put NaN into the gradient of the next optimizer steps of the policy or the discriminator."""
    backward, remaining = Optimizer.backward, count

    def spoiled(self, loss):
        nonlocal remaining
        backward(self, loss)
        parameters = self.inner.param_groups[0]["params"]
        # only the policy's adapter has as many matrices as this
        is_policy = len(parameters) > 20
        if remaining and is_policy == of_policy and parameters[0].grad is not None:
            remaining -= 1
            parameters[0].grad.view(-1)[0] = math.nan

    Optimizer.backward = spoiled
    try:
        yield
    finally:
        Optimizer.backward = backward


@pytest.mark.parametrize(
    ("stage", "of_policy"),
    [("sft", True), ("warmup", False), ("align", True), ("align", False), ("rlvr", True)],
)
def test_a_step_with_a_bad_gradient_is_left_out(micro_run, tmp_path, stage, of_policy):
    config, finished, _, _ = micro_run
    folder = start_at_step_two(finished, tmp_path / "r", stage)
    with bad_gradients(1, of_policy=of_policy):
        printed = run_stage(config, tmp_path / "r", stage)
    assert f"{stage} step 2 is left out" in printed and "gradient's norm is nan" in printed
    [record] = read_jsonl(folder / "skipped_steps.jsonl")
    assert record["step"] == 2 and "nan" in record["reason"]
    assert len(record["batch"]) >= 2 and all(row["prompt"] for row in record["batch"])
    counted = [m["step"] for m in read_jsonl(tmp_path / "r" / "metrics.jsonl")
               if m["stage"] == stage and m.get("not_finite_steps") == 1]  # fmt: skip
    assert counted == [2]
    check_finite(folder)

    # The same as if the step had been left out from the start: nothing of it was kept.
    other = start_at_step_two(finished, tmp_path / "other", stage)
    (other / "skipped_steps.jsonl").write_text(json.dumps({"step": 2}) + "\n")
    run_stage(config, tmp_path / "other", stage)
    assert final_bytes(tmp_path / "other") == final_bytes(tmp_path / "r")
    assert final_bytes(finished) != final_bytes(tmp_path / "r")


def test_the_first_step_of_a_run_can_be_left_out(micro_cache, tmp_path):
    """There is no checkpoint to resume from: the stage starts again with its first adapter."""
    config = micro_recipe(sft__steps=3)
    with bad_gradients(1, of_policy=True):
        run_stage(config, tmp_path / "r", "sft")
    (tmp_path / "other" / "stages" / "sft").mkdir(parents=True)
    shutil.copy(tmp_path / "r" / "config.yaml", tmp_path / "other")
    record = tmp_path / "other" / "stages" / "sft" / "skipped_steps.jsonl"
    record.write_text('{"step": 0}\n')
    run_stage(config, tmp_path / "other", "sft")
    assert final_bytes(tmp_path / "other") == final_bytes(tmp_path / "r")


def test_a_step_of_dpo_with_a_bad_gradient_is_left_out(micro_cache, tmp_path):
    config = micro_recipe(sft__steps=1, align__method="dpo", align__steps=3, eval__stages=[])
    run_stage(config, tmp_path / "r", "sft")
    with bad_gradients(1, of_policy=True):
        printed = run_stage(config, tmp_path / "r", "align")
    assert "align step 0 is left out" in printed
    check_finite(tmp_path / "r" / "stages" / "align")
    lines = [m for m in read_jsonl(tmp_path / "r" / "metrics.jsonl") if m["stage"] == "align"]
    assert [m["step"] for m in lines if "loss" in m] == [1, 2]


def test_three_in_a_row_stop_the_run_and_the_next_start_continues_after_them(micro_cache, tmp_path):
    config = micro_recipe(sft__steps=7)
    with (
        bad_gradients(9, of_policy=True),
        pytest.raises(RuntimeError, match=r"stage sft: 3 steps in a row, up to step 2, met NaN"),
    ):
        run_stage(config, tmp_path / "r", "sft")
    folder = tmp_path / "r" / "stages" / "sft"
    assert [r["step"] for r in read_jsonl(folder / "skipped_steps.jsonl")] == [0, 1, 2]
    run_stage(config, tmp_path / "r", "sft")
    check_finite(folder)
    steps = [m for m in read_jsonl(tmp_path / "r" / "metrics.jsonl") if m["stage"] == "sft"]
    assert [m["step"] for m in steps if "loss" in m] == [3, 4, 5, 6]
    assert [m["step"] for m in steps if "not_finite_steps" in m] == [0, 1, 2]


@pytest.mark.parametrize("stage", ["sft", "align", "rlvr"])
def test_a_weight_that_becomes_nan_in_memory(micro_run, tmp_path, stage, monkeypatch):
    """The stage resumes from the checkpoint before, whose weights are finite; the run is finished."""
    config, finished, _, _ = micro_run
    folder = start_at_step_two(finished, tmp_path / "r", stage)
    steps, is_spoiled = Context.steps, False

    def spoiled(self, *arguments, **more):
        nonlocal is_spoiled
        for step in steps(self, *arguments, **more):
            if step == 2 and not is_spoiled:
                is_spoiled = True
                with torch.no_grad():
                    self.backbone.policy_parameters()[0].fill_(math.nan)
            yield step

    monkeypatch.setattr(Context, "steps", spoiled)
    printed = run_stage(config, tmp_path / "r", stage)
    assert f"{stage} step 2 is left out" in printed
    check_finite(folder)


def test_a_weight_that_is_nan_when_the_checkpoint_is_due(micro_run, tmp_path, monkeypatch):
    config, finished, _, _ = micro_run
    folder = start_at_step_two(finished, tmp_path / "r", "sft")
    steps, is_spoiled = Context.steps, False

    def spoiled(self, *arguments, **more):
        nonlocal is_spoiled
        for step in steps(self, *arguments, **more):
            yield step
            if step == 3 and not is_spoiled:
                is_spoiled = True
                with torch.no_grad():
                    self.backbone.policy_parameters()[0].fill_(math.nan)

    monkeypatch.setattr(Context, "steps", spoiled)
    with pytest.raises(RuntimeError, match=r"policy\.safetensors is not written.*not finite"):
        run_stage(config, tmp_path / "r", "sft")
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    run_stage(config, tmp_path / "r", "sft")
    sft = "stages/sft/final/policy.safetensors"
    assert final_bytes(tmp_path / "r")[sft] == final_bytes(finished)[sft]


@pytest.mark.parametrize("stage", ["sft", "align", "rlvr"])
def test_a_picture_whose_features_are_nan(micro_run, task, tmp_path, stage, monkeypatch):
    config, finished, _, _ = micro_run
    folder = start_at_step_two(finished, tmp_path / "r", stage)
    rows = getattr(task, stage)
    size = config.sft.batch_size if stage == "sft" else config.align.prompts_per_step
    bad = batch_at(rows, 2, size, config.seed, stage)[0].pictures[0].id
    spoil_picture(monkeypatch, bad)
    printed = run_stage(config, tmp_path / "r", stage)
    records = read_jsonl(folder / "skipped_steps.jsonl")
    assert records[0]["step"] == 2 and f"{stage} step 2 is left out" in printed
    assert all(bad in str(record["batch"]) for record in records)
    check_finite(folder)


def test_a_picture_that_spoils_the_samples_before_the_warmup_is_named(
    micro_run, task, tmp_path, monkeypatch
):
    config, finished, _, _ = micro_run
    start_at_step_two(finished, tmp_path / "r", "warmup")
    sample = task.align[0]
    spoil_picture(monkeypatch, sample.pictures[0].id)
    with pytest.raises(RuntimeError, match=r"sampling prompt .*float32_vision"):
        run_stage(config, tmp_path / "r", "warmup")


def spoil_picture(monkeypatch, picture_id: str) -> None:
    encode = vision.encode_pictures

    def spoiled(core, image_processor, pictures):
        encoded = encode(core, image_processor, pictures)
        return [
            PictureFeatures(f.merged_ND * math.nan, f.deepstack_ND) if p.id == picture_id else f
            for p, f in zip(pictures, encoded, strict=True)
        ]

    monkeypatch.setattr(vision, "encode_pictures", spoiled)
