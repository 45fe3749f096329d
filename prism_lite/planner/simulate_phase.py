"""Simulate one phase of a stage at full size: build the stand-in, run the real step, read the tracker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.config import RunConfig
from prism_lite.planner.architectures import Architecture
from prism_lite.planner.cards import Card
from prism_lite.planner.cpu_memory import separate_cpu_memory
from prism_lite.planner.fake_backbone import build_backbone, faking
from prism_lite.planner.fake_tensors import CARD, Simulation
from prism_lite.planner.steps import run_phase
from prism_lite.planner.tracker import Key, Peak, Tracker
from prism_lite.planner.workload import Phase, Workload

GIB = 2**30
NUM_DRAWS = 4  # tokens decoded in simulation: the second and the third tell how the rest grows


@dataclass(frozen=True)
class Simulated:
    """What one phase needs.

    Attributes:
        peak: bytes by category at the highest moment.
        seconds: of the phase's work at the card's stated peaks, or 0 for the CPU.
        num_repeats: how often a step repeats it (packs, prompts, batches of prompts).
    """

    phase: Phase
    peak: Peak
    seconds: float
    num_repeats: int

    @property
    def peak_gib(self) -> float:
        return self.peak.total / GIB

    @property
    def off_card_gib(self) -> float:
        """What waits in the CPU's memory at the highest moment."""
        return self.peak.off_card / GIB

    @property
    def by_category(self) -> dict[str, float]:
        """GiB by category at the highest moment."""
        return {name: num_bytes / GIB for name, num_bytes in self.peak.by_category.items()}


def simulate_phase(
    config: RunConfig, architecture: Architecture, card: Card | None, phase: Phase
) -> Simulated:
    """Simulate a phase; of a completion the first tokens are decoded."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = Tracker(vocab_size=architecture.config.text_config.vocab_size, card=card)
    num_tokens = config.sampling.max_completion_tokens
    device = CARD if card else torch.device("cpu")
    with card_memory(tracker) if card else contextlib.nullcontext():
        backbone = build_backbone(
            config, architecture, _compute_dtype(config, card), fake_mode, device
        )
        workload = Workload(backbone, config)
        run_phase(
            tracker,
            Simulation(tracker, fake_mode, on_card=card is not None),
            workload,
            phase,
            building=faking(fake_mode, device),
            on_card=card is not None,
            num_draws=min(NUM_DRAWS, num_tokens),
        )
    seconds = sum(region.seconds for region in tracker.regions.values())
    if phase.work == "sample" and num_tokens > NUM_DRAWS:
        seconds += _remaining_seconds(tracker.regions, num_tokens - NUM_DRAWS)
    return Simulated(phase, tracker.peak, seconds, workload.num_repeats(phase))


@contextlib.contextmanager
def card_memory(tracker: Tracker) -> Iterator[None]:
    """Allocate what Triton's kernels allocate, and separate the card's memory from the CPU's."""
    with mock.patch.dict(os.environ, PRISM_KERNELS="triton"), separate_cpu_memory(tracker):
        yield


def _compute_dtype(config: RunConfig, card: Card | None) -> torch.dtype:
    """Return the recipe's compute type; "auto" is float32 on a CPU, else what the card can do."""
    if config.model.compute_dtype != "auto":
        return getattr(torch, config.model.compute_dtype)
    if card is None:
        return torch.float32
    return torch.float16 if card.name == "T4" else torch.bfloat16


def _remaining_seconds(regions: Mapping[Key, Peak], num_remaining: int) -> float:
    """Seconds of the draws that are not simulated.

    A draw's region reaches to the next draw: the pass over all layers that follows it is in it. The rows'
    buffers have their full length from the start, so later draws need no more memory than the third; each
    takes longer than the one before by the time to read one more token's keys and values.
    """
    second, third = (regions["draw", number] for number in (NUM_DRAWS - 2, NUM_DRAWS - 1))
    assert second.total == third.total, "memory grows while decoding: simulate more draws"
    growth = third.seconds - second.seconds
    # third + growth, third + 2 * growth, ...: the sum of 1 to n is n * (n + 1) / 2
    return num_remaining * third.seconds + growth * num_remaining * (num_remaining + 1) / 2
