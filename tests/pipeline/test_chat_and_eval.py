"""Chat from a finished run; evaluation on files as the public benchmarks have them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from prism_lite import parts, pipeline, run_results
from prism_lite.cli import trained
from prism_lite.cli.trained import evaluate_run
from prism_lite.data.task import load_task
from prism_lite.deploy import chat
from prism_lite.deploy.load import heldout_task, load_stage
from prism_lite.rewards.group_rewards import group_accuracy
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Group, Picture, Rollout, Sample, Turn
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.test_command_line import check_refused, in_process

# Field names and values as in the released files; a right answer for each.
BENCHMARKS = {
    "mathvista": (
        {
            "pid": "1", "image": "p.png", "question": "How long is AB?", "choices": None, "unit": None,
            "precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float",
            "query": "Hint: Please answer with one decimal place.\nQuestion: How long is AB?",
        },
        "1.2",
    ),
    "mathvista choices": (
        {
            "pid": "2", "image": "p.png", "question": "Which is the largest?", "unit": None,
            "choices": ["red", "blue"], "answer": "blue", "question_type": "multi_choice",
            "answer_type": "text", "precision": None,
            "query": "Question: Which is the largest?\nChoices:\n(A) red\n(B) blue",
        },
        "B",
    ),
    "mathverse": (
        {
            "sample_index": "3", "problem_index": "1", "problem_version": "Text Dominant",
            "question": "What is angle B?\nChoices:\nA:30°\nB:60°\nC:90°", "image": "p.png",
            "answer": "B", "question_type": "multi-choice", "metadata": {"split": "testmini"},
            "query_cot": "First reason. Question: What is angle B?", "query_wo": "What is angle B?",
        },
        "60°",
    ),
    "mmmu": (
        {
            "id": "validation_Math_4", "question": "Which of <image 1> is it?", "image_1": "p.png",
            "options": "['3 m', '4 m', '5 m']", "answer": "C", "question_type": "multiple-choice",
            "explanation": "", "topic_difficulty": "Easy",
        },
        "5 m",
    ),
    "geometry3k": (
        {"images": ["p.png"], "problem": "<image>Find x.", "answer": "4 \\sqrt { 2 }"},
        "4\\sqrt{2}",
    ),
}  # fmt: skip


def write_benchmark(folder: Path, name: str) -> tuple[Path, str]:
    Image.new("RGB", (64, 32), (90, 120, 30)).save(folder / "p.png")
    row, right = BENCHMARKS[name]
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return file, right


def rollout(answer: str) -> Rollout:
    text = f"<caption>a</caption>\n<think>b</think>\n<answer>{answer}</answer>"
    return Rollout((1,), text, parts.parse(text), "end", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_a_benchmark_are_read_and_verified(micro_run, tmp_path, name):
    config, _, _, _ = micro_run
    file, right = write_benchmark(tmp_path, name)
    task = heldout_task(config, str(file), None)
    (sample,) = task.heldout
    assert len(sample.pictures) == 1 and sample.answer
    group = Group(sample, (rollout(right), rollout("7"), rollout("A")))
    assert group_accuracy(group) == [1.0, 0.0, 0.0], (sample.answer, sample.choices)


def test_eval_on_another_file_judges_its_rows(micro_run, tmp_path):
    config, folder, _, _ = micro_run
    file, _ = write_benchmark(tmp_path, "mmmu")
    done = in_process(
        "eval", "--run", folder, "--data", file, "--json", tmp_path / "f.json", "--show", 1
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["n"] == 1 and figures["ci95"]["accuracy"] == [0.0, 1.0]
    assert "caption_accuracy" not in figures  # nothing verifies a caption here
    assert "3 m" in done.stdout and "1 prompts" in done.stdout
    group = sample_groups_of(folder, config, file)
    assert figures["accuracy"] == sum(group_accuracy(group)) / len(group.rollouts)


def test_a_shown_completion_says_why_it_is_not_right(tmp_path):
    picture = Picture("p", tmp_path / "p.png")
    sample = Sample("a", (Turn("user", "<image>\nHow long\nis AB?"),), (picture,), answer="4")
    head = f"\nHow long is AB?\n{tmp_path / 'p.png'}\ngold: 4 "
    right, cut = rollout("4"), dataclasses.replace(rollout("4"), finish="length")
    bad = Rollout((1,), "so", parts.parse("so"), "length", None, None)  # type: ignore[arg-type]
    for shown, verdict in (
        (right, "right"),
        (rollout("7"), "wrong"),
        (cut, "malformed: it has the greatest length"),
        (bad, "malformed: missing <caption>, it has the greatest length"),
    ):
        text = trained._greedy_completion(Group(sample, (shown,)))
        assert text == f"{head}({verdict})\n{shown.text}"


def sample_groups_of(folder, config, file) -> Group:
    task = heldout_task(config, str(file), None)
    (group,) = sample_groups(
        load_stage(folder, config, "rlvr"),
        task.heldout,
        group_size=config.eval.num_samples,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=(config.seed, "evaluate"),
    )
    return group


def test_eval_without_rows_or_with_a_foreign_checkpoint(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    check_refused(in_process("eval", "--run", folder, "--data", tmp_path / "no.jsonl"), "no.jsonl")
    check_refused(in_process("eval", "--run", folder, "--model", tmp_path), str(tmp_path))


def test_an_unfinished_stage_is_named(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(ValueError, match="no stage with a policy is finished"):
        evaluate_run(tmp_path, console=quiet_console())
    with pytest.raises(ValueError, match="stage align of this run is not finished"):
        evaluate_run(tmp_path, "align", console=quiet_console())


class Heard:
    """A streamer that counts its calls."""

    def __init__(self):
        self.times = 0

    def put(self, _tokens):
        self.times += 1

    def end(self):
        pass


def test_the_streamed_answer_is_the_greedy_completion(micro_run, task):
    config, folder, _, _ = micro_run
    backbone = load_stage(folder, config, "sft")
    (group,) = sample_groups(
        backbone,
        task.heldout[:1],
        group_size=1,
        sampling=dataclasses.replace(config.sampling, temperature=0.0),
        seed=("any",),
    )
    heard = Heard()
    text = chat.answer(
        backbone,
        task.heldout[0],
        temperature=0.0,
        max_tokens=48,
        streamer=heard,
    )
    assert text == group.rollouts[0].text
    assert heard.times == len(group.rollouts[0].token_ids) + 1  # the prompt, then token by token


@pytest.mark.parametrize("stage", ["base", "align"])
def test_chat_prints_an_answer_from_any_stage(micro_run, task, tmp_path, stage):
    _, folder, _, _ = micro_run
    task.heldout[0].pictures[0].open().save(tmp_path / "p.png")
    question = task.heldout[0].question
    done = in_process("chat", "--run", folder, "--stage", stage, tmp_path / "p.png", question)
    assert done.returncode == 0, done.stderr
    assert "<caption>" in done.stdout
    assert "<|im_end|>" not in done.stdout
    parsed = parts.parse(done.stdout.strip())
    reason = f"malformed: {parsed.reason}" if isinstance(parsed, parts.Malformed) else ""
    assert ("malformed" in done.stderr) == bool(reason) and reason in done.stderr


def test_chat_says_that_an_answer_is_malformed(micro_run):
    _, folder, _, _ = micro_run
    done = in_process("chat", "--run", folder, "--max-tokens", 1, "What is it?")
    assert done.returncode == 0, done.stderr
    assert "malformed: missing </caption>" in done.stderr


def test_chat_about_a_picture_that_is_not_there(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    done = in_process("chat", "--run", folder, tmp_path / "no.png", "What is it?")
    check_refused(done, "no.png")


def test_a_run_of_a_large_gpu_loads_on_this_machine(micro_run):
    config, folder, _, _ = micro_run
    model = dataclasses.replace(config.model, device="cuda", min_gpu_gib=800.0)
    backbone = load_stage(folder, dataclasses.replace(config, model=model), "rlvr")
    with torch.no_grad():
        state = backbone.adapter_state()
    expected = load_stage(folder, config, "rlvr").adapter_state()
    assert all(torch.equal(state[name].cpu(), expected[name]) for name in expected)


def test_evaluation_uses_the_prompts_and_stages_of_the_settings(micro_run, tmp_path, monkeypatch):
    """eval.num_prompts: the first ones; eval.stages: no sampling for the others."""
    config, _, _, _ = micro_run
    asked = []
    real = run_results.evaluate
    monkeypatch.setattr(
        run_results, "evaluate", lambda *a, **k: asked.append(k["stage"]) or real(*a, **k)
    )
    few = micro_recipe(eval__num_prompts=3, eval__stages=["sft"], sft__steps=1)
    results = pipeline.run(few, tmp_path / "few", stages=("sft",), console=quiet_console())
    assert asked == ["sft"] and set(results["stages"]) == {"sft"}
    assert results["n"] == 3
    backbone = load_stage(tmp_path / "few", few, "sft")
    task = load_task(few)
    cut = {name: getattr(task, name)[:3] for name in ("heldout", "transfer", "familiar")}
    cut = dataclasses.replace(task, **cut)
    expected = real(backbone, cut, config).figures
    assert results["stages"]["sft"]["ci95"] == expected["ci95"]


def test_downloads_show_their_progress_and_nothing_else_does():
    code = (
        "from prism_lite.cli.imports import quiet_libraries; quiet_libraries()\n"
        "from huggingface_hub.utils import are_progress_bars_disabled as off\n"
        "from transformers.utils import logging\n"
        "print(off(), logging.is_progress_bar_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
