"""Exports of a micro run: the files, the checks, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from prism_lite.cli.trained import evaluate_run
from prism_lite.deploy import export, hub, merge
from prism_lite.deploy.load import load_stage
from prism_lite.deploy.reward_function import discriminator_reward
from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import load_backbone
from prism_lite.recipe import read_run
from tests.micro import fill_adapter, micro_recipe, quiet_console
from tests.pipeline.test_command_line import check_refused, in_process


@pytest.fixture(scope="module")
def big_run(micro_run, tmp_path_factory):
    """The micro run with an adapter so large that a lost or doubled merge is noticed."""
    import shutil

    from prism_lite.runs.checkpoint import save_final

    _, folder, _, _ = micro_run
    copy = tmp_path_factory.mktemp("big") / "run"
    shutil.copytree(folder, copy)
    config = read_run(copy)
    backbone = load_stage(copy, config, "rlvr")
    fill_adapter(backbone, scale=0.1)
    save_final(copy / "stages" / "rlvr", {"policy": backbone.adapter_state()})
    return copy


@pytest.fixture(scope="module")
def merged(big_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "policy"
    record = export.export_merged(big_run, out, bound=10.0, console=quiet_console())
    return out, record


def by_hand(base: torch.nn.Module, state: dict, config) -> dict[str, torch.Tensor]:
    """W + alpha / r B A for every adapted linear."""
    weights = {k: v.clone() for k, v in base.state_dict().items()}
    scale = config.lora.alpha / config.lora.rank
    for name, a in state.items():
        if "lora_A" in name:
            b = state[name.replace("lora_A", "lora_B")]
            key = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            weights[key] = weights[key] + scale * (b @ a)
    return weights


def test_merged_weights_are_those_computed_by_hand(big_run, merged):
    out, _ = merged
    config = read_run(big_run)
    base = AutoModelForImageTextToText.from_pretrained(base_folder(config))
    expected = by_hand(base, load_stage(big_run, config, "rlvr").adapter_state(), config)
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert type(model) is Qwen3VLForConditionalGeneration
    changed = 0
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
        changed += not torch.equal(weight, base.state_dict()[name])
    assert changed == 7 * config.tiny.num_layers


def test_the_record_says_what_was_compared(merged):
    out, record = merged
    assert json.loads((out / "export.json").read_text()) == record
    exact, moved = record["merged_against_base_and_adapter"], record["merged_against_trained"]
    assert exact["largest"] < exact["tolerance"] == 1e-3
    assert exact["num_tokens"] > 50 and record["dtype"] == "float32"
    # NF4 changed the base: the trained policy is a different function
    assert moved["mean"] > 10 * exact["largest"]
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and f"{moved['mean']:.2g}" in card


def test_dequantised_weights_give_the_trained_policy(big_run, tmp_path):
    record = export.export_merged(
        big_run, tmp_path / "d", weights="dequantised", bound=1e-3, console=quiet_console()
    )
    assert record["merged_against_trained"]["largest"] < 1e-3
    config, console = read_run(big_run), quiet_console()
    trained = evaluate_run(big_run, "rlvr", console=console)
    merged = evaluate_run(big_run, model=str(tmp_path / "d"), console=console)
    assert merged == trained
    assert trained["n"] == config.data.num_heldout


def test_a_policy_too_far_from_the_trained_one_is_refused(big_run, tmp_path):
    with pytest.raises(ValueError, match=r"--bound 1e-06.*--weights dequantised"):
        export.export_merged(big_run, tmp_path / "m", bound=1e-6, console=quiet_console())
    assert list(tmp_path.iterdir()) == []


def test_merged_weights_that_do_something_else_are_refused(big_run, tmp_path, monkeypatch):
    """As if a file on the disk were not what was merged: the reloaded folder is compared."""
    load = AutoModelForImageTextToText.from_pretrained

    def damaged(path, **settings):
        model = load(path, **settings)
        if Path(path).name.startswith(".m-"):
            with torch.no_grad():
                model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.05)
        return model

    monkeypatch.setattr(merge.AutoModelForImageTextToText, "from_pretrained", damaged)
    with pytest.raises(RuntimeError, match="more than rounding explains"):
        export.export_merged(big_run, tmp_path / "m", bound=10.0, console=quiet_console())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_base_keeps_its_type_and_the_stated_tolerance(micro_cache, task, tmp_path, dtype):
    config = micro_recipe()
    base = tmp_path / "base"
    model = AutoModelForImageTextToText.from_pretrained(base_folder(config), dtype=dtype)
    model.save_pretrained(base)
    backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
    backbone.processor.save_pretrained(save_directory=base)
    fill_adapter(backbone, scale=0.1)
    completions = [
        merge.Completion(
            backbone.prompt(sample),
            tuple(backbone.tokenize(sample.demonstration).tolist()),
        )
        for sample in task.sft[:4]
    ]
    out = tmp_path / "merged"
    unmerged, merged_dtype = merge.merge_policy(
        backbone, str(base), completions, weights="original", save=lambda m: m.save_pretrained(out)
    )
    again = merge.reload_logprobs(out, backbone.processor.image_processor, completions)
    assert merged_dtype == dtype
    assert merge.distance(again, unmerged).largest <= merge.MERGE_TOLERANCE[dtype]


def test_plain_transformers_agrees_with_the_packed_forward(random_backbone, task):
    backbone = random_backbone
    completions = [
        merge.Completion(backbone.prompt(s), (5, 9, 17, backbone.end_id)) for s in task.sft[:3]
    ]
    packed = merge.trained_logprobs(backbone, completions)
    plain = merge.plain_logprobs(backbone.core, backbone.processor.image_processor, completions)
    assert merge.distance(packed, plain).largest < 1e-4
    assert merge.distance(packed, plain).num_tokens == 12


def test_a_merge_is_computed_and_verified_in_full_float32(
    micro_cache, random_backbone, task, monkeypatch
):
    """Loading the policy for a newer card lets the process use TF32, which rounds to 1e-3."""
    used = []

    def note(function):
        @functools.wraps(function)  # transformers reads the arguments' names
        def noted(*args, **kwargs):
            used.append((function.__name__, torch.get_float32_matmul_precision()))
            return function(*args, **kwargs)

        return noted

    for noted_class, name in ((Qwen3VLForConditionalGeneration, "forward"), (LoraLinear, "merge")):
        monkeypatch.setattr(noted_class, name, note(getattr(noted_class, name)))
    torch.set_float32_matmul_precision("high")
    config = micro_recipe(tiny__steps=0, model__quantization="none")
    ids = tuple(random_backbone.tokenize("so").tolist())
    completions = [merge.Completion(random_backbone.prompt(task.heldout[0]), ids)]
    merge.merge_policy(
        random_backbone, base_folder(config), completions, weights="original", save=lambda _: None
    )
    assert {name for name, _ in used} == {"forward", "merge"}
    assert {precision for _, precision in used} == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"


def test_what_cannot_be_exported(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    (tmp_path / "full").mkdir()
    merge_to = ("export", "--run", folder, "--merge", "--out")
    check_refused(in_process(*merge_to, tmp_path / "full"), "exists already")
    check_refused(in_process(*merge_to, tmp_path / "m", "--stage", "base"), "base")
    check_refused(
        in_process("export", "--run", tmp_path, "--merge", "--out", tmp_path / "m"), "run"
    )
    check_refused(
        in_process(
            "export", "--run", folder, "--discriminator", "--out", tmp_path / "m", "--stage", "sft"
        ),
        "sft",
    )
    check_refused(in_process(*merge_to, tmp_path / "m", "--seed=3"), "takes no settings")
    assert not (tmp_path / "m").exists()


def test_the_discriminator_as_a_reward_function(micro_run, task, tmp_path):
    config, folder, _, _ = micro_run
    console = quiet_console()
    out = export.export_discriminator(folder, tmp_path / "d", console=console)
    reward = discriminator_reward(out, alpha=0.25)
    samples = task.heldout[:3]
    prompts = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": s.question}]}]
        for s in samples
    ]
    images = [[picture.open() for picture in s.pictures] for s in samples]
    completions = [s.teacher for s in samples[:2]] + ["no parts at all"]
    rewards = reward(prompts, completions, images=images, answer=["?"] * 3)

    backbone = load_stage(folder, config, "sft")
    from safetensors.torch import load_file

    from prism_lite import parts
    from prism_lite.discriminator.model import discriminator_for
    from prism_lite.models.backbone import TRUNK

    if config.discriminator.trunk == "sft":
        backbone.freeze_copy(TRUNK)
    discriminator = discriminator_for(backbone, config.discriminator, seed=0)
    discriminator.load_state_dict(load_file(folder / "discriminator" / "discriminator.safetensors"))
    with torch.no_grad(), backbone.role("discriminator"):
        scores = [
            discriminator.score(backbone, [(backbone.prompt(s), (parts.parse(s.teacher),))])
            for s in samples[:2]
        ]
    expected = [0.25 * float(s.perception_K[0]) + 0.75 * float(s.reasoning_K[0]) for s in scores]
    assert rewards[:2] == pytest.approx(expected, abs=1e-4)
    assert rewards[2] == -config.discriminator.score_cap
    one_picture = reward(prompts[:1], completions[:1], image=[images[0][0]])
    assert one_picture == pytest.approx(expected[:1], abs=1e-4)
    # likelihood counts relative to the teacher, or to the first completion of the same prompt
    prompt = backbone.prompt(samples[0])
    with torch.no_grad(), backbone.role("discriminator"):
        pair = discriminator.score(backbone, [(prompt, [*map(parts.parse, completions[:2])])])
    mixed = (0.25 * pair.perception_K + 0.75 * pair.reasoning_K).tolist()
    assert abs(mixed[1] - expected[1]) > 3e-4, "alone it would have another score"
    together = reward(
        [prompts[0], prompts[1], prompts[0]],
        [completions[0], "malformed", completions[1]],
        images=[images[0], images[1], images[0]],
    )
    assert together[::2] == pytest.approx(mixed, abs=1e-4)
    with_teacher = reward(prompts[:1], completions[1:2], images=images[:1], teacher=completions[:1])
    assert with_teacher == pytest.approx(mixed[1:], abs=1e-4)


def test_gguf_commands_name_the_folder_and_the_types(tmp_path):
    language, vision = map(shlex.split, hub.gguf_commands(tmp_path / "with space", "q8_0"))
    folder = str(tmp_path / "with space")
    assert language[1:3] == vision[1:3] == ["llama.cpp/convert_hf_to_gguf.py", folder]
    assert language[3:] == ["--outfile", f"{folder}/model-q8_0.gguf", "--outtype", "q8_0"]
    assert vision[3:] == ["--outfile", f"{folder}/mmproj-f16.gguf", "--outtype", "f16", "--mmproj"]


def test_export_prints_the_gguf_commands_and_runs_nothing(big_run, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    out = tmp_path / "m"
    arguments = ("--merge", "--bound", 10, "--gguf", "bf16", "--out", out)
    done = in_process("export", "--run", big_run, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == hub.gguf_commands(out, "bf16")
    assert not list(out.glob("*.gguf"))


def test_push_uploads_the_folder_and_says_what_the_hub_refused(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, repository, **settings):
            calls.append(("create", repository, settings))

        def upload_folder(self, **settings):
            calls.append(("upload", settings))
            if settings["repo_id"] == "mine/closed":
                raise OSError("403 Forbidden")
            return dataclasses.make_dataclass("Commit", ["commit_url"])("https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert hub.push_folder(tmp_path, "mine/policy") == "https://hub/commit"
    assert calls[0] == ("create", "mine/policy", {"private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == str(tmp_path)
    with pytest.raises(ValueError, match="hf auth login"):
        hub.push_folder(tmp_path, "mine/closed")


@pytest.mark.parametrize(
    ("capability", "free_share", "moves"),
    [((8, 0), 1.3, True), ((8, 0), 1.1, False), ((7, 5), 1.3, False)],
)
def test_verification_runs_on_a_gpu_with_room_and_the_type(
    monkeypatch, capability, free_share, moves
):
    """Decisions for a GPU that this machine lacks: the move is recorded instead of made."""
    model = torch.nn.Linear(100, 100, dtype=torch.bfloat16)
    num_bytes = 2 * (100 * 100 + 100)
    moved = []
    monkeypatch.setattr(type(model), "dtype", torch.bfloat16, raising=False)
    monkeypatch.setattr(model, "cuda", lambda: moved.append(True) or model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_share * num_bytes), 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert merge.place(model) is model
    assert bool(moved) == moves
