"""Plans: published sizes and a published run, every shipped recipe, what to lower, the command."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen3VLForConditionalGeneration

from prism_lite.__main__ import main
from prism_lite.digits.base_model import base_folder
from prism_lite.planner import cpu_memory, search
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import card_of
from prism_lite.planner.fake_backbone import StandInLinear4bit
from prism_lite.planner.fake_tensors import Simulation
from prism_lite.planner.plan import Plan, plan
from prism_lite.planner.simulate_phase import Simulated
from prism_lite.planner.tracker import CATEGORIES, Peak, Tracker
from prism_lite.planner.workload import Phase
from prism_lite.recipe import RECIPES, load_recipe, recipe_names, with_overrides
from tests.micro import micro_recipe
from tests.planning import Watch, card_regions

GIB = 2**30
# As predicted today, rounded up; the aims are 6.5, 7.5, 6 and 18 hours.
MOST_HOURS = {"t4-2b": 6.5, "rtx3060-2b": 7.5, "rtx4090-4b": 6.0, "a100-8b": 18.0}
CARDS = [name for name in recipe_names() if load_recipe(name).model.min_gpu_gib > 0]


@pytest.mark.parametrize(
    ("size", "total"), [("4B", 4_437_815_808), ("8B", 8_767_123_696)]
)  # the published counts of parameters
def test_sizes_add_up_to_the_published_totals(size, total):
    config = load_recipe("t4-2b", {"model.name": f"Qwen/Qwen3-VL-{size}-Instruct"})
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(architecture_of(config).config)
    assert sum(p.numel() for p in model.parameters()) == total


def test_a_model_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match="not known without a download"):
        plan(load_recipe("t4-2b", {"model.name": "someone/their-model"}))


def _state_tensors(layer):
    state = layer.weight.quant_state
    return [
        layer.weight, state.absmax, state.code, state.offset,
        state.state2.absmax, state.state2.code,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stand_in_of_a_linear_layer_is_bitsandbytes_own(dtype):
    """The same storages, and the same memory over a forward and a backward, as the real layer's."""
    real = bnb.nn.Linear4bit(192, 320, bias=False, compute_dtype=dtype, quant_type="nf4")
    real.weight.data = torch.randn(320, 192, dtype=dtype)
    real = real.to("cpu")
    real.support_avx512bf16_for_cpu = False
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_mode:
        stand_in = StandInLinear4bit(320, 192, dtype)
    found = []
    for layer, is_fake in ((real, False), (stand_in, True)):
        tracker = Tracker(vocab_size=1)
        tracker.seed(_state_tensors(layer), "weights")
        with fake_mode if is_fake else contextlib.nullcontext():
            x = torch.zeros(2, 64, 192, dtype=dtype, requires_grad=True)
        mode = Simulation(tracker, fake_mode, on_card=False) if is_fake else Watch(tracker)
        with mode:
            layer(x).square().sum().backward()
        sizes = [t.untyped_storage().nbytes() for t in _state_tensors(layer)]
        found.append((sizes, tracker.peak.total, tracker.peak.by_category))
    assert found[0] == found[1]
    assert found[0][0][0] == 320 * 192 // 2


