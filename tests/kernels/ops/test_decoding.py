"""The operations between two products of a decoded token, against float64."""

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.oracle import roundoff

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def check(found: Tensor, expected: Tensor, num_roundings: int) -> None:
    """To so many roundings to the dtype and float32 sums, relative to the largest value of each row."""
    assert found.shape == expected.shape
    size = expected.abs().amax(-1, keepdim=True) + 1e-30
    error = ((found.double().cpu() - expected.cpu()) / size.cpu()).abs().max()
    sums = 8 * roundoff(torch.float32)
    assert error <= num_roundings * roundoff(found.dtype) + sums, float(error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stream", ["same", "float32"])
@pytest.mark.parametrize("has_delta", [True, False])
def test_add_rms_norm(device, generator, dtype, stream, has_delta):
    stream_dtype = torch.float32 if stream == "float32" else dtype
    hidden = (3 * torch.randn(5, 70, generator=generator)).to(device, stream_dtype)
    delta = torch.randn(5, 70, generator=generator).to(device, dtype) if has_delta else None
    weight = torch.randn(70, generator=generator).to(device, dtype)
    found_sum, found = tk.add_rms_norm(hidden, delta, weight, EPS, dtype)
    assert (found_sum.dtype, found.dtype) == (stream_dtype, dtype)
    expected_sum = hidden if delta is None else hidden.double() + delta.double()
    check(found_sum, expected_sum.double(), 1)
    check(found, rms_norm(found_sum, weight), 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(device, generator, dtype):
    gate_up = (4 * torch.randn(3, 2 * 1100, generator=generator)).to(device, dtype)
    gate, up = gate_up.double().chunk(2, -1)
    check(tk.swiglu(gate_up), gate * gate.sigmoid() * up, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_kv_heads", "num_shared", "size"), [(2, 3, 16), (1, 2, 24), (4, 1, 8)]
)
def test_rotate_and_store(device, generator, dtype, num_kv_heads, num_shared, size):
    num_rows, num_heads = 3, num_kv_heads * num_shared
    shape = num_rows, num_heads + 2 * num_kv_heads, size
    qkv = torch.randn(shape, generator=generator).to(device, dtype)
    weight = torch.randn(num_heads + num_kv_heads, size, generator=generator).to(device, dtype)
    angle = torch.rand(num_rows, 1, size, generator=generator) * 6
    cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
    buffer = torch.zeros(11, 2 * num_kv_heads, size, device=device, dtype=dtype)
    slots = torch.tensor([7, 2, 10], device=device)
    found = tk.rotate_and_store(qkv, weight, EPS, cos, sin, buffer, slots)
    qk = rms_norm(qkv[:, : num_heads + num_kv_heads], weight)
    first, second = qk.chunk(2, -1)
    qk = qk * cos.double() + torch.cat([-second, first], -1) * sin.double()
    # query head j * S + s of a row is query s of key head j; all of it twice
    q = qk[:, :num_heads].view(num_rows, num_kv_heads, num_shared, size).transpose(1, 2)
    q = q.reshape(-1, num_kv_heads, size)
    check(found, torch.cat([q, q]), 6)
    check(buffer[slots, :num_kv_heads], qk[:, num_heads:], 6)
    assert torch.equal(buffer[slots, num_kv_heads:], qkv[:, num_heads + num_kv_heads :])
    others = [slot for slot in range(11) if slot not in (7, 2, 10)]
    assert not buffer[others].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_halves(device, generator, dtype):
    """Two sets of keys, one far likelier than the other in some rows; log-sums in any order."""
    num_rows, num_kv_heads, num_shared, size = 3, 2, 2, 24
    num_queries = num_rows * num_shared
    out = torch.randn(2 * num_queries, num_kv_heads, size, generator=generator).to(device, dtype)
    lse = 20 * torch.randn(4, num_kv_heads, 32, generator=generator).to(device)
    slots = torch.randperm(lse.numel(), generator=generator)[: 2 * num_queries * num_kv_heads]
    slots = slots.view(2 * num_queries, num_kv_heads).to(device)
    found = tk.merge_halves(out, lse, slots, num_rows)
    first, second = out.double().chunk(2)
    share = lse.double().flatten()[slots].view(2, num_queries, num_kv_heads, 1).softmax(0)
    merged = share[0] * first + share[1] * second
    merged = merged.view(num_rows, num_shared, num_kv_heads, size).transpose(1, 2).flatten(1)
    check(found, merged, 4)
