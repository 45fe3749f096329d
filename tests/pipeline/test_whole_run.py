"""One small run of the pipeline: its files, and what it changed."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.config import SamplingConfig
from prism_lite.data.task import load_task
from prism_lite.digits import lessons
from prism_lite.files import read_jsonl
from prism_lite.models.backbone import load_backbone
from prism_lite.models.processor import load_processor
from prism_lite.recipe import to_dict
from prism_lite.sampling.rollouts import sample_groups
from tests.micro import micro_recipe, quiet_console

RATES = ("accuracy", "format_rate", "caption_accuracy", "think_validity")


def test_the_folder_has_what_the_contract_names(micro_run):
    config, folder, _, _ = micro_run
    for name in ("config.yaml", "env.json", "metrics.jsonl", "results.json", "README.md"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "plots").glob("*.png"))
    assert (folder / "discriminator").is_dir()
    assert list((folder / "discriminator").glob("*.safetensors"))
    json.loads((folder / "discriminator" / "config.json").read_text())
    assert yaml.safe_load((folder / "config.yaml").read_text()) == to_dict(config)
    environment = json.loads((folder / "env.json").read_text())
    assert environment["seed"] == config.seed
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for stage in ("sft", "warmup", "align", "rlvr"):
        assert (folder / "stages" / stage / "final").is_dir()
    assert not list(folder.rglob("*.tmp")), "nothing half-written is left"


def test_results_follow_the_contract(micro_run):
    config, folder, results, _ = micro_run
    assert results == json.loads((folder / "results.json").read_text())
    assert results["task"] == "digits"
    assert results["n"] == config.data.num_heldout
    assert results["seed"] == config.seed
    assert set(results["stages"]) == {"base", "sft", "align", "rlvr"}
    for stage, figures in results["stages"].items():
        names = [*RATES, *(f"greedy_{name}" for name in RATES)]
        for name in names:
            low, high = figures["ci95"][name]
            assert 0 <= low <= figures[name] <= high <= 1, (stage, name)
        assert 1 <= figures["mean_tokens"] <= config.sampling.max_completion_tokens
        assert figures["seconds"] > 0


def test_each_step_is_logged_once_with_the_agreed_names(micro_run):
    config, folder, _, _ = micro_run
    lines = read_jsonl(folder / "metrics.jsonl")
    every = {"loss", "grad_norm", "learning_rate", "step_time", "mem/peak_gib"}
    sampled = {
        "num_tokens",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "malformed_rate",
        "entropy",
        "gen_tokens_per_s",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "kl_to_start",
    }
    game = {
        f"disc/{name}_{channel}"
        for name in ("ties", "margin", "score_teacher", "score_student")
        for channel in ("perception", "reasoning")
    } | {"disc/router_entropy"}
    game |= {
        f"form/{side}_{what}"
        for side in ("teacher", "student")
        for what in ("length", "bullets", "steps")
    }
    game |= {f"disc/expert_load_{k}" for k in range(config.discriminator.num_experts)}
    rewards = {"reward", "reward_std", "frac_reward_zero_std"}
    rewards |= {"rewards/accuracy/mean", "rewards/format/mean"}
    expected = {
        "sft": every | {"num_tokens", "train_tokens_per_s"},
        "warmup": game | {"learning_rate", "step_time", "mem/peak_gib"},
        "align": every | sampled | game,
        "rlvr": every | sampled | rewards,
    }
    for stage, names in expected.items():
        steps = [m for m in lines if m["stage"] == stage and "step_time" in m]
        assert [m["step"] for m in steps] == list(range(getattr(config, stage).steps))
        for line in steps:
            missing = names - set(line)
            assert not missing, (stage, line["step"], sorted(missing))
            for channel in ("perception", "reasoning"):  # where all pairs are ties there is none
                if f"disc/ties_{channel}" in line:
                    has_pairs = line[f"disc/ties_{channel}"] < 1
                    assert (f"disc/pair_accuracy_{channel}" in line) == has_pairs
            assert line["time_s"] >= 0
            numbers = [v for v in line.values() if isinstance(v, float)]
            assert all(abs(v) < 1e9 for v in numbers)  # finite
    kl = [m for m in lines if "kl" in m]
    assert not kl, "no KL term is on: absent is absent"


def test_rollout_records(micro_run):
    config, folder, _, _ = micro_run
    for stage in ("align", "rlvr"):
        settings = getattr(config, stage)
        for step in range(settings.steps):
            records = read_jsonl(folder / "rollouts" / f"{stage}-{step}.jsonl")
            assert len(records) == settings.prompts_per_step * settings.group_size
            assert len({record["prompt_id"] for record in records}) == settings.prompts_per_step
            for record in records:
                assert record["finish_reason"] in ("end", "length")
                assert isinstance(record["completion"], str) and record["picture_ids"]
                assert ("parts" in record) != ("malformed" in record)
                if stage == "align":
                    well = "parts" in record and record["finish_reason"] == "end"
                    assert ("scores" in record) == well
                else:
                    assert set(record["rewards"]) == {"accuracy", "format"}
            advantages = torch.tensor([record["advantage"] for record in records])
            means = advantages.view(-1, settings.group_size).mean(1)
            torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-5)


def test_each_stage_trains_from_the_one_before(micro_run):
    config, folder, _, _ = micro_run
    policies = {
        stage: load_file(folder / "stages" / stage / "final" / "policy.safetensors")
        for stage in ("sft", "align", "rlvr")
    }
    for before, after in (("sft", "align"), ("align", "rlvr")):
        rate = getattr(config, after).optim.learning_rate
        steps = getattr(config, after).steps
        moved = max(
            float((policies[after][k] - policies[before][k]).abs().max()) for k in policies[before]
        )
        # Adam moves a weight by about the learning rate a step: more would be another start
        assert 0 < moved <= 4 * rate * steps
    warm, played = (
        load_file(folder / "stages" / stage / "final" / "discriminator.safetensors")
        for stage in ("warmup", "align")
    )
    assert any(not torch.equal(warm[k], played[k]) for k in warm)
    exported = load_file(next((folder / "discriminator").glob("*.safetensors")))
    assert all(torch.equal(exported[k], played[k]) for k in played)


def greedy_by_plain_peft(config, folder, samples, monkeypatch):
    """transformers and PEFT alone, by the lines that the run's card gives.

    As the card says: on a CPU with AVX512-BF16 bitsandbytes repacks the weights in evaluation and
    rounds activations to bfloat16 (logits move by 0.05), which can flip a near-tie.
    """
    base = pipeline.base_folder(config)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "prism_lite" not in code.replace(base, "")
    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(code, names)
    model = names["policy"].eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    processor = load_processor(base)
    answers = []
    for sample in samples:
        messages = [
            {"role": "system", "content": [{"type": "text", "text": lessons.INSTRUCTION}]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": sample.question}],
            },
        ]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[sample.pictures[0].open()], return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=48)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    return answers


def test_plain_peft_gives_the_same_greedy_answers(micro_run, monkeypatch):
    config, folder, _, _ = micro_run
    task = load_task(config)
    samples = list(task.heldout)
    backbone = load_backbone(config.model, config.lora, pipeline.base_folder(config), seed=9)
    backbone.load_adapter_state(
        load_file(folder / "stages" / "rlvr" / "final" / "policy.safetensors")
    )
    groups = sample_groups(
        backbone,
        samples,
        group_size=1,
        sampling=SamplingConfig(temperature=0.0, max_completion_tokens=48),
        seed=("greedy",),
    )
    expected = [group.rollouts[0].text for group in groups]
    assert greedy_by_plain_peft(config, folder, samples, monkeypatch) == expected


def test_a_finished_run_is_not_repeated(micro_run, tmp_path):
    config, folder, results, _ = micro_run
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    metrics = (again / "metrics.jsonl").read_bytes()
    policy = {p.name: p.read_bytes() for p in (again / "policy").rglob("*.safetensors")}
    assert pipeline.run(config, again, console=quiet_console()) == results
    assert (again / "metrics.jsonl").read_bytes() == metrics
    assert {p.name: p.read_bytes() for p in (again / "policy").rglob("*.safetensors")} == policy


def test_other_settings_in_the_same_folder_are_refused_by_key(micro_run):
    _, folder, _, _ = micro_run
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"align\.alpha"):
        pipeline.run(micro_recipe(align__alpha=0.25), folder, console=quiet_console())
    assert (folder / "config.yaml").read_bytes() == before


def without_times(results):
    stages = {
        name: {k: v for k, v in figures.items() if k != "seconds"}
        for name, figures in results["stages"].items()
    }
    return json.dumps({k: v for k, v in results.items() if k != "seconds"} | {"stages": stages})


def test_the_same_seed_gives_the_same_results_and_bytes(micro_run, tmp_path):
    config, folder, results, _ = micro_run
    again = pipeline.run(config, tmp_path / "b", console=quiet_console())
    assert without_times(again) == without_times(results)
    ours = {p.relative_to(folder): p.read_bytes() for p in (folder / "policy").rglob("*.saf*")}
    other = tmp_path / "b"
    theirs = {p.relative_to(other): p.read_bytes() for p in (other / "policy").rglob("*.saf*")}
    assert ours and ours == theirs


def test_another_seed_gives_another_policy(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    pipeline.run(micro_recipe(seed=1), tmp_path / "c", stages=("sft",), console=quiet_console())
    first, second = (
        load_file(path / "stages" / "sft" / "final" / "policy.safetensors")
        for path in (folder, tmp_path / "c")
    )
    assert any(not torch.equal(first[k], second[k]) for k in first)
