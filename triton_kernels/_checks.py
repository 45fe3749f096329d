"""Argument checks of the public functions: a mistake is a ValueError that names the argument.

Only facts about the arguments are checked here; nothing is converted or repaired.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int64, torch.int32)


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
    if like is not None and tensor.device != like[1].device:
        raise ValueError(
            f"{name} must be on the device of {like[0]} ({like[1].device}), got {describe(tensor)}"
        )
