"""LoRA and norms of a training step with few operations, where activations are 16 bit.

PEFT computes LoRA in float32 beside 16-bit activations: it copies the base product, casts its input up and
its output down, and reads all of it again in the backward. Here the adapter is cast to 16 bit instead, as
sampling does, and added by one `addmm_`; its gradients are summed in float32 into float32 weights.
transformers computes a norm with six operations, torch's `rms_norm` with one of a card.

Both are installed on the modules of a loaded model. In float32 (a CPU) the libraries' own code runs.

Shape letters: T tokens, I input width, O output width, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.autograd.function import once_differentiable

import triton_kernels as tk
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.placement import frozen_weight


def fuse_lora(core: Core) -> None:
    """Install `lora_linear` on every adapted linear of a model; at most one adapter is active at a time."""
    for module in core.modules():
        if isinstance(module, LoraLayer):
            setattr(module, "forward", MethodType(_lora_forward, module))  # noqa: B010 - a Module


def fuse_norms(core: Core) -> None:
    """Let every RMSNorm of the text model call torch's."""
    decoder = family.decoder(core)
    for module in decoder.modules():
        if hasattr(module, "variance_epsilon"):
            setattr(module, "forward", MethodType(_norm_forward, module))  # noqa: B010 - a Module


def _norm_forward(norm: Any, hidden: Tensor) -> Tensor:
    weight_D = norm.weight.to(hidden.dtype)  # of a float32 residual stream: float32
    return F.rms_norm(hidden, weight_D.shape, weight_D, norm.variance_epsilon)


def _lora_forward(module: Any, x: Tensor) -> Tensor:
    if module.disable_adapters:
        return module.base_layer(x)
    (name,) = module.active_adapters
    A_rI, B_Or = module.lora_A[name].weight, module.lora_B[name].weight
    return lora_linear(x, module.base_layer, A_rI, B_Or, module.scaling[name])


def lora_linear(x: Tensor, base: Any, A_rI: Tensor, B_Or: Tensor, scale: float) -> Tensor:
    """Compute x W^T + scale * (x A^T) B^T, with W frozen, in the type of x.

    Args:
        x: [..., I], 16 bit or float32.
        base: a linear module without bias, its weight W in the type of x or in 4 bit.
        A_rI, B_Or: the adapter, float32. Their gradients are sums in float32.

    Source: LoRA (arXiv 2106.09685).
    """
    assert getattr(base, "bias", None) is None
    return _LoraLinear.apply(x, A_rI, B_Or, base, scale)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A_rI, B_Or, base, scale: float):
        A, B = A_rI.to(x.dtype), B_Or.to(x.dtype)
        out, x_TI = base(x), x.reshape(-1, x.shape[-1])
        low_Tr = x_TI @ A.T
        out.view(-1, out.shape[-1]).addmm_(low_Tr, B.T, alpha=scale)
        trained = (x_TI, low_Tr) if A_rI.requires_grad else (None, None)
        ctx.save_for_backward(A, B, *trained)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        A, B, x_TI, low_Tr = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_TO = grad.reshape(-1, grad.shape[-1])
        grad_low_Tr = grad_TO @ B
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_TI = grad_TO @ frozen_weight(ctx.base).to(grad.dtype)
            grad_TI.addmm_(grad_low_Tr, A, alpha=ctx.scale)
            grad_x = grad_TI.view(*grad.shape[:-1], A.shape[1])
        if ctx.needs_input_grad[1]:
            grad_A = tk.mm_float32(grad_low_Tr.T, x_TI).mul_(ctx.scale)
            grad_B = tk.mm_float32(grad_TO.T, low_Tr).mul_(ctx.scale)
        return grad_x, grad_A, grad_B, None, None
