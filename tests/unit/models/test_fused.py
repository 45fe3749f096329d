"""The fused LoRA and norms compute what PEFT's and transformers' own compute, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from prism_lite.models.backbone import REFERENCE
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.fused import fuse_lora, fuse_norms, lora_linear
from prism_lite.models.packing import Tree, pack_trees
from tests.micro import fill_adapter


def written_out(x, weight, a, b, scale):
    return F.linear(x, weight) + scale * F.linear(F.linear(x, a), b)


def factors(dtype, *, rank=3, width=10, outputs=7):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, of=torch.float32):
        return torch.randn(*shape, generator=generator).to(of).requires_grad_()

    x, a, b = draw(2, 5, width, of=dtype), draw(rank, width), draw(outputs, rank)
    base = nn.Linear(width, outputs, bias=False).to(dtype).requires_grad_(False)
    return x, base, a, b


def test_the_product_and_its_gradients_are_those_of_the_formula():
    x, base, a, b = factors(torch.float32)
    grad = torch.randn(2, 5, 7)
    out = lora_linear(x, base, a, b, 0.5)
    expected = written_out(x, base.weight, a, b, 0.5)
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out, (x, a, b), grad)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (x, a, b), grad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_gradients_of_the_adapter_are_float32_and_as_exact_as_the_inputs(dtype):
    x, base, a, b = factors(dtype)
    out = lora_linear(x, base, a, b, 0.5)
    assert out.dtype == dtype
    grad = torch.randn(2, 5, 7).to(dtype)
    grads = torch.autograd.grad(out, (x, a, b), grad)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
    wide = [t.detach().double().requires_grad_() for t in (x, a, b)]
    expected = written_out(wide[0], base.weight.double(), wide[1], wide[2], 0.5)
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.1)
    for ours, true in zip(grads, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        error = (ours.double() - true).norm() / true.norm()
        assert error < 4 * torch.finfo(dtype).eps


def test_no_gradient_is_computed_that_nobody_needs():
    x, base, a, b = factors(torch.float32)
    frozen = lora_linear(x, base, a.detach(), b.detach(), 0.5)
    (grad_x,) = torch.autograd.grad(frozen.sum(), x)
    torch.testing.assert_close(grad_x, torch.ones(2, 5, 7) @ (base.weight + 0.5 * b @ a))
    of_data = lora_linear(x.detach(), base, a, b, 0.5)
    assert torch.autograd.grad(of_data.sum(), (a, b))[0].shape == a.shape


def run(backbone, task, role):
    """Return the hidden states of two demonstrations and the gradients of the policy."""
    trees = [
        Tree(backbone.prompt(row), (backbone.tokenize(row.demonstration or ""),))
        for row in task.sft[:2]
    ]
    with backbone.role(role):
        hidden = backbone.hidden_states(pack_trees(trees))
        parameters = backbone.policy_parameters()
        if role == "policy":
            return [hidden, *torch.autograd.grad(hidden.square().mean(), parameters)]
    return [hidden]


@pytest.mark.parametrize("role", ["policy", "reference", "discriminator"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_with_either_gives_the_same(make_backbone, task, role, checkpointing):
    """Of 4-bit weights, in float32; a role's adapter, another's, or none."""
    backbone = make_backbone(model__gradient_checkpointing=checkpointing)
    fill_adapter(backbone, scale=0.02)
    if role == "reference":
        backbone.freeze_copy(REFERENCE)
        fill_adapter(backbone, seed=1, scale=0.02)
    expected = run(backbone, task, role)
    fuse_lora(backbone.core)
    fuse_norms(backbone.core)
    for ours, theirs in zip(run(backbone, task, role), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_runs_where_activations_are_16_bit(make_backbone, dtype):
    backbone = make_backbone(model__compute_dtype=dtype)
    layer = family.decoder_layers(backbone.core)[0]
    modules = [layer.self_attn.q_proj, layer.mlp.down_proj, layer.input_layernorm]
    modules += [layer.self_attn.k_norm, family.decoder(backbone.core).norm]
    is_fused = ["forward" in vars(module) for module in modules]
    assert is_fused == [dtype != "float32"] * len(modules)
