"""Which attention a token step calls where, and the private operators that no public one replaces."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.models import attention, packed_attention
from prism_lite.models.packed_attention import PackedAttention

CUDA = torch.device("cuda")
SCALE = 128**-0.5
# Public attention returns no log-sum on a CPU, before compute capability 8.0 or in float32, and none takes
# the log-sum of a merged softmax in its backward. Torch may change private operators without notice: here
# are those that attention.py and packed_attention.py call, as they call them.
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
    "_efficient_attention_forward": (
        "(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? cu_seqlens_q, "
        "Tensor? cu_seqlens_k, SymInt? max_seqlen_q, SymInt? max_seqlen_k, float dropout_p, "
        "int custom_mask_type, bool compute_log_sumexp=False, *, float? scale=None, "
        "Tensor? seqlen_k=None, int? window_size=None) -> (Tensor output, Tensor logsumexp, "
        "Tensor philox_seed, Tensor philox_offset, SymInt max_seqlen_batch_q, "
        "SymInt max_seqlen_batch_k)"
    ),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_operators_have_the_signature_that_is_called(name):
    assert str(getattr(torch.ops.aten, name).default._schema) == f"aten::{name}{PRIVATE[name]}"


def test_no_other_private_operator_is_called():
    source = inspect.getsource(attention) + inspect.getsource(packed_attention)
    assert {line.split("(")[0] for line in source.split("torch.ops.aten.")[1:]} == set(PRIVATE)


@pytest.mark.parametrize(
    ("dtype", "capability", "scale", "is_public"),
    [
        (torch.bfloat16, (8, 0), SCALE, True),
        (torch.float16, (9, 0), SCALE, True),
        (torch.float16, (7, 5), SCALE, False),
        (torch.float32, (8, 0), SCALE, False),
        (torch.bfloat16, (8, 0), 2 * SCALE, False),
    ],
)
@pytest.mark.parametrize("has_flash_attn", [True, False])
def test_the_attention_of_a_token_step(
    monkeypatch, dtype, capability, scale, is_public, has_flash_attn
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(packed_attention, "has_flash_attn", lambda: has_flash_attn)
    chosen = packed_attention.packed_attention(CUDA, dtype, 128, scale)
    if is_public:
        public = packed_attention._flash_attn if has_flash_attn else packed_attention._torch_varlen
        assert chosen == PackedAttention(public, is_by_sequence=False)
    else:
        assert isinstance(chosen.attend, functools.partial) and chosen.is_by_sequence
        assert chosen.attend.func is packed_attention._memory_efficient
        assert chosen.attend.keywords == {"scale": scale}


@pytest.mark.parametrize("name", ["_torch_varlen", "_memory_efficient"])
def test_packed_attention_returns_log_sums_in_the_places_that_are_read(name):
    """The shapes of torch's operators; the numbers need a card (the test below)."""
    is_by_sequence = name == "_memory_efficient"
    call = getattr(packed_attention, name)
    call = functools.partial(call, scale=0.125) if is_by_sequence else call
    with FakeTensorMode():
        q, k, v = (torch.empty(n, 2, 64, dtype=torch.bfloat16) for n in (40, 60, 60))
        begins = torch.zeros(5, dtype=torch.int32)
        out, lse = call(q, k, v, begins, begins, 33, 33)
    assert out.shape == (40, 2, 64) and lse.dtype == torch.float32
    assert lse.shape == ((4, 2, 64) if is_by_sequence else (2, 40))
    slots = PackedAttention(call, is_by_sequence).lse_slots([5, 33, 0, 2], num_heads=2)
    assert slots.shape == (40, 2) and slots.unique().numel() == 80
    # the last query is the second one of the last sequence
    last = [(3 * 2 + head) * 64 + 1 for head in range(2)] if is_by_sequence else [39, 79]
    assert slots[-1].tolist() == last
    # the seventh is the second one of the second sequence
    seventh = [(1 * 2 + head) * 64 + 1 for head in range(2)] if is_by_sequence else [6, 46]
    assert slots[6].tolist() == seventh


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
@pytest.mark.parametrize("kind", ["chosen", "memory efficient"])
def test_packed_attention_on_a_card_equals_the_softmax(kind):
    """Empty sequences of queries or keys among them, keys before values in one buffer, 16 bit."""
    dtype = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    if kind == "chosen":
        packed = packed_attention.packed_attention(CUDA, dtype, 64, 64**-0.5)
    else:
        call = functools.partial(packed_attention._memory_efficient, scale=64**-0.5)
        packed = PackedAttention(call, is_by_sequence=True)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(9, 2, 64, generator=generator).cuda().to(dtype)
    buffer = torch.randn(30, 4, 64, generator=generator).cuda().to(dtype)
    begin_q, begin_k = [0, 5, 7, 7, 9, 9], [0, 11, 14, 20, 29, 30]
    starts_q, starts_k = (
        torch.tensor(x, dtype=torch.int32, device="cuda") for x in (begin_q, begin_k)
    )
    out, lse = packed.attend(q, buffer[:, :2], buffer[:, 2:], starts_q, starts_k, 5, 11)
    lse_NJ = lse.take(packed.lse_slots([5, 2, 0, 2, 0], num_heads=2).cuda())
    for i in range(5):
        queries, keys = slice(begin_q[i], begin_q[i + 1]), slice(begin_k[i], begin_k[i + 1])
        k, v = buffer[keys, :2].float(), buffer[keys, 2:].float()
        score = torch.einsum("qjd,kjd->jqk", q[queries].float(), k) * 64**-0.5
        expected = torch.einsum("jqk,kjd->qjd", score.softmax(-1), v)
        torch.testing.assert_close(out[queries].float(), expected, rtol=0, atol=2e-2)
        torch.testing.assert_close(lse_NJ[queries], score.logsumexp(-1).T, rtol=0, atol=1e-3)
