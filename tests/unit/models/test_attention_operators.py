"""Which attention a token step calls where, and the private operators that no public one replaces."""

from __future__ import annotations

import importlib.util
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.models import attention
from prism_lite.models.attention import packed_attention

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SCALE = 128**-0.5
# Public attention returns no log-sum on a CPU, before compute capability 8.0 or in float32, and none takes
# the log-sum of a merged softmax in its backward. Torch may change private operators without notice: here
# are those that attention.py calls, as it calls them.
PRIVATE = {
    "_scaled_dot_product_flash_attention_for_cpu": (
        "(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, "
        "Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)"
    ),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, "
        "float dropout_p, bool is_causal, *, Tensor? attn_mask=None, float? scale=None) -> "
        "(Tensor grad_query, Tensor grad_key, Tensor grad_value)"
    ),
    "_scaled_dot_product_efficient_attention": (
        "(Tensor query, Tensor key, Tensor value, Tensor? attn_bias, bool compute_log_sumexp, "
        "float dropout_p=0., bool is_causal=False, *, float? scale=None) -> (Tensor output, "
        "Tensor log_sumexp, Tensor philox_seed, Tensor philox_offset)"
    ),
    "_scaled_dot_product_efficient_attention_backward": (
        "(Tensor grad_out_, Tensor query, Tensor key, Tensor value, Tensor attn_bias, Tensor out, "
        "Tensor logsumexp, Tensor philox_seed, Tensor philox_offset, float dropout_p, "
        "bool[4] grad_input_mask, bool is_causal=False, *, float? scale=None) -> "
        "(Tensor, Tensor, Tensor, Tensor)"
    ),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_operators_have_the_signature_that_is_called(name):
    assert str(getattr(torch.ops.aten, name).default._schema) == f"aten::{name}{PRIVATE[name]}"


def test_no_other_private_operator_is_called():
    source = inspect.getsource(attention)
    assert {line.split("(")[0] for line in source.split("torch.ops.aten.")[1:]} == set(PRIVATE)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "scale", "is_public"),
    [
        (CUDA, torch.bfloat16, (8, 0), SCALE, True),
        (CUDA, torch.float16, (9, 0), SCALE, True),
        (CUDA, torch.float16, (7, 5), SCALE, False),
        (CUDA, torch.float32, (8, 0), SCALE, False),
        (CUDA, torch.bfloat16, (8, 0), 2 * SCALE, False),
        (CPU, torch.bfloat16, None, SCALE, False),
    ],
)
@pytest.mark.parametrize("has_flash_attn", [True, False])
def test_the_attention_of_a_token_step(
    monkeypatch, device, dtype, capability, scale, is_public, has_flash_attn
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    spec = SimpleNamespace() if has_flash_attn else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    public = attention._flash_attn if has_flash_attn else attention._torch_varlen
    assert packed_attention(device, dtype, 128, scale) is (public if is_public else None)


def test_torchs_packed_attention_returns_the_log_sum_of_each_head_and_query():
    """Its shapes; the numbers need a card (the test below)."""
    with FakeTensorMode():
        q, k, v = (torch.empty(n, 2, 64, dtype=torch.bfloat16) for n in (12, 30, 30))
        begins = torch.zeros(4, dtype=torch.int32)
        out, lse = attention._torch_varlen(q, k, v, begins, begins, 6, 16)
    assert out.shape == (12, 2, 64) and lse.shape == (2, 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
def test_packed_attention_on_a_card_equals_the_softmax():
    """Empty sequences of queries or keys among them, keys before values in one buffer, bfloat16."""
    packed = packed_attention(CUDA, torch.bfloat16, 64, 64**-0.5)
    if packed is None:
        pytest.skip("needs compute capability 8.0")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(9, 2, 64, generator=generator).cuda().bfloat16()
    buffer = torch.randn(30, 4, 64, generator=generator).cuda().bfloat16()
    begin_q, begin_k = [0, 5, 7, 7, 9, 9], [0, 11, 14, 20, 29, 30]
    starts_q, starts_k = (
        torch.tensor(x, dtype=torch.int32, device="cuda") for x in (begin_q, begin_k)
    )
    out, lse = packed(q, buffer[:, :2], buffer[:, 2:], starts_q, starts_k, 5, 11)
    for i in range(5):
        queries, keys = slice(begin_q[i], begin_q[i + 1]), slice(begin_k[i], begin_k[i + 1])
        k, v = buffer[keys, :2].float(), buffer[keys, 2:].float()
        score = torch.einsum("qjd,kjd->jqk", q[queries].float(), k) * 64**-0.5
        expected = torch.einsum("jqk,kjd->qjd", score.softmax(-1), v)
        torch.testing.assert_close(out[queries].float(), expected, rtol=0, atol=2e-2)
        torch.testing.assert_close(lse[:, queries], score.logsumexp(-1), rtol=0, atol=1e-3)
