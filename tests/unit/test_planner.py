"""The memory planner: simulated steps against the same steps on real tensors, to the byte.

And what it simulates with: the stand-in of a quantised linear layer against bitsandbytes' own, small
runs continued to all layers against full runs, the published sizes against the published totals.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from prism_lite.models.backbone import load_backbone
from prism_lite.pipeline import base_folder
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.phases import build_memory, fill_caches, run_phase, settle
from prism_lite.planner.run import full_depth, simulate_phase, simulate_regions
from prism_lite.planner.stand_in import tensors_of
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


def real_regions(config, stage, phase):
    """The phase on the real tiny model, quantised by bitsandbytes, with real numbers."""
    backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
    memory = build_memory(config, backbone, stage, contextlib.nullcontext(), on_card=False)
    tracker = Tracker(vocab_size=backbone.core.config.text_config.vocab_size)
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


@pytest.mark.parametrize(("stage", "phase"), ALL_PHASES)
def test_simulation_agrees_with_the_real_step_to_the_byte(micro_cache, stage, phase):
    """Every region's peak: each layer forward and backward, head, optimizer, each drawn token."""
    config = small_recipe(discriminator__trunk="sft")
    real = real_regions(config, stage, phase)
    architecture = architecture_of(config)
    simulated, _ = simulate_regions(
        config, architecture, torch.float32, None, stage, phase,
        full_depth(config, architecture.num_layers, phase),
        num_draws=NUM_DRAWS, tower_depth=architecture.tower_depth,
    )  # fmt: skip
    assert simulated.keys() == real.keys()
    for key, peak in real.items():
        assert (simulated[key].total, simulated[key].by_category) == (
            peak.total,
            peak.by_category,
        ), key
    highest = max(real.values(), key=lambda peak: peak.total)
    assert highest.total == sum(highest.by_category.values())
    assert highest.by_category["weights"] > 0 and highest.by_category["adapters"] > 0


@pytest.mark.parametrize(("stage", "phase"), ALL_PHASES)
@pytest.mark.slow
def test_few_layers_and_tokens_give_the_full_run_to_the_byte(micro_cache, stage, phase):
    config = small_recipe(
        tiny__num_layers=9, tiny__vision_depth=5, discriminator__adapted_fraction=0.34,
        sampling__max_completion_tokens=9,
    )  # fmt: skip
    architecture = architecture_of(config)
    full, _ = simulate_regions(
        config, architecture, torch.float32, None, stage, phase,
        full_depth(config, 9, phase), num_draws=9, tower_depth=5,
    )  # fmt: skip
    peak = max(full.values(), key=lambda peak: peak.total)
    found = simulate_phase(config, architecture, torch.float32, None, stage, phase).peak
    assert (found.total, found.by_category) == (peak.total, peak.by_category)
