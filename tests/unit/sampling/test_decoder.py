"""The lean forward and the shared cache against transformers' own forward and its cache."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from prism_lite.config import SamplingConfig
from prism_lite.models.attention import attend, merge
from prism_lite.models.packed_attention import PackedAttention
from prism_lite.models.packing import Tree, forward_pack, pack_trees
from prism_lite.models.tree_attention import (
    TreeCall,
    attend_pack,
    tree_block_mask,
    tree_mask,
)
from prism_lite.planner.tracker import Tracker
from prism_lite.sampling import packed_cache, rollouts
from prism_lite.sampling.decoder import dense_bytes, empty_buffers, lean_decoder, prefill
from prism_lite.sampling.kv_cache import GroupCache, PromptBucket, bucket_prompts, pad_prompts
from prism_lite.sampling.packed_cache import PackedCache
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.sampling.token_step import StepRunner, rows_to_keep
from tests.micro import fill_adapter
from tests.planning import Watch
from tests.unit.models.test_packing import SYSTEM, mixed_samples


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@torch.no_grad()
def test_prefill_logits_equal_transformers(make_backbone, quantization, dense):
    """Several pictures, no picture, different lengths; LoRA on NF4 and on plain weights."""
    backbone = make_backbone(tiny__steps=0, model__quantization=quantization)
    fill_adapter(backbone)
    prompts = [backbone.prompt(sample.with_system_prompt(SYSTEM)) for sample in mixed_samples()]
    decoder = lean_decoder(backbone.core, dense=dense, float32_residual=False)
    pack = pack_trees([Tree(prompt, ()) for prompt in prompts])
    features = backbone.vision.features([p for prompt in prompts for p in prompt.pictures])
    hidden_FD = forward_pack(backbone.core, pack, features, attention="mask")
    last = [stop - 1 for _, stop in pack.layout.prompts]
    expected_BV = hidden_FD[last] @ backbone.head_weight.T
    longest, stored = max(map(len, prompts)), []
    for limit in (4096, longest):  # all in one forward, or several
        backbone.config = backbone.config.__class__(max_pack_tokens=limit)
        num_tokens = sum(map(len, prompts))
        buffers = [x.fill_(7.0) for x in empty_buffers(decoder, num_tokens + 5)]
        logits_BV = prefill(backbone, decoder, prompts, buffers)
        torch.testing.assert_close(logits_BV, expected_BV, rtol=0, atol=1e-5)
        assert all((buffer[num_tokens:] == 7).all() for buffer in buffers)
        stored.append(torch.stack(buffers)[:, :num_tokens])
    torch.testing.assert_close(stored[0], stored[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("role", ["policy", "reference"])
def test_products_are_those_of_the_active_role(backbone, role, is_dense):
    """Of merged weights, and of 4-bit weights with one LoRA product for modules with the same input."""
    fill_adapter(backbone)
    x_TD = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    layer = backbone.core.model.language_model.layers[1]
    with torch.no_grad(), backbone.role(role):
        lean = lean_decoder(backbone.core, dense=is_dense, float32_residual=False).layers[1]
        mlp, attention = layer.mlp, layer.self_attn
        for found, modules in (
            (lean.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (lean.out, (attention.o_proj,)),
            (lean.gate_up, (mlp.gate_proj, mlp.up_proj)),
        ):
            expected = torch.cat([module(x_TD) for module in modules], -1)
            torch.testing.assert_close(found(x_TD), expected, rtol=0, atol=1e-5)
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    assert dense_bytes(backbone.core) == 2 * 4 * sum(a * b for a, b in shapes)


def naive(q_RHd, keys_values, prompt_R, own, scale):
    """Each row by itself over its prompt's keys and its own: [R, H * d]."""
    rows = []
    for row, prompt in enumerate(prompt_R):
        k = torch.cat([keys_values[prompt][0], own[0][row]])
        v = torch.cat([keys_values[prompt][1], own[1][row]])
        num_shared = q_RHd.shape[1] // k.shape[1]
        heads = [
            (q_RHd[row, head] @ k[:, head // num_shared].T * scale).softmax(0)
            @ v[:, head // num_shared]
            for head in range(q_RHd.shape[1])
        ]
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def packed_reference(q_NJd, k_KJd, v_KJd, begin_q, begin_k, most_queries, most_keys):
    """The call of a new card (scale d ** -0.5), without a shape that depends on data."""
    assert begin_q.dtype == begin_k.dtype == torch.int32
    assert begin_q[1:].sub(begin_q[:-1]).amax() <= most_queries
    assert begin_k[1:].sub(begin_k[:-1]).amax() <= most_keys
    # the sequence of an index is the last one that begins at or before it: empty ones have none
    sequence_N, sequence_K = (
        torch.searchsorted(begin, torch.arange(len(x), dtype=torch.int32), right=True)
        for begin, x in ((begin_q, q_NJd), (begin_k, k_KJd))
    )
    score_JNK = torch.einsum("njd,kjd->jnk", q_NJd, k_KJd.nan_to_num()) * q_NJd.shape[2] ** -0.5
    score_JNK = score_JNK.masked_fill(sequence_N[:, None] != sequence_K, -torch.inf)
    out_NJd = torch.einsum("jnk,kjd->njd", score_JNK.softmax(-1), v_KJd.nan_to_num(0, 0, 0))
    return out_NJd, score_JNK.logsumexp(-1)


def by_sequence(q_NJd, k_KJd, v_KJd, begin_q, begin_k, most_queries, most_keys):
    """The call of an older card: log-sums of each sequence by itself, padded."""
    out_NJd, lse_JN = packed_reference(
        q_NJd, k_KJd, v_KJd, begin_q, begin_k, most_queries, most_keys
    )
    lse_LJQ = torch.full((len(begin_q) - 1, len(lse_JN), 32), torch.nan, dtype=lse_JN.dtype)
    for number, (first, stop) in enumerate(pairwise(begin_q.tolist())):
        lse_LJQ[number, :, : stop - first] = lse_JN[:, first:stop]
    return out_NJd, lse_LJQ


def bucketed(flat, lengths, counts):
    """The cache of prompts in buckets, and each row's prompt."""
    spans = [(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(4)]
    groups = bucket_prompts(lengths)
    assert groups == [[1, 3, 2], [0]]
    padded = pad_prompts([flat], [[spans[p] for p in group] for group in groups])
    buckets = [
        PromptBucket(keys_values, [lengths[p] for p in group], [counts[p] for p in group])
        for keys_values, group in zip(padded, groups, strict=True)
    ]
    prompt_R = [p for group in groups for p in group for _ in range(counts[p])]
    return GroupCache(buckets, max_tokens=300), prompt_R


def packed(flat, lengths, counts, attention):
    """The cache of packed sequences, and each row's prompt."""
    slots = flat.new_full((300 * sum(counts), *flat.shape[1:]), torch.nan)
    cache = PackedCache(
        [torch.cat([flat, slots])],
        lengths,
        counts,
        max_tokens=300,
        num_shared=2,
        attention=attention,
    )
    return cache, [p for p, count in enumerate(counts) for _ in range(count)]


ATTENTION = {
    "packed": PackedAttention(packed_reference, is_by_sequence=False),
    "packed by sequence": PackedAttention(by_sequence, is_by_sequence=True),
}


@pytest.mark.parametrize("kind", ["buckets", *ATTENTION])
def test_the_shared_cache_equals_one_row_at_a_time(kind, monkeypatch):
    """Prompts of four lengths, uneven groups, rows leaving, three moved at once; float64."""
    monkeypatch.setattr(packed_cache, "_MOVED_AT_ONCE", 3)
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_heads, num_kv_heads, size, scale = 4, 2, 8, 8**-0.5
    ones, zeros = torch.ones(1, 1, size).double(), torch.zeros(1, 1, size).double()
    layer = SimpleNamespace(qk_norm=ones[0].expand(num_heads + num_kv_heads, -1))
    decoder: Any = SimpleNamespace(
        layers=[layer], eps=0.0, num_heads=4, num_kv_heads=2, head_size=size, scale=scale
    )
    lengths, counts = [30, 9, 11, 10], [3, 2, 1, 4]
    prompts = [(random(n, num_kv_heads, size), random(n, num_kv_heads, size)) for n in lengths]
    flat = torch.cat([torch.cat([k, v], 1) for k, v in prompts])
    if kind == "buckets":
        cache, prompt_R = bucketed(flat, lengths, counts)
    else:
        cache, prompt_R = packed(flat, lengths, counts, ATTENTION[kind])
    own = [random(len(prompt_R), 0, num_kv_heads, size) for _ in range(2)]
    leaving = {3: [0, 1, 2, 4, 5, 7, 9], 131: [0, 3, 4, 6], 140: [3]}
    for step in range(150):
        if step in leaving:
            cache.keep(leaving[step])
            own = [x[leaving[step]] for x in own]
            prompt_R = [prompt_R[row] for row in leaving[step]]
        q, k, v = (random(len(prompt_R), h, size) for h in (num_heads, num_kv_heads, num_kv_heads))
        qkv = torch.cat([q, k, v], 1)
        q, k = (torch.nn.functional.rms_norm(x, (size,)) for x in (q, k))
        own = [torch.cat([x, new[:, None]], 1) for x, new in zip(own, (k, v), strict=True)]
        cache.open_slot()
        found = cache.attend_product(decoder, 0, qkv, ones, zeros)  # no rotation
        torch.testing.assert_close(
            found, naive(q, prompts, prompt_R, own, scale), rtol=0, atol=1e-12
        )


@torch.library.custom_op("prism_tests::packed", mutates_args=())
def packed_without_waiting(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    begin_q: torch.Tensor,
    begin_k: torch.Tensor,
    most_queries: int,
    most_keys: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One operation, as the call on a card is."""
    return packed_reference(q, k, v, begin_q, begin_k, most_queries, most_keys)


class FixedShapes(TorchDispatchMode):
    """Refuses what would wait for a card, and notes every operation with the shapes of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        results = func(*args, **(kwargs or {}))
        shapes = [tuple(x.shape) for x in tree_flatten(results)[0] if isinstance(x, torch.Tensor)]
        self.operations.append((name, shapes))
        return results


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_token_step_neither_waits_nor_changes_its_shapes(backbone, task, monkeypatch, top_p):
    """As on a card, where it is recorded once: 31 steps while rows end; tokens as on a CPU."""
    fill_adapter(backbone)
    sampling = SamplingConfig(max_completion_tokens=32, dense_weights="never", top_p=top_p)
    arguments: dict[str, Any] = {"group_size": 3, "sampling": sampling, "seed": ("step",)}
    expected = sample_groups(backbone, task.heldout[:3], **arguments)
    assert len({len(r.token_ids) for group in expected for r in group.rollouts}) > 1
    taken = []

    def take(_runner, step, num_steps):
        for _ in range(num_steps):
            with FixedShapes() as mode:
                step()
            taken.append(mode.operations)

    attention = PackedAttention(packed_without_waiting, is_by_sequence=False)
    monkeypatch.setattr(rollouts, "_attention_on_card", lambda *_: attention)
    monkeypatch.setattr(rollouts, "check_schedule", lambda _device: (32, 8))
    monkeypatch.setattr(StepRunner, "take", take)
    sampled = sample_groups(backbone, task.heldout[:3], **arguments)
    assert len(taken) == 31 and all(operations == taken[0] for operations in taken)
    for group, other in zip(sampled, expected, strict=True):
        for rollout, same in zip(group.rollouts, other.rollouts, strict=True):
            assert rollout.token_ids == same.token_ids
            torch.testing.assert_close(
                rollout.sampling_logprob_C, same.sampling_logprob_C, rtol=0, atol=1e-5
            )


def test_rows_are_dropped_once_they_are_an_eighth_and_to_a_multiple():
    ended = {3, 5, 8}
    is_ended = [row in ended for row in range(20)]
    unfinished = [row for row in range(20) if row not in ended]
    assert rows_to_keep(is_ended, multiple=1) == unfinished
    assert rows_to_keep(is_ended, multiple=3) == sorted([*unfinished, 3])  # 18 rows
    assert rows_to_keep(is_ended, multiple=8) == list(range(20))
    assert rows_to_keep([True, *[False] * 8], multiple=1) == list(range(9))  # a ninth
    assert rows_to_keep([True] * 4, multiple=8) == []


def test_laying_out_prompts_and_dropping_them_holds_no_second_copy():
    """Beside what there is already, of 16 layers at most the one that is worked on."""
    shape, num_layers = (64, 4, 8), 16
    tracker = Tracker(vocab_size=1)
    with Watch(tracker):
        buffers = [torch.zeros(shape) for _ in range(num_layers)]
        layer_bytes = tracker.now / num_layers
        (padded,) = pad_prompts(buffers, [[(16 * i, 16 * i + 16) for i in range(4)]])
        assert tracker.peak.total < (num_layers + 3) * layer_bytes
        bucket = PromptBucket(padded, [16] * 4, [1] * 4)
        tracker.mark(("keep",))
        before = tracker.now
        bucket.keep([0, 2])
        assert tracker.regions["keep",].total < before + 2 * layer_bytes
    assert tracker.now < 0.6 * before


def test_merging_two_sets_of_keys_is_attention_over_both():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).double() for n in (5, 12, 12))
    k[:, :, 4:] *= 30  # one part far likelier than the other
    (first, first_lse), (second, second_lse) = (
        attend(q, k[:, :, part], v[:, :, part], scale=0.3) for part in (slice(0, 4), slice(4, 12))
    )
    expected = torch.softmax(0.3 * q @ k.transpose(2, 3), -1) @ v
    torch.testing.assert_close(
        merge(first, first_lse, second, second_lse), expected, rtol=0, atol=1e-12
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
@pytest.mark.parametrize("kind", ["parts", "flex"])
def test_trees_on_a_card_equal_the_bool_mask(random_backbone, kind):
    """The card's kernels, forward and backward, float32; padding of bias and log-sums included."""
    if kind == "flex" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("FlexAttention's kernels need compute capability 8.0")
    generator = torch.Generator().manual_seed(0)
    trees = [
        Tree(
            random_backbone.prompt(sample.with_system_prompt(SYSTEM)),
            tuple(torch.randint(20, 300, (n,), generator=generator) for n in (37, 5, 12)),
        )
        for sample in mixed_samples()
    ]
    layout = pack_trees(trees).layout
    num_tokens = layout.branches[-1][1]
    q, k, v, grad = (
        torch.randn(heads, num_tokens, 64, generator=generator).cuda() for heads in (4, 2, 2, 4)
    )
    layout = dataclasses.replace(layout, cell_N=layout.cell_N.cuda())
    masks = {
        "mask": tree_mask(layout, "cuda"),
        "parts": None,
        "flex": tree_block_mask(layout, "cuda") if kind == "flex" else None,
    }
    found = []
    kinds: tuple[Any, Any] = ("mask", kind)
    for name in kinds:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out_HFd = attend_pack(*inputs, TreeCall(layout, name, masks[name]), 0, 0.125)
        found.append([out_HFd.detach(), *torch.autograd.grad(out_HFd, inputs, grad)])
    for masked, other in zip(*found, strict=True):
        torch.testing.assert_close(other, masked, rtol=1e-3, atol=1e-3)
