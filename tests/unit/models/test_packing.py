"""Packed trees against the unpacked sequences, run by transformers with its own M-RoPE.

In float64 the two differ by rounding alone (1e-9); in float32 the sums run in another order (1e-5).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from prism_lite.models.packing import Tree, pack_trees, split_trees
from prism_lite.models.tree_attention import choose_attention, tree_mask
from prism_lite.policy.logprobs import predicted_logprobs
from prism_lite.types import Picture, Sample, Turn

SYSTEM = "Reply with caption, think and answer."


def noise_picture(name: str, width: int, height: int) -> Picture:
    rng = np.random.default_rng(width * height)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture(name, Image.fromarray(pixels))


def mixed_samples() -> list[Sample]:
    """Prompts with one, two (placed by marks) and no pictures, of different sizes."""
    wide, tall, small = (
        noise_picture("wide", 96, 32),
        noise_picture("tall", 64, 128),
        noise_picture("small", 32, 32),
    )
    return [
        Sample("one", (Turn("user", "Is the first digit greater?"),), (wide,)),
        Sample("two", (Turn("user", "Compare <image> with <image>, please."),), (tall, small)),
        Sample("none", (Turn("user", "Say yes."),)),
        Sample(
            "dialogue",
            (Turn("user", "<image> What?"), Turn("assistant", "no"), Turn("user", "Why? <image>")),
            (small, wide),
        ),
    ]


def branches_of(sizes: list[int], seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(20, 300, (size,), generator=generator) for size in sizes)


def trees_of(backbone) -> list[Tree]:
    sizes = ([5, 1, 9], [7, 3], [4], [6, 2, 8, 1])
    return [
        Tree(backbone.prompt(sample.with_system_prompt(SYSTEM)), branches_of(branch_sizes, row))
        for row, (sample, branch_sizes) in enumerate(zip(mixed_samples(), sizes, strict=True))
    ]


def unpacked_logprobs(backbone, sample: Sample, branch: torch.Tensor) -> torch.Tensor:
    """The plain way: the processor and one forward of the model for this sequence."""
    messages = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for turn in sample.turns:
        content = []
        if turn.role == "user" and "<image>" not in turn.text and sample.pictures:
            content.append({"type": "image"})
        for i, text in enumerate(turn.text.split("<image>")):
            content += ([{"type": "image"}] if i else []) + [{"type": "text", "text": text}]
        messages.append({"role": turn.role, "content": content})
    processor = backbone.processor
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [picture.open() for picture in sample.pictures]
    inputs = dict(processor(text=[text], images=images or None, return_tensors="pt"))
    num_prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], branch[None]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    image_id = backbone.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_id).long()
    backbone.core.model.rope_deltas = None
    logits_TV = backbone.core(**inputs, use_cache=False).logits[0]
    logprob_TV = logits_TV[num_prompt - 1 : -1].log_softmax(-1)
    return logprob_TV.gather(-1, branch[:, None])[:, 0]


def all_unpacked(backbone, trees: list[Tree]) -> torch.Tensor:
    samples = {sample.id: sample for sample in mixed_samples()}
    return torch.cat(
        [
            unpacked_logprobs(backbone, samples[tree.prompt.id], branch)
            for tree in trees
            for branch in tree.branches
        ]
    )


def packed_by_plain_head(backbone, trees: list[Tree], max_pack_tokens: int) -> torch.Tensor:
    """Packed hidden states, and a plain log-softmax so that float64 stays float64."""
    found = []
    for part in split_trees(trees, max_pack_tokens):
        pack = pack_trees(part)
        hidden_ND = backbone.hidden_states(pack)[pack.predictor_N]
        logprob_NV = (hidden_ND @ backbone.head_weight.T).log_softmax(-1)
        found.append(logprob_NV.gather(-1, pack.target_N[:, None])[:, 0])
    return torch.cat(found)


def gradients(backbone, logprob_N: torch.Tensor) -> list[torch.Tensor]:
    """Of an uneven weighting, so that swapped tokens would show."""
    weight_N = torch.linspace(-1, 2, len(logprob_N), dtype=logprob_N.dtype)
    return list(torch.autograd.grad((weight_N * logprob_N).sum(), backbone.policy_parameters()))


def exact_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
    mean_square = hidden_states.square().mean(-1, keepdim=True)
    return self.weight * hidden_states * (mean_square + self.variance_epsilon).rsqrt()


# 4096: everything in one pack; 120: trees in separate packs; 78: trees themselves are split over packs.
@pytest.mark.parametrize("max_pack_tokens", [4096, 120, 78])
def test_packed_logprobs_and_gradients_equal_unpacked_ones_in_float64(
    random_backbone, max_pack_tokens, monkeypatch
):
    # transformers' norms round to float32 in between, gradients too: take that rounding out.
    monkeypatch.setattr(Qwen3VLTextRMSNorm, "forward", exact_norm)
    backbone = random_backbone
    backbone.core.double()
    trees = trees_of(backbone)
    expected_N = all_unpacked(backbone, trees)
    found_N = packed_by_plain_head(backbone, trees, max_pack_tokens)
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-9)
    for found, expected in zip(
        gradients(backbone, found_N), gradients(backbone, expected_N), strict=True
    ):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_predicted_logprobs_equal_unpacked_ones_in_float32(random_backbone, temperature):
    backbone = random_backbone
    trees = trees_of(backbone)
    pack = pack_trees(trees)
    found_N = predicted_logprobs(backbone, pack, temperature=temperature)
    if temperature == 1.0:
        expected_N = all_unpacked(backbone, trees)
    else:
        hidden_FD = backbone.hidden_states(pack)
        logits_NV = hidden_FD[pack.predictor_N] @ backbone.head_weight.T / temperature
        expected_N = logits_NV.log_softmax(-1).gather(-1, pack.target_N[:, None])[:, 0]
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-5)
    for found, expected in zip(
        gradients(backbone, found_N), gradients(backbone, expected_N), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_nf4_pack_equals_unpacked(make_backbone):
    """The quantised forward is the one that trains; its rounding is the same on both sides."""
    backbone = make_backbone(tiny__steps=0)
    trees = trees_of(backbone)
    pack = pack_trees(trees)
    with torch.no_grad():
        found_N = predicted_logprobs(backbone, pack)
        expected_N = all_unpacked(backbone, trees)
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-5)


def test_kinds_of_attention_agree(random_backbone):
    """The parts merged, one bool mask, and FlexAttention's rule in its eager form (no backward)."""
    logprobs, grads = {}, {}
    for kind in ("mask", "parts"):
        random_backbone.attention = kind
        logprobs[kind] = packed_by_plain_head(random_backbone, trees_of(random_backbone), 4096)
        grads[kind] = gradients(random_backbone, logprobs[kind])
    random_backbone.attention = "flex"
    with torch.no_grad():
        logprobs["flex"] = packed_by_plain_head(random_backbone, trees_of(random_backbone), 4096)
    for kind in ("parts", "flex"):
        torch.testing.assert_close(logprobs[kind], logprobs["mask"], rtol=0, atol=1e-5)
    for parts, masked in zip(grads["parts"], grads["mask"], strict=True):
        torch.testing.assert_close(parts, masked, rtol=1e-4, atol=1e-5)


