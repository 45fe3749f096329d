"""Optimizers and their schedules; the learning rate is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prism_lite.config import OptimConfig


def make_optimizer(parameters: Sequence[nn.Parameter], config: OptimConfig) -> Any:
    """AdamW, in 32 bit or through bitsandbytes in 8 bit."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    import bitsandbytes as bnb

    kinds = {"adamw8bit": bnb.optim.AdamW8bit, "paged_adamw8bit": bnb.optim.PagedAdamW8bit}
    return kinds[config.name](parameters, lr=rate, weight_decay=decay)


def learning_rate_at(config: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up over `warmup_ratio` of the steps, then constant or half a cosine to zero.

    Args:
        step: 0-based.
    """
    num_warmup = round(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_step(
    optimizer: Any, parameters: Sequence[nn.Parameter], learning_rate: float, max_grad_norm: float
) -> float:
    """Clip, step, clear.

    Returns:
        The gradient's norm before clipping.

    Raises:
        RuntimeError: the gradient is not finite; nothing was changed.
    """
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise RuntimeError(
            f"the gradient's norm is {norm}: the step was not taken. Lower the learning rate, or "
            "look for a broken row in the last batch (rollouts/ of the run folder)."
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
