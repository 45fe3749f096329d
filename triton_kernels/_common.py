"""What every operation shares: argument checks, the choice of implementation, products, launches.

A mistake in an argument is a ValueError that names it; nothing is converted or repaired.

CUDA with Triton -> the kernels; CUDA without Triton, or where one tiny launch fails (no C compiler, an
unsupported GPU), and the CPU -> the chunked torch path. `PRISM_KERNELS=auto|torch|triton` overrides this
(read at every call).

Triton has no tensor cores on sm75 and cuBLAS is hard to beat on newer GPUs, so every matrix product of
this package is a library call; the kernels only compute what is between two products.
"""

import contextlib
import importlib.util
import os
from functools import cache
from subprocess import SubprocessError
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int64, torch.int32)
Backend = Literal["torch", "triton"]
_VARIABLE = "PRISM_KERNELS"
_OLDEST_CAPABILITY = (7, 5)
# `torch.mm(..., out_dtype=float32)` keeps the accumulator of a 16-bit product (CUDA, torch 2.8).
_HAS_OUT_DTYPE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


def is_fake(tensor: Tensor) -> bool:
    """Check for a tensor without data (memory planning): no kernel can run, no value can be read."""
    return isinstance(tensor, FakeTensor) or tensor.device.type == "meta"


def describe(tensor: Tensor) -> str:
    """Format shape, dtype and device for an error message, e.g. `[3, 4] torch.float32 on cpu`."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def check_tensor(
    name: str,
    tensor: Tensor,
    dims: dict[str, int | None],
    dtypes: tuple[torch.dtype, ...],
    *,
    like: tuple[str, Tensor] | None = None,
) -> None:
    """Check one argument.

    Args:
        name: the argument's name in the public signature.
        tensor: the argument.
        dims: expected dimensions in order: letter -> size, or None for any size.
        dtypes: accepted dtypes.
        like: (name, tensor) of an argument that must be on the same device.

    Raises:
        ValueError: not a tensor, or wrong shape, dtype or device.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    letters = ", ".join(k if v is None else f"{k}={v}" for k, v in dims.items())
    wrong_size = tensor.dim() != len(dims) or any(
        want is not None and got != want
        for got, want in zip(tensor.shape, dims.values(), strict=True)
    )
    if wrong_size:
        raise ValueError(f"{name} must have shape [{letters}], got {describe(tensor)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be one of {names}, got {describe(tensor)}")
    # small tensors of a simulated card keep their values, on the CPU (prism_lite/planner)
    is_simulated = like is not None and any(isinstance(x, FakeTensor) for x in (tensor, like[1]))
    if like is not None and not is_simulated and tensor.device != like[1].device:
        raise ValueError(
            f"{name} must be on the device of {like[0]} ({like[1].device}), got {describe(tensor)}"
        )


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


def why_no_triton(index: int) -> str | None:
    """Return why the kernels do not run on a GPU, or None where they do."""
    if os.environ.get(_VARIABLE) == "torch":
        return f"{_VARIABLE}=torch"
    return _launch_problem(index)


@cache
def _launch_problem(index: int) -> str | None:
    """Return why the kernels cannot run on a GPU, or None where they can.

    They are built at their first launch, which needs a C compiler and Python's headers: one tiny launch
    tells, and its value is compared with the torch path's.
    """
    if not has_triton():
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CAPABILITY:
        oldest = ".".join(map(str, _OLDEST_CAPABILITY))
        return f"compute capability {capability[0]}.{capability[1]} is older than {oldest}"
    from triton.errors import TritonError

    from triton_kernels import _tiny_launch

    try:
        found, expected = _tiny_launch.tiny_launch(torch.device("cuda", index))
    except (TritonError, RuntimeError, OSError, ImportError, SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"a tiny kernel cannot be launched ({lines[0]})"
    return None if found == expected else f"a tiny kernel returned {found} and not {expected}"


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
    if tensor.device.type != "cuda":
        return "torch"
    if is_fake(tensor):  # planning for a GPU that this machine may not have
        return "triton" if has_triton() else "torch"
    return "triton" if why_no_triton(tensor.get_device()) is None else "torch"


def gemm_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype to multiply in: float32 on a CPU, where 16 bit is far slower (7 times on AVX2).

    Kernels on CPU tensors (interpreter, compilation tests) get the same dtypes as on CUDA.
    """
    on_cpu_path = tensor.device.type == "cpu" and choose_backend(tensor) == "torch"
    return torch.float32 if on_cpu_path else tensor.dtype


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context in which products keep the dtypes chosen here under a caller's autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


def mm_float32(a_MK: Tensor, b_KN: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute `a @ b` as float32 [M, N]; 16-bit operands are multiplied exactly and summed in float32.

    `out` (float32 [M, N]) is used if the library can write into it; use the returned tensor.
    """
    if a_MK.dtype == torch.float32:
        return torch.mm(a_MK, b_KN, out=out)
    if is_fake(a_MK) and a_MK.device.type != "cuda":  # allocate what the library allocates on CUDA
        return a_MK.new_empty(a_MK.shape[0], b_KN.shape[1], dtype=torch.float32)
    if a_MK.device.type == "cpu":
        return torch.mm(a_MK.float(), b_KN.float(), out=out)
    if _HAS_OUT_DTYPE:
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return torch.mm(a_MK, b_KN).float()  # the older library rounds to 16 bit once


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