def test_flex_is_refused_where_its_kernels_do_not_run():
    with pytest.raises(ValueError, match=r"capability 8\.0"):
        choose_attention("flex", torch.device("cpu"))
    assert choose_attention("auto", torch.device("cpu")) == "parts"


def test_the_mask_is_the_rule_written_as_loops(random_backbone):
    pack = pack_trees(trees_of(random_backbone))
    mask = tree_mask(pack.layout, "cpu")
    owner = {}  # position -> (tree, branch or None)
    branch = 0
    position = 0
    trees = trees_of(random_backbone)
    for number, tree in enumerate(trees):
        for _ in range(len(tree.prompt)):
            owner[position] = (number, None)
            position += 1
    for number, tree in enumerate(trees):
        for tokens in tree.branches:
            for _ in tokens:
                owner[position] = (number, branch)
                position += 1
            branch += 1
    for query in range(position):
        for key in range(position):
            seen = (
                key <= query
                and owner[key][0] == owner[query][0]
                and owner[key][1] in (None, owner[query][1])
            )
            assert bool(mask[query, key]) == seen


def test_gradient_checkpointing_runs_the_layers_again_in_the_backward(make_backbone):
    """It saves no memory unless it does; transformers skips it for a model in eval mode."""
    backbone = make_backbone(tiny__steps=0, model__gradient_checkpointing=True)
    calls = []
    mlp = backbone.core.model.language_model.layers[0].mlp
    # before, not after: the second run stops as soon as it has what the backward needs
    handle = mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    logprob_N = packed_by_plain_head(backbone, trees_of(backbone)[:1], 4096)
    num_forward_calls = len(calls)
    logprob_N.sum().backward()
    handle.remove()
    assert num_forward_calls == 1
    assert len(calls) == 2