@pytest.mark.slow
def test_unsloths_published_t4_run():
    """Qwen3-VL-8B, NF4, LoRA rank 16, 2 x 4 samples, 8-bit AdamW on a T4: 8.21 GiB reserved at the
    peak, 7.66 before the first step (printed in unslothai/notebooks, Qwen3_VL_(8B)-Vision).

    Differences, none of them modelled here: Unsloth's checkpoint keeps some layers in 16 bit (most of
    what is reserved after loading beyond 6.9 GiB), its adapters reach the vision tower too, it moves
    checkpoints to the CPU, and "reserved" counts the gaps between the allocator's blocks.
    """
    config = load_recipe(
        "t4-2b",
        {
            "model.name": "Qwen/Qwen3-VL-8B-Instruct",
            "model.max_prompt_tokens": 384,  # a picture of 256 visual tokens and a short question
            "model.max_pack_tokens": 1024,  # two samples
            "model.max_cached_pictures": 1,
            "sampling.max_completion_tokens": 128,
            "sft.batch_size": 8,
            "sft.optim.name": "adamw8bit",
        },
    )
    found = plan(config, stages=("sft",)).stages["sft"]
    assert 0.9 * 8.213 <= found.peak_gib <= 1.1 * 8.213
    assert found.by_category["weights"] == pytest.approx(6.7, abs=0.15)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_fits_its_card_and_says_how_tightly(name):
    """All stages simulated: 10 % of the card to spare; figures of header and README hold within 5 %."""
    planned = plan(load_recipe(name))
    reserved = {stage: s.reserved_gib for stage, s in planned.stages.items()}
    assert planned.fits, {stage: round(gib, 2) for stage, gib in reserved.items()}
    assert planned.hours is not None
    total, most = planned.hours.total, MOST_HOURS.get(name, float("inf"))
    assert total <= most, f"{total:.2f} hours"
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    (line,) = re.findall(r"# predicted, GiB reserved at the most: (.*) \(", header)
    stated = {stage: float(gib) for stage, gib in re.findall(r"(\w+) ([\d.]+)", line)}
    assert stated == {stage: pytest.approx(gib, rel=0.05) for stage, gib in reserved.items()}
    (line,) = re.findall(r"# predicted hours: (.*)\)", header)
    stated = [
        float(hours) for hours in re.findall(r"[\d.]+", line)
    ]  # in all, the stages, evaluation
    hours = [total, *planned.hours.stages.values(), planned.hours.evaluation]
    assert stated == [pytest.approx(value, rel=0.05, abs=0.06) for value in hours]
    readme = (RECIPES.parents[1] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \|.*$", readme, re.MULTILINE)
    assert [float(cell) for cell in row.split("|")[4:-1]] == [
        *(pytest.approx(gib, rel=0.05, abs=0.06) for gib in reserved.values()),
        pytest.approx(total, rel=0.05, abs=0.06),
    ]


def settings_of(**overrides):
    return load_recipe("rtx3060-2b", {k.replace("__", "."): v for k, v in overrides.items()})


def few_layers(config, num_layers):
    """The recipe's architecture with so many decoder layers and four layers in the tower."""
    architecture = architecture_of(config)
    architecture.config.text_config.num_hidden_layers = num_layers
    architecture.config.vision_config.depth = 4
    architecture.config.vision_config.deepstack_visual_indexes = [0, 1, 2]
    return architecture


def head_of(config, num_layers=4):
    """The SFT step's memory after the last layer's forward, on a card."""
    return card_regions(config, few_layers(config, num_layers), Phase("sft", "train"))["head", 1]


def test_offloaded_checkpoints_are_the_layers_inputs():
    """Of 5 layers: a pack of 2 samples, 2 x (1,024 + 512) tokens of 2,048 bfloat16 each."""
    settings = (settings_of(), settings_of(model__offload_checkpoints=True))
    plain, offloaded = (head_of(config, num_layers=5) for config in settings)
    inputs = 5 * 2 * (1024 + 512) * 2048 * 2
    assert (plain.off_card, offloaded.off_card) == (0, inputs)
    # the last one is in use itself
    saved = plain.by_category["activations"] - offloaded.by_category["activations"]
    assert inputs * 3 / 5 <= saved <= inputs


def test_tower_and_embeddings_on_the_cpu_are_off_the_card():
    common = {"model__name": "Qwen/Qwen3-VL-8B-Instruct", "sft__optim__name": "adamw8bit"}
    with torch.device("meta"):
        model: Any = Qwen3VLForConditionalGeneration(few_layers(settings_of(**common), 4).config)
    tower = sum(p.numel() for p in model.model.visual.parameters())
    tower -= sum(p.numel() for p in model.model.visual.patch_embed.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    plain = head_of(settings_of(**common))
    for setting, numbers in (("vision_on_cpu", tower), ("embeddings_on_cpu", embeddings)):
        moved = head_of(settings_of(**common, **{f"model__{setting}": True}))
        saved = plain.by_category["weights"] - moved.by_category["weights"]
        assert saved == moved.off_card == 2 * numbers, setting
    with pytest.raises(ValueError, match="output head"):
        head_of(settings_of(model__embeddings_on_cpu=True))


def test_paged_states_are_off_the_card_from_the_size_that_bitsandbytes_pages():
    """4 layers of the 4B with rank 16: only gate.B, up.B and down.A have 100,000 entries."""
    assert "p.numel() < 1e5" in inspect.getsource(bnb.optim.optimizer.Optimizer8bit)
    assert cpu_memory.PAGED_FROM == 100_000
    name = "Qwen/Qwen3-VL-4B-Instruct"
    paged = head_of(settings_of(model__name=name))
    kept = head_of(settings_of(model__name=name, sft__optim__name="adamw8bit"))
    assert paged.off_card == 4 * 3 * 9728 * 16 * 2 * 1
    assert kept.total - paged.total == paged.off_card
    assert kept.by_category["optimizer"] - paged.by_category["optimizer"] == paged.off_card


RLVR_TRAIN = Phase("rlvr", "train")


def simulated(gib: float, phase: Phase) -> Simulated:
    return Simulated(phase, Peak(int(gib * GIB), dict.fromkeys(CATEGORIES, 0)))


def made_plan(gib: float, phase: Phase = RLVR_TRAIN) -> Plan:
    return Plan("r", "m", card_of(10), {phase: simulated(gib, phase)})


def pretend_need(monkeypatch, need):
    """A need in GiB instead of a simulation; returns the settings that are asked for."""
    asked = []

    def phase_gib(config, _card, phase):
        asked.append(config)
        return need(config, phase)

    monkeypatch.setattr(search, "phase_gib", phase_gib)
    return asked


def test_what_fits_is_found_by_trying_few_values(monkeypatch):
    """2 GiB and one GiB per 1,000 pack tokens: 9 GiB of a card of 10 take 7,000, in steps of 512."""
    config = load_recipe("t4-2b", {"model.max_pack_tokens": 4000})
    asked = pretend_need(monkeypatch, lambda config, _: 2 + config.model.max_pack_tokens / 1000)
    found = {item.setting: item for item in search.find_largest(config, made_plan(6.0))}
    pack = found["model.max_pack_tokens"]
    assert (pack.now, pack.largest, pack.next_larger) == (4000, 6656, 7168)
    assert pack.peak_gib == pytest.approx(8.656)
    assert len({c.model.max_pack_tokens for c in asked}) <= 12
    group = found["align.group_size and rlvr.group_size"]
    assert (group.largest, group.next_larger) == (32, None), (
        "it costs nothing here: up to the limit"
    )
    too_large = with_overrides(config, {"model.max_pack_tokens": 16000})
    _, lowered = search.what_to_lower(too_large, made_plan(18.0))
    assert [(item.setting, item.largest) for item in lowered] == [("model.max_pack_tokens", 6656)]


def test_steps_and_other_phases_are_respected(monkeypatch):
    """A need that jumps, and a second phase that is small now and grows faster."""
    config = load_recipe("t4-2b", {"model.max_pack_tokens": 2048})
    planned = made_plan(4.0)
    sft = Phase("sft", "train")
    planned.phases[sft] = simulated(2.5, sft)

    def need(config, phase):
        tokens = config.model.max_pack_tokens
        return tokens * 2.5 / 2048 if phase == sft else 3 + tokens // 1024 / 2

    pretend_need(monkeypatch, need)
    found = {item.setting: item for item in search.find_largest(config, planned)}
    pack = found["model.max_pack_tokens"]
    assert (pack.largest, pack.next_larger) == (7168, 7680), "sft: 2.5 GiB per 2,048 tokens in 9"
    assert pack.peak_gib == pytest.approx(8.75)


def test_where_no_setting_is_enough_alone_two_are_lowered_together(monkeypatch):
    """Rows decide one phase and the pack another: 9 GiB take 18 rows and 2,304 tokens."""
    config = load_recipe("t4-2b", {"model.max_pack_tokens": 4096, "sampling.max_rows": 32})
    planned = made_plan(16.0, Phase("warmup", "judge"))
    sampling = Phase("align", "sample")
    planned.phases[sampling] = simulated(16.0, sampling)

    def need(config, phase):
        return (
            config.sampling.max_rows / 2
            if phase == sampling
            else config.model.max_pack_tokens / 256
        )

    pretend_need(monkeypatch, need)
    title, (rows, pack) = search.what_to_lower(config, planned)
    assert "together" in title
    assert (rows.setting, rows.now, rows.largest) == ("sampling.max_rows", 32, 18)
    assert (pack.setting, pack.now, pack.largest) == ("model.max_pack_tokens", 4096, 2048)


def test_settings_that_contradict_one_another_are_too_small(monkeypatch):
    config = load_recipe("t4-2b", {"model.max_pack_tokens": 4096})

    def need(config, _phase):
        if config.model.max_pack_tokens < 1536:
            raise ValueError("a prompt with one completion does not fit")
        return config.model.max_pack_tokens / 256

    pretend_need(monkeypatch, need)
    _, found = search.what_to_lower(config, made_plan(16.0))
    lowered = {item.setting: item for item in found}
    assert lowered["model.max_pack_tokens"].largest == 2048


def test_what_moving_saves_is_simulated_and_added_up(monkeypatch):
    """A part that fits keeps its need; settings that are on already are not offered."""
    config = load_recipe("rtx4090-8b", {"model.vision_on_cpu": True})

    def need(config, _phase):
        model = config.model
        return 12 - 2 * model.offload_checkpoints - 1.5 * model.embeddings_on_cpu

    asked = pretend_need(monkeypatch, need)
    found = search.what_to_move(config, made_plan(12.0))
    assert [(item.settings, item.saved_gib, item.peak_gib, item.fits) for item in found] == [
        ("model.offload_checkpoints=true", 2.0, 10.0, False),
        ("model.embeddings_on_cpu=true", 1.5, 10.5, False),
        ("model.picture_cache_gib=0.25", 0.0, 12.0, False),
        ("all of these", 3.5, 8.5, True),
    ]
    assert len(asked) == 4
    assert search.what_to_move(config, made_plan(8.0)) == []
    tied = load_recipe("rtx4090-4b", {"rlvr.optim.name": "adamw"})
    names = [item.settings for item in search.what_to_move(tied, made_plan(12.0))]
    assert names == [
        "model.offload_checkpoints=true",
        "model.vision_on_cpu=true",
        "model.picture_cache_gib=0.25",
        "rlvr.optim.name=paged_adamw8bit",
        "all of these",
    ]


def test_plan_command_prints_the_agreed_json(capsys):
    assert main(["plan", "--recipe", "tiny", "--card", "8", "--json", "tiny.num_layers=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["card_gib"] == 8
    assert list(found["stages"]) == ["sft", "warmup", "align", "rlvr"]
    hours = [stage["hours"] for stage in found["stages"].values()]
    assert found["hours"] == pytest.approx(sum(hours) + found["evaluation_hours"], abs=0.03)
    assert found["colab_sessions"] == 1 and "CUDA graph" in found["decoding"]
    for stage in found["stages"].values():
        assert set(stage) == {"peak_gib", "reserved_gib", "by_category", "hours", "step_s"}
        assert stage["reserved_gib"][0] == stage["peak_gib"] < stage["reserved_gib"][1]
        assert set(stage["by_category"]) == set(CATEGORIES)
        assert stage["peak_gib"] == pytest.approx(sum(stage["by_category"].values()), abs=0.005)
        assert stage["peak_gib"] > 0


def test_a_local_folder_is_planned_like_the_model_it_holds(micro_cache, capsys, tmp_path):
    """The tiny model's own folder, tokenizer included, and the same without its tokenizer."""
    config = micro_recipe(tiny__steps=0)
    folder = base_folder(config)
    named = plan(config, stages=("sft",)).to_json()
    assert plan(with_overrides(config, {"model.name": folder}), stages=("sft",)).to_json() == named
    (tmp_path / "config.json").write_text(Path(folder, "config.json").read_text())
    assert main(["plan", f"model.name={tmp_path}"]) == 2
    assert "contains no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "tiny", "--find"], "--find needs a card"),
        (["--card", "0"], "1 to 1024"),
        (["--card", "abc"], "--card abc: expected"),
        (["--recipe", "t4-3b"], "no recipe 't4-3b'"),
        (["model.name=/nowhere/qwen-2b"], "this folder does not exist"),
        (["model.name={tmp}"], "not the folder of a Qwen3-VL"),
        (["model.name={tmp}/bert"], "is a bert"),
        (["model.name={tmp}/broken"], "not the folder of a Qwen3-VL"),
        (["--recipe", "t4-2b", "model.embeddings_on_cpu=true"], "output head"),
    ],
)
def test_plan_refuses_in_one_sentence(arguments, words, capsys, tmp_path):
    for name, text in (("bert", '{"model_type": "bert"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert main(["plan", *(a.format(tmp=tmp_path) for a in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1 and error.startswith("prism-lite: ")
