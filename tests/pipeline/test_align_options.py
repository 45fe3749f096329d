"""Alignment's modes and options, and the methods it is compared with."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.files import read_jsonl
from prism_lite.models.optim import make_optimizer
from prism_lite.parts import Parts
from prism_lite.recipe import to_dict
from prism_lite.runs.folder import RunFolder, Stopped, open_run
from prism_lite.stages.align import run_align
from prism_lite.stages.dpo import run_dpo
from prism_lite.stages.sft import run_teacher_sft
from tests.micro import micro_recipe, quiet_console

MODES = ["acc_gate", "gated", "rlvr", "rlvr_v2", "sign_align"]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_plays_and_logs_its_rewards(play, mode):
    _, folder, lines = play(run_align, align__mode=mode, align__steps=1)
    (line,) = [m for m in lines if m["step"] == 0]
    records = read_jsonl(folder / "rollouts" / "align-0.jsonl")
    accuracy = [record["rewards"]["accuracy"] for record in records]
    assert line["rewards/accuracy/mean"] == pytest.approx(sum(accuracy) / len(accuracy))
    assert "disc/pair_accuracy_perception" in line
    for start in range(0, len(records), 3):
        advantages = [record["advantage"] for record in records[start : start + 3]]
        assert sum(advantages) == pytest.approx(0, abs=1e-5)


def test_a_mode_with_rewards_wants_answers_before_anything_is_loaded(task, tmp_path, monkeypatch):
    """The row without an answer is named, and no model was touched."""
    rows = list(task.align)
    rows[3] = dataclasses.replace(rows[3], answer=" ", source="rows.jsonl:4")
    asked = dataclasses.replace(task, align=tuple(rows))
    monkeypatch.setattr(pipeline, "load_task", lambda config, **_: asked)
    monkeypatch.setattr(pipeline, "base_folder", lambda config: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: no answer .* align\.mode = rlvr"):
        pipeline.run(micro_recipe(align__mode="rlvr"), tmp_path / "out", console=quiet_console())


def test_alignment_takes_the_loss_and_the_minibatches_of_its_settings(play):
    """A clip this narrow acts on the second minibatch of each step; the default has only one."""
    _, _, lines = play(run_align, align__steps=1)
    assert lines[0]["num_optimizer_steps"] == 1
    assert lines[0]["clip_ratio/region_mean"] == 0
    _, _, lines = play(
        run_align,
        align__steps=4,
        align__num_minibatches=2,
        align__loss={"name": "gspo", "clip_low": 1e-7, "clip_high": 1e-7, "clip_dual": None},
    )
    assert all(line["num_optimizer_steps"] == 2 for line in lines)
    # only where the first minibatch moved a ratio in the direction of its advantage
    assert any(line["clip_ratio/region_mean"] > 0 for line in lines)


def test_replay_is_checkpointed_and_resumes_to_the_same_bytes(play, micro_run, tmp_path, task):
    """Stopped after two steps and run again: the same weights as in one go; without replay others."""
    options = {
        "align__replay_fraction": 0.5,
        "align__replay_prompts": 3,
        "align__steps": 4,
        "discriminator__grgc_weight": 0.01,
    }
    config, folder, lines = play(run_align, **options)
    finals = [load_file(p) for p in sorted((folder / "stages/align/final").glob("*.safetensors"))]
    assert all("disc/grgc" in m for m in lines if "loss" in m)
    state = json.loads((folder / "stages/align/checkpoint-2/replay.value.json").read_text())
    assert 0 < len(state) <= 3
    assert all(teacher == 0 for _, teacher, _ in state)  # the only one
    assert all(len(bodies) == 3 for _, _, students in state for bodies in students)

    shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/stages/align/final")
    with open_run(tmp_path / "again", config, quiet_console()) as run:
        backbone = pipeline.load_backbone(
            config.model, config.lora, pipeline.base_folder(config), seed=0
        )
        run_align(pipeline.Context(config, run, backbone, task))
    again = [
        load_file(p) for p in sorted((tmp_path / "again/stages/align/final").glob("*.safetensors"))
    ]
    for first, second in zip(finals, again, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)

    _, folder, _ = play(run_align, align__steps=4, discriminator__grgc_weight=0.01)
    without = load_file(folder / "stages/align/final/discriminator.safetensors")
    assert any(not torch.equal(finals[0][name], without[name]) for name in without)


def test_replayed_students_move_the_discriminator_and_not_the_metrics(backbone, task):
    def judged(i: int, digit: int) -> JudgedPrompt:
        prompt = backbone.prompt(task.align[i])
        students = tuple(Parts(f"- row {digit}-{k}", f"first {k}", "no") for k in (1, 2, 3))
        return JudgedPrompt(prompt, Parts("- digits: 3,7", "first 3,last 7,so no", "no"), students)

    step_metrics, weights = [], []
    for replayed in ((), (judged(1, 8), judged(2, 9))):
        config = micro_recipe().discriminator
        discriminator = discriminator_for(backbone, config, seed=0)
        optimizer = make_optimizer(list(discriminator.parameters()), config.optim)
        scores = discriminator_step(
            backbone,
            discriminator,
            optimizer,
            [judged(0, 7)],
            config,
            learning_rate=1e-2,
            max_grad_norm=1e9,
            replayed=replayed,
        )
        step_metrics.append({k: v for k, v in scores.metrics.items() if k != "disc/grad_norm"})
        assert len(scores.students) == len(scores.teacher_P2) == 1
        weights.append({name: t.clone() for name, t in discriminator.state_dict().items()})
    assert step_metrics[0] == pytest.approx(step_metrics[1], rel=1e-5, abs=1e-6)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("stage", [run_dpo, run_teacher_sft])
def test_the_other_methods_move_the_policy_towards_the_teacher(play, stage):
    method = {"run_dpo": "dpo", "run_teacher_sft": "sft"}[stage.__name__]
    _, folder, lines = play(
        stage,
        align__method=method,
        align__steps=4,
        align__prompts_per_step=16,  # every step sees every row
        align__optim={"learning_rate": 3e-3},
    )
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not (folder / "stages/align/final/discriminator.safetensors").exists()
    if method == "dpo":
        margins = [line["rewards/margins"] for line in lines]
        assert margins[0] == pytest.approx(0, abs=1e-4), "it starts at its reference"
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert margins == sorted(margins) and margins[-1] > 100 * abs(margins[0])
        assert lines[-1]["rewards/accuracies"] > lines[0]["rewards/accuracies"]


def test_the_pipeline_with_dpo_skips_the_warmup_and_resumes(micro_run, tmp_path):
    """SFT is taken from the micro run; stopped in alignment, it ends with the same bytes."""
    _, finished, _, _ = micro_run
    config = micro_recipe(
        align__method="dpo", align__steps=4, rlvr__steps=1, eval__num_samples=1, data__num_heldout=2
    )

    def run(folder, *, stop: bool):
        shutil.copytree(finished / "stages/sft", folder / "stages/sft")
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
        if stop:
            stop_in_alignment(folder, config)
        return pipeline.run(config, folder, console=quiet_console())

    results = run(tmp_path / "a", stop=False)
    assert set(results["stages"]) == {"base", "sft", "align", "rlvr"}
    assert not (tmp_path / "a/stages/warmup").exists()
    assert not (tmp_path / "a/discriminator").exists()
    assert (tmp_path / "a/policy/adapter_model.safetensors").is_file()
    run(tmp_path / "b", stop=True)
    for name in ("stages/align/final/policy.safetensors", "policy/adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def stop_in_alignment(folder, config):
    """Run until the second step of alignment."""
    log = RunFolder.log

    def log_and_stop(self, stage, step, metrics):
        log(self, stage, step, metrics)
        if stage == "align" and step == 1:
            self.request_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_stop)
        with pytest.raises(Stopped):
            pipeline.run(config, folder, console=quiet_console())