def test_gradient_checkpointing_gives_the_same_gradients(make_backbone):
    from tests.conftest import fill_adapter

    found = []
    for checkpointing in (False, True):
        backbone = make_backbone(
            tiny__steps=0,
            model__quantization="none",
            model__gradient_checkpointing=checkpointing,
        )
        fill_adapter(backbone)
        found.append(gradients(backbone, packed_by_plain_head(backbone, trees_of(backbone), 4096)))
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-6)


def test_a_branch_does_not_see_its_siblings(random_backbone):
    """Changing one branch leaves the hidden states of every other token of the pack bit-identical
    where the shapes stay equal."""
    backbone = random_backbone
    prompt = backbone.prompt(mixed_samples()[1])
    first, second, third = branches_of([5, 6, 4], seed=0)
    changed = branches_of([6], seed=9)[0]
    packs = [pack_trees([Tree(prompt, (first, middle, third))]) for middle in (second, changed)]
    with torch.no_grad():
        before_FD, after_FD = (backbone.hidden_states(pack) for pack in packs)
    is_changed_F = torch.zeros(len(before_FD), dtype=torch.bool)
    is_changed_F[len(prompt) :] = packs[0].branch_N == 1
    assert torch.equal(before_FD[~is_changed_F], after_FD[~is_changed_F])
    assert not torch.allclose(before_FD[is_changed_F], after_FD[is_changed_F])


@pytest.mark.parametrize("max_pack_tokens", [78, 90, 100, 150, 1000])
def test_split_trees_keeps_every_branch_once_within_the_limit(random_backbone, max_pack_tokens):
    trees = trees_of(random_backbone)
    packs = split_trees(trees, max_pack_tokens)
    for pack in packs:
        assert sum(tree.num_tokens for tree in pack) <= max_pack_tokens
    found = [(tree.prompt.id, b.tolist()) for pack in packs for tree in pack for b in tree.branches]
    assert found == [(tree.prompt.id, b.tolist()) for tree in trees for b in tree.branches]


def test_a_branch_too_large_for_a_pack_is_refused_by_name(random_backbone):
    tree = trees_of(random_backbone)[1]
    limit = len(tree.prompt) + max(map(len, tree.branches))
    assert split_trees([tree], limit)
    with pytest.raises(ValueError, match=r"prompt two .*max_pack_tokens"):
        split_trees([tree], limit - 1)


def test_picture_marks_must_match_the_pictures(random_backbone):
    sample = Sample(
        "row-7",
        (Turn("user", "<image> and <image>"),),
        (noise_picture("p", 32, 32),),
        source="file.jsonl row 7",
    )
    with pytest.raises(ValueError, match=r"file\.jsonl row 7"):
        random_backbone.prompt(sample.with_system_prompt(SYSTEM))


def test_neighbouring_branches_of_a_unit_are_never_parted(random_backbone):
    sizes = [5, 9, 4, 8, 6, 7, 3, 2]
    prompt = random_backbone.prompt(mixed_samples()[2])
    tree = Tree(prompt, branches_of(sizes, 0))
    limit = len(prompt) + 20  # three branches would fit, a pair and a half
    packs = split_trees([tree], limit, branches_per_unit=2)
    found = [branch for pack in packs for piece in pack for branch in piece.branches]
    assert [len(branch) for branch in found] == sizes
    assert len(packs) > 1
    for piece in (piece for pack in packs for piece in pack):
        assert len(piece.branches) % 2 == 0 and piece.num_tokens <= limit
    assert any(len(piece.branches) % 2 for pack in split_trees([tree], limit) for piece in pack)
