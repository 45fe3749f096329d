"""Simulate one phase of a stage: build the stand-in, run the real step, read the tracker."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.config import RunConfig
from prism_lite.planner.architectures import Architecture
from prism_lite.planner.cards import Card, seconds_on
from prism_lite.planner.cpu_memory import beside_card
from prism_lite.planner.extrapolate import (
    NUM_DRAWS,
    Depth,
    decoding_seconds,
    extend_decoding,
    extrapolate,
    extrapolate_seconds,
    small_depths,
)
from prism_lite.planner.fake_backbone import build_backbone, card_kernels, faking, tensors_of
from prism_lite.planner.fake_tensors import Simulation
from prism_lite.planner.resident import build_memory, fill_caches, settle
from prism_lite.planner.steps import run_phase
from prism_lite.planner.tracker import Key, Peak, Tracker
from prism_lite.planner.workload import PhaseName, Stage, Workload


@dataclass(frozen=True)
class Simulated:
    """What one phase needs.

    Attributes:
        peak: bytes by category at the highest moment.
        seconds: of the phase's work at the card's stated peaks, or 0 for the CPU.
        num_units: how often a step repeats it (packs, prompts, batches of prompts).
    """

    phase: PhaseName
    peak: Peak
    seconds: float
    num_units: int


def simulate_phase(
    config: RunConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    card: Card | None,
    stage: Stage,
    phase: PhaseName,
    *,
    has_host: bool,
) -> Simulated:
    """One phase at full size, from small runs (see `extrapolate.py`).

    Args:
        has_host: see `simulate_regions`.
    """
    num_deepstack = len(architecture.config.vision_config.deepstack_visual_indexes)
    full = full_depth(config, architecture.num_layers, phase)
    runs: dict[Depth, Mapping[Key, Peak]] = {}
    seconds: dict[Depth, float] = {}
    num_tokens = config.sampling.max_completion_tokens
    num_draws = min(NUM_DRAWS, num_tokens)
    num_units = 0
    tower_depth = min(architecture.tower_depth, num_deepstack + 1)
    for depth in small_depths(full, num_deepstack):
        regions, num_units = simulate_regions(
            config,
            architecture,
            dtype,
            card,
            stage,
            phase,
            depth,
            num_draws=num_draws,
            tower_depth=tower_depth,
            has_host=has_host,
        )
        counts = {"num_draws": num_draws, "num_tokens": num_tokens}
        if "tower" in (key[0] for key in regions):
            regions["tower",].seconds *= architecture.tower_depth / tower_depth
        if phase == "sample":
            seconds[depth] = decoding_seconds(regions, **counts)
            regions = extend_decoding(regions, **counts)
        else:
            seconds[depth] = sum(peak.seconds for peak in regions.values())
        runs[depth] = regions
    found = extrapolate(runs, full, num_deepstack)
    return Simulated(
        phase=phase,
        peak=max(found.values(), key=lambda peak: peak.total),
        seconds=extrapolate_seconds(seconds, full),
        num_units=num_units,
    )


def full_depth(config: RunConfig, num_layers: int, phase: PhaseName) -> Depth:
    """Layers below and from the first one that the phase trains (sampling trains none)."""
    if phase != "judge":
        return Depth(0, num_layers)
    adapted = max(1, round(num_layers * min(config.discriminator.adapted_fraction, 1.0)))
    return Depth(num_layers - adapted, adapted)


def simulate_regions(
    config: RunConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    card: Card | None,
    stage: Stage,
    phase: PhaseName,
    depth: Depth,
    *,
    num_draws: int,
    tower_depth: int,
    has_host: bool,
) -> tuple[dict[Key, Peak], int]:
    """Run a phase with so many layers and drawn tokens; regions, and its repetitions in a step.

    Args:
        has_host: what the settings move to the CPU is not in the memory that is counted (`host.py`).
    """
    if phase == "judge":
        fraction = depth.trained / depth.total
        config = dataclasses.replace(
            config, discriminator=dataclasses.replace(
                config.discriminator, adapted_fraction=fraction)
        )  # fmt: skip
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = Tracker(
        vocab_size=architecture.config.text_config.vocab_size,
        seconds_of=seconds_on(card) if card else None,
    )
    with (
        card_kernels() if card else contextlib.nullcontext(),
        beside_card(tracker) if has_host else contextlib.nullcontext(),
    ):
        backbone = build_backbone(
            config, architecture, dtype, fake_mode, num_layers=depth.total, tower_depth=tower_depth
        )
        memory = build_memory(
            config,
            backbone,
            stage,
            faking(fake_mode),
            on_card=card is not None,
            judged_layers=None if phase == "judge" else architecture.num_layers,
        )
        for category, tensors in tensors_of(backbone).items():
            tracker.seed(tensors, category)
        workload = Workload(backbone, config, num_draws)
        workload.prompts(1)  # tokenised before: what a run does when it starts
        with Simulation(tracker, fake_mode, on_card=card is not None):
            settle(tracker, backbone, memory)
            earlier = fill_caches(tracker, backbone, workload, memory, stage, phase)
            run_phase(tracker, config, backbone, workload, memory, stage, phase)
            del earlier
    return tracker.regions, workload.num_units(stage, phase)
