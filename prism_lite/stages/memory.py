"""Running out of memory: continue with smaller pieces of the same work, never with a smaller batch.

Rows that decode side by side (`sampling.max_rows`) and tokens of a forward (`model.max_pack_tokens`) decide
how the work is laid out, not what is computed: the sums are the same but for their order.
"""

from __future__ import annotations

import dataclasses
import gc
from typing import NoReturn

import torch

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.runs.peak_memory import peak_gib
from prism_lite.sampling.rollouts import MOST_ROWS
from prism_lite.stages.context import Context

_FEWEST_PACK_TOKENS = 256


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory: of the card, or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def context_with_less_memory(
    context: Context, error: RuntimeError | MemoryError, activity: str
) -> Context:
    """Return the context with half the rows, or half the tokens of a forward, and print it.

    Args:
        error: raised by `activity`; while sampling it halves the rows, otherwise the tokens.

    Raises:
        RuntimeError: the error, if it is another one; or nothing is left to lower.
    """
    if not is_out_of_memory(error):
        raise error
    config = context.config
    smaller = _smaller(config, in_sampling=_arose_in_sampling(error))
    if smaller is None:
        _advise(context, error, activity)
    model, sampling = smaller.model, smaller.sampling
    say(
        context.run.console,
        f"out of memory in {activity}: it continues with model.max_pack_tokens={model.max_pack_tokens} and "
        f"sampling.max_rows={sampling.max_rows} (before: {config.model.max_pack_tokens} and "
        f"{config.sampling.max_rows or 'automatic'}), from the last checkpoint; the batch stays the same",
        "yellow",
    )
    context.backbone.config = model
    return dataclasses.replace(context, config=smaller)


def free_memory() -> None:
    """Return what failed work held: call it when its error is handled, whose frames hold tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _smaller(config: RunConfig, *, in_sampling: bool) -> RunConfig | None:
    """Return the settings with half of one of the two; None if it is at its least."""
    if in_sampling:
        rows = config.sampling.max_rows or MOST_ROWS
        sampling = dataclasses.replace(config.sampling, max_rows=rows // 2)
        return dataclasses.replace(config, sampling=sampling) if rows > 1 else None
    tokens = config.model.max_pack_tokens
    if tokens <= _FEWEST_PACK_TOKENS:
        return None
    fewer = max(_FEWEST_PACK_TOKENS, tokens // 2)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, max_pack_tokens=fewer)
    )


def _arose_in_sampling(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("prism_lite.sampling."):
            return True
        trace = trace.tb_next
    return False


def _advise(context: Context, error: BaseException, activity: str) -> NoReturn:
    """Name the settings that help where nothing is left to lower.

    Raises:
        RuntimeError: always.
    """
    config, peak = context.config, peak_gib(context.backbone.device)
    raise RuntimeError(
        f"out of memory in {activity} (peak so far {peak:.1f} GiB), also with model.max_pack_tokens="
        f"{config.model.max_pack_tokens} and sampling.max_rows={config.sampling.max_rows or 'automatic'}. "
        "Give the same command model.gradient_checkpointing=true, model.offload_checkpoints=true or "
        "model.vision_on_cpu=true; it resumes from the last checkpoint. Smaller pictures "
        "(model.max_pixels) need a new --out. `prism-lite plan` with this recipe says what fits."
    ) from error
