"""One step of every stage on the run's own model, with the largest rows of its data, before the run begins.

What does not fit is then met in the first minutes and not after an hour of SFT. The steps and what is in
memory around them are those of a plan (steps.py); here the card itself counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Collection, Sequence
from typing import Any

import torch

from prism_lite.config import RunConfig
from prism_lite.config.checks import plays_game
from prism_lite.models.backbone import REFERENCE, TRUNK, Backbone
from prism_lite.models.device import release_unused
from prism_lite.planner.simulate_phase import NUM_DRAWS
from prism_lite.planner.steps import run_phase
from prism_lite.planner.workload import CELL, Phase, Workload, phases_of
from prism_lite.types import Sample, Stage


class _CardCounts:
    """The members of a tracker that `run_phase` uses, where nothing has to be counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def free_bytes(self) -> int | None:
        """The card's memory that new tensors can take; None on a CPU."""
        if self._device.type == "cpu":
            return None
        free, _ = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        return free + reserved - torch.cuda.memory_allocated(self._device)

    def seed(self, *_args: Any) -> None: ...
    def mark(self, _key: Any) -> None: ...


def rehearsed_phases(config: RunConfig, stages: Collection[Stage]) -> list[Phase]:
    """Return what the steps of these stages consist of."""
    has_game = plays_game(config)
    return [
        phase
        for phase in phases_of(config)
        if phase.stage in stages and (has_game or phase.work not in ("judge", "panel"))
    ]


def config_of_largest_rows(
    config: RunConfig, backbone: Backbone, samples: Sequence[Sample]
) -> RunConfig:
    """Return the settings with the longest prompt and the largest pictures of the rows as limits.

    A plan's rows are as large as the settings allow; those of the data may be smaller. Completions that are
    sampled may always be as long as the settings allow.
    """
    prompts = [backbone.prompt(sample) for sample in samples]
    longest = max(map(len, prompts), default=config.model.max_prompt_tokens)
    num_visual = max((int(prompt.is_picture_P.sum()) for prompt in prompts), default=0)
    pixels = min(config.model.max_pixels, max(num_visual, 1) * CELL**2)
    model = dataclasses.replace(config.model, max_prompt_tokens=longest, max_pixels=pixels)
    return dataclasses.replace(config, model=model)


def with_longest_demonstration(
    config: RunConfig, backbone: Backbone, samples: Sequence[Sample]
) -> RunConfig:
    """Return the settings with the longest demonstration as the length of SFT's completions."""
    lengths = [len(backbone.tokenize(sample.demonstration or "")) for sample in samples]
    longest = max(lengths, default=config.sampling.max_completion_tokens)
    sampling = dataclasses.replace(config.sampling, max_completion_tokens=longest)
    return dataclasses.replace(config, sampling=sampling)


def rehearse(backbone: Backbone, config: RunConfig, phase: Phase) -> None:
    """Run one phase; weights, adapters and random numbers are afterwards what they were."""
    policy = backbone.adapter_state()
    devices = [] if backbone.device.type == "cpu" else [backbone.device]
    tracker: Any = _CardCounts(backbone.device)
    mode: Any = contextlib.nullcontext()
    try:
        with torch.random.fork_rng(devices):
            run_phase(
                tracker,
                mode,
                Workload(backbone, config),
                phase,
                building=contextlib.nullcontext(),
                on_card=backbone.device.type == "cuda",
                num_draws=min(NUM_DRAWS, config.sampling.max_completion_tokens),
            )
    finally:
        for adapter in (TRUNK, REFERENCE):
            backbone.drop_adapter(adapter)
        for parameter in backbone.policy_parameters():
            parameter.grad = None
        backbone.load_adapter_state(policy)
        gc.collect()
        release_unused(backbone.device)
