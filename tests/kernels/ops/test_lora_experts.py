"""`lora_experts` against a float64 loop over experts."""

import math

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.oracle import assert_close, gamma, roundoff, smallest
from triton_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALE = 1.5
NAMES = ("x", "A", "B", "weights")


def make_inputs(
    num_tokens: int, width: int, out: int, num_experts: int, rank: int, generator: torch.Generator
) -> list[Tensor]:
    shapes = [
        (num_tokens, width),
        (num_experts, rank, width),
        (num_experts, out, rank),
        (num_tokens, num_experts),
    ]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[3] = torch.softmax(tensors[3], 1).masked_fill(tensors[3] < 0, 0)
    return tensors


def run(function, inputs: list[Tensor], upstream: Tensor, scale: float) -> list[Tensor]:
    """The output and the four gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves, scale=scale)
    (output * upstream).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def check_against_reference(inputs: list[Tensor], generator: torch.Generator) -> None:
    """The operation is a sum of products, and so is each gradient: all of them err by at most
    (gammas of the sums + roundings on the way) * the same expression of absolute values."""
    x, A, B, _ = inputs
    upstream = torch.randn(x.shape[0], B.shape[1], generator=generator).to(x)
    ours = run(tk.lora_experts, inputs, upstream, SCALE)
    assert ours[0].dtype == x.dtype
    # Masters are cast to the dtype of x before any product.
    exact_inputs = [x, A.to(x.dtype), B.to(x.dtype), inputs[3]]
    exact_inputs = [tensor.detach().double().cpu() for tensor in exact_inputs]
    truth = run(reference.lora_experts, exact_inputs, upstream.double().cpu(), SCALE)
    sizes = run(
        reference.lora_experts,
        [tensor.abs() for tensor in exact_inputs],
        upstream.double().cpu().abs(),
        SCALE,
    )
    longest = max(*x.shape, *A.shape, *B.shape)
    relative = 3 * gamma(longest) + 5 * roundoff(x.dtype)
    for name, got, want, size in zip(("output", *NAMES), ours, truth, sizes, strict=True):
        rounding = roundoff(got.dtype) * want.abs() + smallest(got.dtype)
        # float16 intermediates near 0 err by the subnormal spacing, times what multiplies them.
        floor = longest * smallest(x.dtype) * 16
        assert_close(name, got, want, relative * size + rounding + floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "width", "out", "num_experts", "rank"),
    [(1, 1, 1, 1, 1), (5, 12, 10, 3, 4), (70, 32, 48, 8, 16), (33, 20, 24, 6, 5), (9, 8, 8, 2, 33)],
)
def test_values_and_gradients(
    num_tokens, width, out, num_experts, rank, dtype, device, generator
) -> None:
    inputs = make_inputs(num_tokens, width, out, num_experts, rank, generator)
    inputs = [tensor.to(device, dtype) for tensor in inputs]
    inputs[3] = inputs[3].float()
    check_against_reference(inputs, generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_masters(dtype, device, generator) -> None:
    """Adapters in float32 with 16-bit activations: gradients come back in float32."""
    inputs = [tensor.to(device) for tensor in make_inputs(20, 16, 24, 4, 8, generator)]
    inputs[0] = inputs[0].to(dtype)
    check_against_reference(inputs, generator)


def test_gradients_of_masters_may_be_beyond_float16(device, generator) -> None:
    """The loss is scaled there: sums over tokens pass 65,504, which float32 masters can hold."""
    x, A, B, weights = (t.to(device) for t in make_inputs(300, 16, 24, 2, 4, generator))
    leaves = [t.requires_grad_() for t in (x.abs().half(), A.abs(), B.abs() * 1e-3, weights)]
    upstream = torch.full((300, 24), 1e3, dtype=torch.float16, device=device)
    tk.lora_experts(*leaves, scale=SCALE).backward(upstream)
    exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
    reference.lora_experts(*exact, scale=SCALE).backward(upstream.double().cpu())
    for name, leaf, want in zip(NAMES[1:3], leaves[1:3], exact[1:3], strict=True):
        assert leaf.grad is not None and want.grad is not None
        assert_close(name, leaf.grad, want.grad, 0.02 * want.grad.abs().amax())
    assert exact[2].grad is not None and exact[2].grad.abs().amax() > 2 * 65504


def test_weights_in_16_bit_and_strides(device, generator) -> None:
    x, A, B, weights = (t.to(device) for t in make_inputs(20, 16, 24, 4, 8, generator))
    x = x.T.contiguous().T
    B = B.transpose(1, 2).contiguous().transpose(1, 2)
    A = torch.stack([A, A], 3)[..., 0]
    weights = weights.to(torch.bfloat16).T.contiguous().T
    assert not any(tensor.is_contiguous() for tensor in (x, A, B, weights))
    check_against_reference([x, A, B, weights], generator)


def test_no_tokens(device, generator) -> None:
    inputs = make_inputs(0, 6, 7, 2, 3, generator)
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    output = tk.lora_experts(*leaves, scale=1.0)
    assert output.shape == (0, 7)
    output.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None and not leaf.grad.any()


def test_gradients_only_where_asked(device, generator) -> None:
    """Frozen inputs get none; the others do not depend on who else asks."""
    inputs = [tensor.to(device) for tensor in make_inputs(10, 8, 9, 3, 4, generator)]
    upstream = torch.randn(10, 9, generator=generator).to(device)
    everything = run(tk.lora_experts, inputs, upstream, SCALE)[1:]
    for index in range(4):
        leaves = [tensor.detach() for tensor in inputs]
        leaves[index].requires_grad_()
        (tk.lora_experts(*leaves, scale=SCALE) * upstream).sum().backward()
        grad = leaves[index].grad
        assert grad is not None
        assert_close(NAMES[index], grad, everything[index], 1e-5)


def test_a_fresh_adapter_adds_nothing_and_can_learn(device, generator) -> None:
    x, A, B, weights = (t.to(device) for t in make_inputs(6, 8, 5, 2, 4, generator))
    B = torch.zeros_like(B).requires_grad_()
    output = tk.lora_experts(x, A, B, weights, scale=SCALE)
    assert not output.any()
    output.sum().backward()
    assert B.grad is not None and B.grad.any()


def test_bad_values_stay_visible(device, generator) -> None:
    for index, name in enumerate(NAMES):
        inputs = [tensor.to(device) for tensor in make_inputs(6, 8, 5, 2, 4, generator)]
        inputs[index].flatten()[0] = math.nan
        assert tk.lora_experts(*inputs, scale=SCALE).isnan().any(), name


def test_gradient_reaches_the_router(device, generator) -> None:
    """Both operations in a row, against autograd through the references."""
    x, A, B, _ = (t.to(device) for t in make_inputs(12, 8, 6, 4, 3, generator))
    logits = torch.randn(12, 4, generator=generator).to(device).requires_grad_()
    tk.lora_experts(x, A, B, tk.route_topk(logits, 2).weights, scale=SCALE).sum().backward()
    exact = logits.detach().double().cpu().requires_grad_()
    weights = reference.route_topk(exact, 2).weights
    doubles = (tensor.double().cpu() for tensor in (x, A, B))
    reference.lora_experts(*doubles, weights, scale=SCALE).sum().backward()
    assert exact.grad is not None
    assert_close("gradient", logits.grad, exact.grad, 1e-5 * exact.grad.abs().max())
