"""Seconds of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

GIB = 2**30


def wait_for(device: str) -> None:
    """Wait until a card has done all that was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(
    work: Callable[[], Any], device: str, *, repeats: int = 10, warmup: int = 3
) -> float:
    """Return mean seconds of `work`, after some that do not count."""
    for _ in range(warmup):
        work()
    wait_for(device)
    started_s = time.perf_counter()
    for _ in range(repeats):
        work()
    wait_for(device)
    return (time.perf_counter() - started_s) / repeats
