"""Repair of Triton's interpreter: its bfloat16 casts.

float32 -> bfloat16 truncates where a GPU rounds to nearest even; bfloat16 -> float32 flushes
subnormal numbers. (bfloat16 products are wrong there, too, but no kernel of ours multiplies
matrices or computes in bfloat16.) `ops/test_interpreter_check.py` fails where the repair fails.
"""

from typing import Any

import numpy as np


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the uint16 patterns of the nearest bfloat16, ties to even, NaN kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    last_kept_bit = (bits >> 16) & 1
    rounded = ((bits + 0x7FFF + last_kept_bit) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def repair() -> None:
    """Patch the interpreter of this process (Triton imported with TRITON_INTERPRET=1)."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        pair = (source.dtype.scalar, target.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            wide = (source.data.astype(np.uint32) << 16).view(np.float32)
            return interpreter.TensorHandle(wide, tl.float32)
        return original(self, source, target)

    builder.cast_impl = cast
    for alias in ("create_fp_ext", "create_fp_trunc"):  # newer versions bind the original early
        setattr(builder, alias, cast)
