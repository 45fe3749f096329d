"""Evaluation inside the stages: its curves, the best policy, and resuming with both."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.data.task import load_task
from prism_lite.deploy.load import load_stage
from prism_lite.files import read_jsonl
from prism_lite.runs.folder import open_run
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages import in_stage
from prism_lite.stages.evaluate import evaluate_inside
from prism_lite.types import POLICY_STAGES
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.test_resume import check_same_as, cut_back

EVERY_TWO = {"eval__every": 2, "eval__num_inside": 4}  # of 5 steps: after steps 1, 3 and 4


@pytest.fixture(scope="module")
def evaluated_run(micro_cache, tmp_path_factory):
    """A micro run with evaluations inside its stages."""
    config, folder = micro_recipe(**EVERY_TWO), tmp_path_factory.mktemp("inside") / "a"
    results = pipeline.run(config, folder, console=quiet_console())
    return config, folder, results


def evaluations(folder, stage):
    lines = read_jsonl(folder / "metrics.jsonl")
    return [m for m in lines if m["stage"] == stage and "eval/accuracy" in m]


def test_every_policy_stage_has_its_curve(evaluated_run):
    _, folder, results = evaluated_run
    for stage in POLICY_STAGES:
        lines = evaluations(folder, stage)
        assert [line["step"] for line in lines] == [1, 3, 4]
        assert all("step_time" not in line and "loss" not in line for line in lines)
    assert not evaluations(folder, "warmup")
    names = {name for name in evaluations(folder, "sft")[0] if name.startswith("eval/")}
    assert names == {
        f"eval/{name}"
        for name in ("accuracy", "transfer_accuracy", "caption_accuracy", "think_validity", "format_rate")
    }  # fmt: skip
    assert "kept" not in results
    card = (folder / "README.md").read_text()
    assert "Every 2 steps 4 of the held-out prompts" in card


def test_it_does_not_change_what_is_trained(micro_run, evaluated_run):
    _, plain, _, _ = micro_run
    _, folder, _ = evaluated_run
    for stage in POLICY_STAGES:
        first, second = (
            (path / "stages" / stage / "final" / "policy.safetensors").read_bytes()
            for path in (plain, folder)
        )
        assert first == second


def test_the_figures_are_those_of_evenly_spaced_rows(evaluated_run):
    """After the last step the policy is the one that the stage saved."""
    config, folder, _ = evaluated_run
    task = load_task(config)
    backbone = load_stage(folder, config, "sft")
    groups = sample_groups(
        backbone,
        task.heldout[::2],  # 4 of 8
        group_size=config.eval.num_samples,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=(config.seed, "evaluate", "inside"),
    )
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert evaluations(folder, "sft")[-1]["eval/format_rate"] == pytest.approx(
        sum(r.is_well_formed for r in rollouts) / len(rollouts)
    )
    figures = evaluate_inside(backbone, task, config)
    assert figures == {
        name.removeprefix("eval/"): value
        for name, value in evaluations(folder, "sft")[-1].items()
        if name.startswith("eval/")
    }


@pytest.mark.parametrize("stage", ["sft", "align", "rlvr"])
def test_a_run_with_evaluations_inside_resumes_exactly(evaluated_run, tmp_path, stage):
    config, finished, _ = evaluated_run
    cut_back(finished, tmp_path / "r", stage)
    pipeline.run(config, tmp_path / "r", console=quiet_console())
    check_same_as(finished, tmp_path / "r")
    for name in POLICY_STAGES:
        values = [
            [line["eval/accuracy"] for line in evaluations(folder, name)]
            for folder in (finished, tmp_path / "r")
        ]
        assert values[0] == values[1]


class Scripted:
    """Accuracies in the order of a script; a policy that was evaluated before has its value again."""

    def __init__(self, values):
        self.waiting, self.known = list(values), {}

    def __call__(self, backbone, _task, _config):
        state = backbone.adapter_state()
        key = b"".join(state[name].numpy().tobytes() for name in sorted(state))
        if key not in self.known:
            self.known[key] = self.waiting.pop(0)
        return {"accuracy": self.known[key]}


@pytest.mark.parametrize(
    ("values", "best_step"),
    [
        ([0.5, 0.1, 0.2], 1),
        ([0.1, 0.5, 0.2], 3),
        ([0.1, 0.2, 0.5], 4),
        ([0.1, 0.5, 0.5], 3),  # a tie: the earlier one
        ([0.0, 0.0, 0.0], 1),
    ],
)
def test_the_best_policy_is_handed_on_and_survives_a_kill(
    micro_cache, monkeypatch, tmp_path, values, best_step
):
    monkeypatch.setattr(in_stage, "evaluate_inside", Scripted(values))
    config = micro_recipe(**EVERY_TWO, eval__keep="best", eval__stages=["sft"])
    console = quiet_console()
    results = pipeline.run(config, tmp_path / "a", stages=("sft",), console=console)
    assert results["kept"]["sft"] == {
        "step": best_step,
        "by": "accuracy",
        "value": max(values),
        "last": values[-1],
        "evaluations": [[1, values[0]], [3, values[1]], [4, values[2]]],
    }
    assert f"sft: the policy after step {best_step + 1} is kept" in console.file.getvalue()
    assert (
        f"sft: the policy after step {best_step + 1}, the best by accuracy"
        in (tmp_path / "a" / "README.md").read_text()
    )
    stage = tmp_path / "a" / "stages" / "sft"
    final = (stage / "final" / "policy.safetensors").read_bytes()
    after_steps = {1: "checkpoint-2", 3: "checkpoint-4"}
    for step, name in after_steps.items():
        saved = (stage / name / "policy.safetensors").read_bytes()
        assert (final == saved) == (step == best_step)
    # killed after checkpoint-4, which has the best policy so far
    cut = tmp_path / "b"
    cut_back_sft(tmp_path / "a", cut)
    pipeline.run(config, cut, stages=("sft",), console=quiet_console())
    check_same_as(tmp_path / "a", cut)


def cut_back_sft(finished, folder):
    (finished / "discriminator").mkdir(exist_ok=True)  # `cut_back` removes it
    for name in ("warmup", "align", "rlvr"):
        (finished / "stages" / name).mkdir(exist_ok=True)
    cut_back(finished, folder, "sft")


def test_the_stop_after_the_last_step_keeps_the_best_policy(micro_cache, monkeypatch, tmp_path):
    """The checkpoint of the last step has it; resuming only has to choose."""
    monkeypatch.setattr(in_stage, "evaluate_inside", Scripted([0.5, 0.1, 0.2]))
    config = micro_recipe(**EVERY_TWO, eval__keep="best", eval__stages=["sft"])
    pipeline.run(config, tmp_path / "a", stages=("sft",), console=quiet_console())
    cut_back_sft(tmp_path / "a", tmp_path / "b")
    with open_run(tmp_path / "b", config, quiet_console()) as run:
        restored = run.restore("sft")
        assert restored is not None and restored.values["best"] == {"step": 1, "value": 0.5}
        expected = load_file(run.stage("sft") / "checkpoint-2" / "policy.safetensors")
        assert all(torch.equal(restored.tensors["best"][name], expected[name]) for name in expected)
        assert not torch.equal(
            *(torch.cat([t.flatten() for t in restored.tensors[n].values()]) for n in ("best", "policy"))
        )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval__keep": "best"}, "eval.keep = best needs evaluations"),
        ({"eval__keep": "best", "eval__every": 2, "eval__best_by": "reward"}, "eval.best_by"),
    ],
)
def test_a_choice_without_evaluations_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        micro_recipe(**overrides)


def test_figures_that_the_rows_do_not_give_are_refused_before_training(micro_cache, tmp_path):
    row = {"query": "?", "response": "<caption>a</caption><think>b</think><answer>3</answer>"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row | {"query": f"How high {i}?"}) + "\n" for i in range(4)))
    files = {"data__task": "files", "data__train": str(rows), "eval__every": 2}
    with pytest.raises(ValueError, match=r"eval\.every = 2 evaluates held-out rows.*none"):
        pipeline.run(
            micro_recipe(**files), tmp_path / "r", stages=("sft",), console=quiet_console()
        )
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"query": "How high?", "answer": "3"}) + "\n")
    config = micro_recipe(
        **files, data__heldout=str(answers), eval__keep="best", eval__best_by="caption_accuracy"
    )
    with pytest.raises(ValueError, match=r"best_by = caption_accuracy .* accuracy, format_rate"):
        pipeline.run(config, tmp_path / "r", stages=("sft",), console=quiet_console())
    assert not (tmp_path / "r").exists()


def test_drift_is_measured_for_every_evaluated_stage(evaluated_run):
    _, folder, results = evaluated_run
    assert list(results["drift"]) == ["base", *POLICY_STAGES]
    assert "kl_to_start" not in results["drift"]["base"]
    for stage in POLICY_STAGES:
        figures = results["drift"][stage]
        low, high = figures["kl_to_start_ci95"]
        assert low < figures["kl_to_start"] < high
        assert 0.001 <= figures["teacher_p"] <= 1
        assert 0 < figures["teacher_js_words"] < figures["teacher_js_bigrams"] < 1
    card = (folder / "README.md").read_text()
    assert "| drift | captions wrong |" in card and "Compare each row with the base's" in card


def test_without_the_setting_nothing_is_measured(micro_cache, tmp_path):
    console = quiet_console()
    config = micro_recipe(eval__drift=False, sft__steps=1)
    results = pipeline.run(config, tmp_path / "r", stages=("sft",), console=console)
    assert "drift" not in results and "drift" not in console.file.getvalue()
