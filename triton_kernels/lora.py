"""Low-rank experts in parallel to a frozen linear layer, mixed per token.

Used in the discriminator's last layers. All experts are computed for all tokens as two concatenated
matrix products: up to E * r = 256 the layer is limited by memory, so the arithmetic of unused experts
is free and no token is permuted (calculated for five GPUs; not measured). Between the two products one
kernel without a matrix product scales each expert's columns by the routing weight.

Shape letters: T tokens, D input width, N output width, E experts, r rank, R = E * r.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triton_kernels._common import (
    FLOAT_DTYPES,
    check_tensor,
    choose_backend,
    describe,
    gemm_dtype,
    mm_float32,
    no_autocast,
)


class Implementation(NamedTuple):
    """The step between the two products, in plain torch or as kernels.

    Fields:
        scale_ranks: (low, weights, scale) -> [T, R] in the dtype of `low`: low * weights (each
            repeated r times) * scale.
        scale_ranks_backward: (grad, low, weights, scale) -> gradients of `low` [T, R] (its dtype) and
            `weights` [T, E] (float32).
    """

    scale_ranks: Callable[[Tensor, Tensor, float], Tensor]
    scale_ranks_backward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _by_expert(low_TR: Tensor, weights_TE: Tensor) -> Tensor:
    num_tokens, num_experts = weights_TE.shape
    return low_TR.view(num_tokens, num_experts, low_TR.shape[1] // num_experts)


def _scale_ranks(low: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See `Implementation`."""
    return (
        (_by_expert(low, weights) * (weights.float() * scale)[:, :, None])
        .to(low.dtype)
        .view(low.shape)
    )


def _scale_ranks_backward(
    grad: Tensor, low: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `Implementation`."""
    grad_TEr, low_TEr = _by_expert(grad, weights).float(), _by_expert(low, weights).float()
    grad_weights_TE = torch.einsum("ter,ter->te", grad_TEr, low_TEr)
    return _scale_ranks(grad, weights, scale), grad_weights_TE.mul_(scale)


_TORCH = Implementation(_scale_ranks, _scale_ranks_backward)


def _implementation(x: Tensor) -> Implementation:
    if choose_backend(x) == "triton":
        from triton_kernels import lora_triton  # the only place that needs Triton

        return Implementation(lora_triton.scale_ranks, lora_triton.scale_ranks_backward)
    return _TORCH


class _LoraExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B, weights, scale: float):
        dtype = gemm_dtype(x)
        num_experts, rank, width = A.shape
        A_RD = A.to(dtype).reshape(num_experts * rank, width)
        B_RN = B.to(dtype).transpose(1, 2).reshape(num_experts * rank, -1)
        with no_autocast(x):
            low_TR = x.to(dtype) @ A_RD.T
            out_TN = _implementation(x).scale_ranks(low_TR, weights, scale) @ B_RN
        ctx.save_for_backward(x, A_RD, B_RN, low_TR, weights)
        ctx.scale, ctx.dtypes, ctx.A_shape = scale, (A.dtype, B.dtype, weights.dtype), A.shape
        return out_TN.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_out,) = grad_outputs
        with no_autocast(grad_out):
            return *_backward(ctx, grad_out), None


def _backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, A, B and weights; None for those that are not needed."""
    x, A_RD, B_RN, low_TR, weights = ctx.saved_tensors
    needs_x, needs_A, needs_B, needs_weights, _ = ctx.needs_input_grad
    A_dtype, B_dtype, weights_dtype = ctx.dtypes
    num_experts, rank, _ = ctx.A_shape
    implementation = _implementation(x)
    grad_TN = grad_out.to(A_RD.dtype)
    grad_x = grad_A = grad_B = grad_weights = None
    if needs_B:
        scaled_TR = implementation.scale_ranks(low_TR, weights, ctx.scale)
        grad_NR = mm_float32(
            grad_TN.T, scaled_TR
        )  # sums over tokens of a scaled loss: beyond float16
        grad_NEr = grad_NR.view(grad_TN.shape[1], num_experts, rank)
        grad_B = grad_NEr.transpose(0, 1).to(B_dtype)
    if needs_x or needs_A or needs_weights:
        grad_low_TR, grad_weights = implementation.scale_ranks_backward(
            grad_TN @ B_RN.T, low_TR, weights, ctx.scale
        )
        grad_weights = grad_weights.to(weights_dtype) if needs_weights else None
        if needs_x:
            grad_x = (grad_low_TR @ A_RD).to(x.dtype)
        if needs_A:
            grad_RD = mm_float32(grad_low_TR.T, x.to(A_RD.dtype))
            grad_A = grad_RD.view(ctx.A_shape).to(A_dtype)
    return grad_x, grad_A, grad_B, grad_weights


def lora_experts(x: Tensor, A: Tensor, B: Tensor, weights: Tensor, *, scale: float) -> Tensor:
    """Compute what the experts add to a linear layer: scale * sum_e weights[:, e] (x @ A_e^T @ B_e^T).

    Args:
        x: [T, D] float32, bfloat16 or float16; any strides. T = 0 is fine.
        A: [E, r, D], B: [E, N, r]: any of the three dtypes (float32 parameters are converted to x's dtype).
        weights: [T, E] routing weights, float32 as `route_topk` gives them (16 bit is also accepted).
        scale: LoRA's alpha / r, usually.

    Returns:
        [T, N] in x's dtype. Gradients reach x, A, B and weights, each in its own dtype, only once
        (no second derivative). On the CPU the products are computed in float32.

    Raises:
        ValueError: a wrong shape, dtype or device, no expert, or a scale that is not a number.

    Source: LoRA (arXiv 2106.09685); concatenating the experts is our choice.
    """
    check_tensor("x", x, {"T": None, "D": None}, FLOAT_DTYPES)
    on = ("x", x)
    check_tensor("A", A, {"E": None, "r": None, "D": x.shape[1]}, FLOAT_DTYPES, like=on)
    num_experts, rank, _ = A.shape
    if num_experts == 0 or rank == 0:
        raise ValueError(f"A must have at least one expert of rank 1 or more, got {describe(A)}")
    check_tensor("B", B, {"E": num_experts, "N": None, "r": rank}, FLOAT_DTYPES, like=on)
    check_tensor("weights", weights, {"T": x.shape[0], "E": num_experts}, FLOAT_DTYPES, like=on)
    if not isinstance(scale, int | float):
        raise ValueError(f"scale must be a number, got {scale!r}")
    return _LoraExperts.apply(x, A, B, weights, scale)
