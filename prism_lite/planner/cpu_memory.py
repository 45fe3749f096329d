"""The CPU's memory beside the card: what is sent there is not on the card.

A planner has one device for everything. So the functions of models/placement.py through which tensors
leave and come back are replaced by ones that copy and tell the tracker, and bitsandbytes' paged states,
which it cannot make on a CPU, by ordinary ones that count as off the card but while they are stepped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor, nn

from prism_lite.models import placement
from prism_lite.planner.tracker import Tracker

PAGED_FROM = 100_000  # entries: bitsandbytes pages the states of parameters that have so many


@contextlib.contextmanager
def beside_card(tracker: Tracker) -> Iterator[None]:
    """Inside, placement.py and paged optimizers have a CPU's memory that the tracker does not count."""

    def tensor_to_cpu(tensor: Tensor) -> Tensor:
        with tracker.off_card():
            return tensor.detach().clone()

    def tensor_to_card(waiting: Tensor, _device: torch.device) -> Tensor:
        return waiting.clone()

    def modules_to_cpu(modules: list[nn.Module]) -> None:
        tracker.leave(_weights_of(modules))

    def modules_to_card(modules: list[nn.Module], _device: torch.device) -> None:
        tracker.arrive(_weights_of(modules), "weights")

    def get_state_buffer(
        optimizer: Any, parameter: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        with tracker.off_card() if _is_paged(optimizer, parameter) else contextlib.nullcontext():
            return torch.zeros_like(parameter, dtype=dtype)

    def prefetch_state(optimizer: Any, parameter: Tensor) -> None:
        """Comes onto the card for its step; that of another parameter may have gone for it."""
        if _is_paged(optimizer, parameter):
            state = optimizer.state[parameter]
            tracker.workspace(state["state1"].nbytes + state["state2"].nbytes, "optimizer")

    replaced: list[tuple[Any, Any]] = [
        (placement, tensor_to_cpu), (placement, tensor_to_card),
        (placement, modules_to_cpu), (placement, modules_to_card),
        (Optimizer8bit, get_state_buffer), (Optimizer8bit, prefetch_state),
    ]  # fmt: skip
    originals = [getattr(owner, function.__name__) for owner, function in replaced]
    for owner, function in replaced:
        setattr(owner, function.__name__, function)
    try:
        yield
    finally:
        for (owner, function), original in zip(replaced, originals, strict=True):
            setattr(owner, function.__name__, original)


def _is_paged(optimizer: Any, parameter: Tensor) -> bool:
    return optimizer.is_paged and parameter.numel() >= PAGED_FROM


def _weights_of(modules: list[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
