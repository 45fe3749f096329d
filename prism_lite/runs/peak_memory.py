"""Peak memory of a device, in GiB."""

from __future__ import annotations

import resource

import torch

from prism_lite.models.device import release_unused


def start_peak(device: torch.device) -> None:
    """Release what earlier work left unused, and forget its peak. (A CPU process keeps its peak.)"""
    release_unused(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the peak in GiB: of the card's allocator since `start_peak`, or of the CPU process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
