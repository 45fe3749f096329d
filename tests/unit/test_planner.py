"""The memory planner: simulated steps against the same steps on real tensors, to the byte.

And small runs continued to all layers against full runs.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import load_backbone
from prism_lite.planner import cpu_memory
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cpu_memory import beside_card
from prism_lite.planner.fake_backbone import tensors_of
from prism_lite.planner.resident import build_memory, fill_caches, settle
from prism_lite.planner.simulate_phase import full_depth, simulate_phase, simulate_regions
from prism_lite.planner.steps import run_phase
from prism_lite.planner.tracker import Tracker, Watch
from prism_lite.planner.workload import PHASES, Workload
from tests.micro import micro_recipe

ALL_PHASES = [(stage, phase) for stage, phases in PHASES.items() for phase in phases]
NUM_DRAWS = 4


def small_recipe(**overrides):
    return micro_recipe(
        **{
            "tiny__steps": 0,
            "model__gradient_checkpointing": True,
            "model__max_cached_pictures": 8,
            "sampling__max_completion_tokens": 6,
            "discriminator__max_part_tokens": 16,
            "warmup__num_prompts": 3,
        }
        | overrides
    )


def real_regions(config, stage, phase, *, has_host=False):
    """The phase on the real tiny model, quantised by bitsandbytes, with real numbers."""
    vocab_size = architecture_of(config).config.text_config.vocab_size
    tracker = Tracker(vocab_size=vocab_size)
    with beside_card(tracker) if has_host else contextlib.nullcontext():
        backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
        memory = build_memory(config, backbone, stage, contextlib.nullcontext(), on_card=False)
        for category, tensors in tensors_of(backbone).items():
            tracker.seed(tensors, category)
        workload = Workload(backbone, config, NUM_DRAWS)
        workload.prompts(1)
        with Watch(tracker):
            settle(tracker, backbone, memory)
            earlier = fill_caches(tracker, backbone, workload, memory, stage, phase)
            run_phase(tracker, config, backbone, workload, memory, stage, phase)
            del earlier
    return tracker.regions


def simulated_regions(config, stage, phase, *, has_host=False):
    architecture = architecture_of(config)
    regions, _ = simulate_regions(
        config, architecture, torch.float32, None, stage, phase,
        full_depth(config, architecture.num_layers, phase),
        num_draws=NUM_DRAWS, tower_depth=architecture.tower_depth, has_host=has_host,
    )  # fmt: skip
    return regions


def check_same(simulated, real):
    assert simulated.keys() == real.keys()
    for key, peak in real.items():
        other = simulated[key]
        assert (other.total, other.by_category, other.off_card) == (
            peak.total,
            peak.by_category,
            peak.off_card,
        ), key


@pytest.mark.parametrize(("stage", "phase"), ALL_PHASES)
def test_simulation_agrees_with_the_real_step_to_the_byte(micro_cache, stage, phase):
    """Every region's peak: each layer forward and backward, head, optimizer, each drawn token."""
    config = small_recipe(discriminator__trunk="sft")
    real = real_regions(config, stage, phase)
    check_same(simulated_regions(config, stage, phase), real)
    highest = max(real.values(), key=lambda peak: peak.total)
    assert highest.total == sum(highest.by_category.values())
    assert highest.by_category["weights"] > 0 and highest.by_category["adapters"] > 0
    assert highest.off_card == 0


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize(
    ("stage", "phase"), [("sft", "train"), ("align", "judge"), ("align", "sample")]
)
def test_what_waits_on_the_cpu_agrees_with_the_real_step_to_the_byte(
    micro_cache, monkeypatch, stage, phase
):
    """Checkpoints, vision tower and optimizer states: on neither side are they on the card."""
    monkeypatch.setattr(cpu_memory, "PAGED_FROM", 200)  # the micro adapters are small
    plain = small_recipe(
        sft__optim__name="adamw8bit", align__optim__name="adamw8bit",
        discriminator__optim__name="adamw8bit",
    )  # fmt: skip
    moved = small_recipe(
        model__offload_checkpoints=True, model__vision_on_cpu=True,
        sft__optim__name="paged_adamw8bit", align__optim__name="paged_adamw8bit",
        discriminator__optim__name="paged_adamw8bit",
    )  # fmt: skip
    real = real_regions(moved, stage, phase, has_host=True)
    check_same(simulated_regions(moved, stage, phase, has_host=True), real)
    before = real_regions(plain, stage, phase, has_host=True)
    for key in real.keys() & before.keys():
        if key[0] in ("forward", "backward", "head", "draw", "optimizer"):  # no visit of the tower
            assert real[key].by_category["weights"] < before[key].by_category["weights"], key
            assert real[key].by_category["optimizer"] < before[key].by_category["optimizer"], key
            assert real[key].off_card > before[key].off_card == 0, key
    if phase == "train":
        names = {key[0] for key in real}
        assert {"forward", "backward", "head", "optimizer"} <= names
        last = real["head", 1], before["head", 1]
        assert last[0].by_category["activations"] < last[1].by_category["activations"]


@pytest.mark.parametrize("settings", [{}, {"model__offload_checkpoints": True}])
@pytest.mark.parametrize(("stage", "phase"), ALL_PHASES)
@pytest.mark.slow
def test_few_layers_and_tokens_give_the_full_run_to_the_byte(micro_cache, stage, phase, settings):
    config = small_recipe(
        tiny__num_layers=9, tiny__vision_depth=5, discriminator__adapted_fraction=0.34,
        sampling__max_completion_tokens=9, **settings,
    )  # fmt: skip
    has_host = bool(settings)
    architecture = architecture_of(config)
    full, _ = simulate_regions(
        config, architecture, torch.float32, None, stage, phase,
        full_depth(config, 9, phase), num_draws=9, tower_depth=5, has_host=has_host,
    )  # fmt: skip
    peak = max(full.values(), key=lambda peak: peak.total)
    found = simulate_phase(
        config, architecture, torch.float32, None, stage, phase, has_host=has_host
    ).peak
    assert (found.total, found.by_category, found.off_card) == (
        peak.total,
        peak.by_category,
        peak.off_card,
    )
