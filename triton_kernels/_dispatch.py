"""Which implementation runs: the one place that decides.

CUDA with Triton -> the kernels; CUDA without Triton, and the CPU -> the chunked torch path.
`PRISM_KERNELS=auto|torch|triton` overrides (read at every call). Both paths use library matrix
products, so there is no Triton matmul to keep away from cards below sm80.
"""

import importlib.util
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from triton_kernels._checks import is_fake

Backend = Literal["torch", "triton"]
VARIABLE = "PRISM_KERNELS"
_OLDEST_CAPABILITY = (7, 5)


@cache
def has_triton() -> bool:
    """Whether OpenAI's compiler can be imported (CPU builds of torch come without it)."""
    return importlib.util.find_spec("triton") is not None


def _runs_on_cpu() -> bool:
    """Triton's interpreter runs kernels on CPU tensors, if it was on when triton was imported."""
    if not has_triton():
        return False
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)  # decided once, at the first import


@cache
def _capability_suffices(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= _OLDEST_CAPABILITY


def choose_backend(tensor: Tensor) -> Backend:
    """The implementation for `tensor`'s device.

    Raises:
        ValueError: `PRISM_KERNELS` has an unknown value.
        RuntimeError: it demands Triton and this machine or device cannot run it.
    """
    wish = os.environ.get(VARIABLE, "auto")
    if wish not in ("auto", "torch", "triton"):
        raise ValueError(f"{VARIABLE} must be auto, torch or triton, got {wish!r}")
    if wish == "torch":
        return "torch"
    if wish == "triton":
        if not has_triton():
            raise RuntimeError(f"{VARIABLE}=triton, but triton is not installed; use auto or torch")
        if tensor.device.type != "cuda" and not is_fake(tensor) and not _runs_on_cpu():
            raise RuntimeError(
                f"{VARIABLE}=triton, but the tensors are on {tensor.device}: kernels run on CUDA, "
                "or on the CPU with TRITON_INTERPRET=1 set before the start; use auto or torch"
            )
        return "triton"
    if tensor.device.type != "cuda" or not has_triton():
        return "torch"
    if is_fake(tensor):  # planning for a card that need not be here
        return "triton"
    return "triton" if _capability_suffices(tensor.get_device()) else "torch"
