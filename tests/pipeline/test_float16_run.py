"""All stages in float16 with the loss scaler, as on a T4, run on the CPU; killed and resumed."""

from __future__ import annotations

import shutil

import torch

from prism_lite import pipeline
from prism_lite.files import read_jsonl
from prism_lite.runs.checkpoint import load_latest
from prism_lite.runs.resume import stage_settings
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.test_resume import final_bytes

STEPS = {"sft__steps": 3, "warmup__steps": 3, "align__steps": 3, "rlvr__steps": 3}


def test_every_stage_trains_in_float16_and_resumes_with_its_scale(micro_cache, tmp_path):
    config = micro_recipe(model__compute_dtype="float16", save_every=2, **STEPS)
    console = quiet_console()
    results = pipeline.run(config, tmp_path / "a", console=console)
    assert set(results["stages"]) == {"base", "sft", "align", "rlvr"}
    assert "float16" in console.file.getvalue() and "loss scaler" in console.file.getvalue()
    lines = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    for stage in ("sft", "warmup", "align", "rlvr"):
        steps = [line for line in lines if line["stage"] == stage]
        scales = [
            line[name]
            for line in steps
            for name in ("loss_scale", "disc/loss_scale")
            if name in line
        ]
        assert scales and all(scale >= 1 for scale in scales), stage
        for line in steps:
            if "loss" in line:
                assert ("grad_norm" in line) != ("skipped_steps" in line), line

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for left in ("stages/rlvr/final", "policy", "discriminator"):
        shutil.rmtree(tmp_path / "b" / left)
    stage = tmp_path / "b" / "stages" / "rlvr"
    restored, _ = load_latest(stage, settings=stage_settings(config, "rlvr"))
    assert restored is not None and restored.optimizers["policy"]["loss_scaler"]["scale"] > 1
    pipeline.run(config, tmp_path / "b", console=quiet_console())
    assert final_bytes(tmp_path / "a") == final_bytes(tmp_path / "b")
    assert all(
        torch.isfinite(tensor).all()
        for tensors in restored.tensors.values()
        for tensor in tensors.values()
    )
