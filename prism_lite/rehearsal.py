"""The rehearsal before a run on a card: one step of every stage with its largest rows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.planner.rehearsal import (
    config_of_largest_rows,
    rehearse,
    rehearsed_phases,
    with_longest_demonstration,
)
from prism_lite.runs.peak_memory import start_peak
from prism_lite.stages.context import Context
from prism_lite.stages.memory import context_with_less_memory, free_memory
from prism_lite.types import Stage


def rehearse_stages(context: Context, stages: Sequence[Stage]) -> Context:
    """Take one step of every stage that has not begun, with the largest rows of the run.

    Returns:
        The context that the stages use: with fewer rows at once, or smaller packs, where memory was short.

    Raises:
        RuntimeError: the card has too little memory for the smallest; names the stage and what helps.
    """
    device = context.backbone.device
    new: list[Stage] = [stage for stage in stages if not context.run.stage(stage).exists()]
    phases = rehearsed_phases(context.config, new)
    if not phases:
        return context
    started_s = time.monotonic()
    start_peak(device)
    largest = _largest(context)
    for phase in phases:
        while True:
            try:
                config = largest["sft" if phase.stage == "sft" else "others"]
                rehearse(context.backbone, config, phase)
                break
            except (RuntimeError, MemoryError) as error:
                activity = f"the rehearsal of stage {phase.stage}"
                context = context_with_less_memory(context, error, activity)
                largest = _largest(context)
            free_memory()
    reserved_gib = torch.cuda.max_memory_reserved(device) / 2**30
    rehearsed = ", ".join(dict.fromkeys(phase.stage for phase in phases))
    say(
        context.run.console,
        f"rehearsal: a step of {rehearsed} with the largest rows fits, {reserved_gib:.1f} GiB "
        f"({time.monotonic() - started_s:.0f} s; --no-rehearsal skips it)",
    )
    return context


def _largest(context: Context) -> dict[str, RunConfig]:
    """Return the settings of the run's largest rows: with SFT's demonstrations, and of the other stages."""
    backbone, task = context.backbone, context.task
    rows = [*task.sft, *task.warmup, *task.align, *task.rlvr]
    config = config_of_largest_rows(context.config, backbone, rows)
    return {"sft": with_longest_demonstration(config, backbone, task.sft), "others": config}
