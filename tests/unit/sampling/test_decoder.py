"""The lean forward and the shared cache against transformers' own forward and its cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from prism_lite.models.attention import attend, merge
from prism_lite.models.packing import Tree, forward_pack, pack_trees
from prism_lite.models.tree_attention import (
    TreeCall,
    attend_pack,
    tree_block_mask,
    tree_mask,
)
from prism_lite.planner.tracker import Tracker
from prism_lite.sampling.decoder import dense_bytes, lean_decoder, prefill
from prism_lite.sampling.kv_cache import GroupCache, PromptBucket, bucket_prompts, pad_prompts
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
    longest = max(map(len, prompts))
    for limit in (4096, longest):  # all in one forward, or several
        backbone.config = backbone.config.__class__(max_pack_tokens=limit)
        logits_BV, layers, spans = prefill(backbone, decoder, prompts)
        torch.testing.assert_close(logits_BV, expected_BV, rtol=0, atol=1e-5)
        assert spans == list(pack.layout.prompts)
        assert layers[0][0].shape[0] == sum(map(len, prompts))


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


def test_the_shared_cache_equals_one_row_at_a_time():
    """Prompts of four lengths in buckets, uneven groups, rows leaving, buffers growing; float64."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_heads, num_kv_heads, size, scale = 4, 2, 8, 8**-0.5
    lengths, counts = [30, 9, 11, 10], [3, 2, 1, 4]
    prompts = [(random(n, num_kv_heads, size), random(n, num_kv_heads, size)) for n in lengths]
    flat = [(torch.cat([k for k, _ in prompts]), torch.cat([v for _, v in prompts]))]
    spans = [(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(4)]
    groups = bucket_prompts(lengths)
    assert groups == [[1, 3, 2], [0]]
    padded = pad_prompts(flat, [[spans[p] for p in group] for group in groups])
    assert flat == []
    buckets = [
        PromptBucket(keys_values, [lengths[p] for p in group], [counts[p] for p in group])
        for keys_values, group in zip(padded, groups, strict=True)
    ]
    prompt_R = [p for group in groups for p in group for _ in range(counts[p])]
    cache = GroupCache(buckets, max_tokens=300)
    own = [random(len(prompt_R), 0, num_kv_heads, size) for _ in range(2)]
    leaving = {3: [0, 1, 2, 4, 5, 7, 9], 131: [0, 3, 4, 6], 140: [3]}
    for step in range(150):
        if step in leaving:
            cache.keep(leaving[step])
            own = [x[leaving[step]] for x in own]
            prompt_R = [prompt_R[row] for row in leaving[step]]
        q, k, v = (random(len(prompt_R), h, size) for h in (num_heads, num_kv_heads, num_kv_heads))
        own = [torch.cat([x, new[:, None]], 1) for x, new in zip(own, (k, v), strict=True)]
        cache.open_slot()
        found = cache.attend(0, q, k, v, scale)
        torch.testing.assert_close(
            found, naive(q, prompts, prompt_R, own, scale), rtol=0, atol=1e-12
        )
    assert len(cache.buckets) == 1


def test_laying_out_prompts_and_dropping_them_holds_no_second_copy():
    """Beside what there is already, of 16 layers at most the one that is worked on."""
    shape, num_layers = (64, 2, 8), 16
    tracker = Tracker(vocab_size=1)
    with Watch(tracker):
        layers = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(num_layers)]
        layer_bytes = tracker.now / num_layers
        (padded,) = pad_prompts(layers, [[(16 * i, 16 * i + 16) for i in range(4)]])
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
