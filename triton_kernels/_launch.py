"""The one place that launches kernels."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from triton_kernels._checks import is_fake


def ceil_div(total: int, size: int) -> int:
    """How many pieces of `size` cover `total`."""
    return -(-total // size)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number` (>= 1): Triton's tiles need one."""
    return 1 << (number - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], on: Tensor, *args: Any, **config: Any) -> None:
    """Run `kernel` over `grid` on the device of `on`.

    Nothing is launched over an empty grid (an error in CUDA) or for tensors without data: a memory
    plan sees the same allocations without a card.
    """
    if 0 in grid or is_fake(on):
        return
    # Triton launches on the current device, which need not be the tensor's.
    guard = torch.cuda.device(on.device) if on.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[grid](*args, **config)
