"""Library matrix products with float32 results.

Triton has no tensor cores on sm75 and cuBLAS is hard to beat on newer GPUs, so every matrix product of
this package is a library call; the kernels only compute what is between two products.
"""

import torch
from torch import Tensor

from triton_kernels._checks import is_fake
from triton_kernels._dispatch import choose_backend

# `torch.mm(..., out_dtype=float32)` keeps the accumulator of a 16-bit product (CUDA, torch 2.8).
_HAS_OUT_DTYPE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


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
    if is_fake(a_MK):  # memory planning: allocate what the library allocates on CUDA
        return a_MK.new_empty(a_MK.shape[0], b_KN.shape[1], dtype=torch.float32)
    if a_MK.device.type == "cpu":
        return torch.mm(a_MK.float(), b_KN.float(), out=out)
    if _HAS_OUT_DTYPE:
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return torch.mm(a_MK, b_KN).float()  # the older library rounds to 16 bit once
