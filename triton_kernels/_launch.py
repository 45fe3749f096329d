"""Launch kernels: the only module that does."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from triton_kernels._checks import is_fake


def ceil_div(total: int, size: int) -> int:
    """Count the pieces of `size` that cover `total`."""
    return -(-total // size)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least `number` (>= 1), as Triton's tiles need it."""
    return 1 << (number - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], on: Tensor, *args: Any, **config: Any) -> None:
    """Run `kernel` over `grid` on the device of `on`.

    Nothing is launched over an empty grid (an error in CUDA) or for tensors without data: memory
    planning sees the same allocations without a GPU.
    """
    if 0 in grid or is_fake(on):
        return
    # Triton launches on the current device, which may differ from the tensor's.
    guard = torch.cuda.device(on.device) if on.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[grid](*args, **config)
