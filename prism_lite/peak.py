"""Peak memory of a stage, where its model lies."""

from __future__ import annotations

import resource

import torch


def start_peak(device: torch.device) -> None:
    """Begin a stage: what earlier ones held at most counts no more. (A process's peak stays.)"""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """GiB: most that the card's allocator held since `start_peak`; on a CPU, the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
