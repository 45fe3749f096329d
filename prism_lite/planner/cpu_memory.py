"""The CPU's memory next to the card: what is moved there is not on the card.

A planner has one device for everything. So the functions of models/placement.py that move tensors are
replaced by ones that copy and tell the tracker, and bitsandbytes' paged states, which it cannot make on a
CPU, by ordinary ones that are on the card only while they are stepped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor, nn

from prism_lite.models import placement
from prism_lite.planner.tracker import OFF_CARD, Tracker

PAGED_FROM = 100_000  # entries: bitsandbytes pages the states of parameters that have so many


@contextlib.contextmanager
def separate_cpu_memory(tracker: Tracker) -> Iterator[None]:
    """Give placement.py and paged optimizers a CPU's memory that the tracker does not count."""

    def tensor_to_cpu(tensor: Tensor) -> Tensor:
        with tracker.off_card():
            return tensor.detach().clone()

    def tensor_to_card(waiting: Tensor, _device: torch.device) -> Tensor:
        return waiting.clone()

    def modules_to_cpu(modules: list[nn.Module]) -> None:
        tracker.move(_weights_of(modules), OFF_CARD)

    def modules_to_card(modules: list[nn.Module], _device: torch.device) -> None:
        tracker.move(_weights_of(modules), "weights")

    def get_state_buffer(
        optimizer: Any, parameter: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        with tracker.off_card() if _is_paged(optimizer, parameter) else contextlib.nullcontext():
            return torch.zeros_like(parameter, dtype=dtype)

    def prefetch_state(optimizer: Any, parameter: Tensor) -> None:
        """Bring a state onto the card for its step; that of another parameter may have left for it."""
        if _is_paged(optimizer, parameter):
            state = optimizer.state[parameter]
            tracker.note_peak(state["state1"].nbytes + state["state2"].nbytes, "optimizer")

    with (
        mock.patch.multiple(
            placement,
            tensor_to_cpu=tensor_to_cpu,
            tensor_to_card=tensor_to_card,
            modules_to_cpu=modules_to_cpu,
            modules_to_card=modules_to_card,
        ),
        mock.patch.multiple(
            Optimizer8bit, get_state_buffer=get_state_buffer, prefetch_state=prefetch_state
        ),
    ):
        yield


def _is_paged(optimizer: Any, parameter: Tensor) -> bool:
    return optimizer.is_paged and parameter.numel() >= PAGED_FROM


def _weights_of(modules: list[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
