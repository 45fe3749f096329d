"""The interpreter itself: our kernels' results in bfloat16 mean nothing if its casts are wrong."""

import os

import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="checks Triton's interpreter"
)


def test_bfloat16_casts_are_those_of_a_gpu() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def widen(source_ptr, wide_ptr, BLOCK: tl.constexpr):
        offset = tl.arange(0, BLOCK)
        tl.store(wide_ptr + offset, tl.load(source_ptr + offset).to(tl.float32))

    @triton.jit
    def narrow(source_ptr, narrow_ptr, BLOCK: tl.constexpr):
        offset = tl.arange(0, BLOCK)
        value = tl.load(source_ptr + offset)
        tl.store(narrow_ptr + offset, value.to(narrow_ptr.dtype.element_ty))

    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    wide = torch.empty(2**16)
    widen[(1,)](every, wide, BLOCK=2**16)
    assert torch.equal(wide.nan_to_num(nan=7.0), every.float().nan_to_num(nan=7.0))
    assert torch.equal(wide.isnan(), every.isnan())

    # Halfway points, their neighbours, and random patterns: rounding to nearest, ties to even.
    bits = torch.randint(-(2**31), 2**31 - 1, (2**16,), dtype=torch.int64).to(torch.int32)
    bits[: 2**14] = (bits[: 2**14] & ~0xFFFF) | 0x8000
    bits[2**14 : 2**15] = (bits[2**14 : 2**15] & ~0xFFFF) | 0x7FFF
    source = bits.view(torch.float32)
    ours, expected = torch.empty(2**16, dtype=torch.bfloat16), source.to(torch.bfloat16)
    narrow[(1,)](source, ours, BLOCK=2**16)
    is_nan = expected.isnan()
    assert torch.equal(ours.isnan(), is_nan)
    assert torch.equal(ours[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))
