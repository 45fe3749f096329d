"""Optimizers, their schedules and the loss scaler; the learning rate depends on the step alone.

In float16 small gradients would become zero: `Optimizer.backward` scales the loss, and a step whose
gradients overflowed is skipped and the scale halved. With other types the scaler does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prism_lite.config import OptimConfig
from prism_lite.processes import sum_gradients
from prism_lite.types import NotFiniteError

_GROWTH_INTERVAL = 200  # good steps before the scale is doubled; runs are a few hundred steps long
_LEAST_SCALE = 1.0  # at this scale an overflow is the model's, not the scaler's
_SCALER = "loss_scaler"  # its key in the optimizer's state


class Optimizer:
    """An optimizer with its loss scaler; build it with `make_optimizer`.

    Attributes:
        inner: the torch or bitsandbytes optimizer.
        scaler: does nothing if losses are not scaled.
    """

    def __init__(self, inner: Any, scaler: torch.amp.GradScaler) -> None:
        self.inner = inner
        self.scaler = scaler

    def backward(self, loss: Tensor) -> None:
        """Propagate a loss; gradients accumulate until `optimizer_step`."""
        self.scaler.scale(loss).backward()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, with the scaler's if it is used."""
        state = self.inner.state_dict()
        return state | {_SCALER: self.scaler.state_dict()} if self.scaler.is_enabled() else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            ValueError: one of the saved and this optimizer has a scaler, the other has none.
        """
        inner = {name: value for name, value in state.items() if name != _SCALER}
        if (_SCALER in state) != self.scaler.is_enabled():
            raise ValueError(
                "the checkpoint was written with another float type: set model.compute_dtype as it was."
            )
        self.inner.load_state_dict(inner)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state[_SCALER])


def optimizer_name(config: OptimConfig, device: str) -> str:
    """Return the configured name, "auto" resolved for a device type."""
    if config.name == "auto":
        return "paged_adamw8bit" if device == "cuda" else "adamw"
    return config.name


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: OptimConfig, *, scales_loss: bool = False
) -> Optimizer:
    """Build AdamW, in 32 bit or, by bitsandbytes, in 8 bit; "auto" is paged 8 bit on a card.

    Args:
        scales_loss: from `Precision`.
    """
    rate, decay = config.learning_rate, config.weight_decay
    device = parameters[0].device.type
    name = optimizer_name(config, device)
    if name == "adamw":
        inner: Any = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    else:
        import bitsandbytes as bnb

        adamw = {"adamw8bit": bnb.optim.AdamW8bit, "paged_adamw8bit": bnb.optim.PagedAdamW8bit}
        inner = adamw[name](parameters, lr=rate, weight_decay=decay)
    scaler = torch.amp.GradScaler(device, enabled=scales_loss, growth_interval=_GROWTH_INTERVAL)
    return Optimizer(inner, scaler)


def learning_rate_at(config: OptimConfig, step: int, num_steps: int) -> float:
    """Return the rate: linear warm-up over `warmup_ratio` of the steps, then constant or a cosine to zero.

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
    optimizer: Optimizer,
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    max_grad_norm: float,
) -> dict[str, float]:
    """Sum the gradients of all processes, unscale and clip them, take a step, and clear them.

    Returns:
        grad_norm, before clipping. With a scaler also loss_scale; if gradients overflowed, skipped_steps
        (1) instead of the norm, and only the scale has changed.

    Raises:
        NotFiniteError: the gradient is not finite, and not because of the scale; nothing was changed.
    """
    inner, scaler = optimizer.inner, optimizer.scaler
    sum_gradients(parameters)  # from here on every process computes the same
    scale = scaler.get_scale()
    scaler.unscale_(inner)
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    is_finite = math.isfinite(norm)
    if not is_finite and scale <= _LEAST_SCALE:
        inner.zero_grad(set_to_none=True)
        raise NotFiniteError(f"the gradient's norm is {norm}: the step was not taken")
    for group in inner.param_groups:
        group["lr"] = learning_rate
    if is_finite:
        scaler.step(inner)
    scaler.update()
    inner.zero_grad(set_to_none=True)
    metrics = {"grad_norm": norm} if is_finite else {"skipped_steps": 1.0}
    return metrics | ({"loss_scale": scale} if scaler.is_enabled() else {})


def mean_of(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average several steps' metrics, each over the steps that have it; skipped_steps is summed."""
    names = dict.fromkeys(name for step in steps for name in step)
    values_of = {name: [step[name] for step in steps if name in step] for name in names}
    return {
        name: sum(values) if name == "skipped_steps" else sum(values) / len(values)
        for name, values in values_of.items()
    }
