"""The smallest kernel, launched once: can this machine build and run one?"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _double(x_ptr):
    tl.store(x_ptr, 2.0 * tl.load(x_ptr))


def tiny_launch(device: torch.device) -> tuple[float, float]:
    """Return twice 3 as the kernel computes it, and the right value."""
    x: Tensor = torch.full((1,), 3.0, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        _double[(1,)](x)
    return float(x), 6.0
