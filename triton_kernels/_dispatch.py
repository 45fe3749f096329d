"""Choose the implementation of an operation.

CUDA with Triton -> the kernels; CUDA without Triton, and the CPU -> the chunked torch path.
`PRISM_KERNELS=auto|torch|triton` overrides this (read at every call). Both paths use library matrix
products, so no Triton matmul has to be avoided on GPUs below sm80.
"""

import importlib.util
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from triton_kernels._checks import is_fake

Backend = Literal["torch", "triton"]
_VARIABLE = "PRISM_KERNELS"
_OLDEST_CAPABILITY = (7, 5)


@cache
def has_triton() -> bool:
    """Check that OpenAI's compiler can be imported (CPU builds of torch come without it)."""
    return importlib.util.find_spec("triton") is not None


def _runs_on_cpu() -> bool:
    """Check for Triton's interpreter, which runs kernels on CPU tensors."""
    if not has_triton():
        return False
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)  # decided when triton is imported


@cache
def _capability_suffices(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= _OLDEST_CAPABILITY


def choose_backend(tensor: Tensor) -> Backend:
    """Return the implementation for `tensor`'s device.

    Raises:
        ValueError: `PRISM_KERNELS` has an unknown value.
        RuntimeError: it requests Triton, which this machine or device cannot run.
    """
    choice = os.environ.get(_VARIABLE, "auto")
    if choice not in ("auto", "torch", "triton"):
        raise ValueError(f"{_VARIABLE} must be auto, torch or triton, got {choice!r}")
    if choice == "torch":
        return "torch"
    if choice == "triton":
        if not has_triton():
            raise RuntimeError(
                f"{_VARIABLE}=triton, but triton is not installed; use auto or torch"
            )
        if tensor.device.type != "cuda" and not is_fake(tensor) and not _runs_on_cpu():
            raise RuntimeError(
                f"{_VARIABLE}=triton, but the tensors are on {tensor.device}: kernels run on CUDA, "
                "or on the CPU with TRITON_INTERPRET=1 set before the start; use auto or torch"
            )
        return "triton"
    if tensor.device.type != "cuda" or not has_triton():
        return "torch"
    if is_fake(tensor):  # planning for a GPU that this machine may not have
        return "triton"
    return "triton" if _capability_suffices(tensor.get_device()) else "torch"
