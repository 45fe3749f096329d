"""The step between the two products of `lora_experts`, in plain torch.

Shape letters: T tokens, E experts, r rank, R = E * r.
"""

import torch
from torch import Tensor


def _by_expert(low_TR: Tensor, weights_TE: Tensor) -> Tensor:
    num_tokens, num_experts = weights_TE.shape
    return low_TR.view(num_tokens, num_experts, low_TR.shape[1] // num_experts)


def scale_ranks(low: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See `lora.Implementation`."""
    return (
        (_by_expert(low, weights) * (weights.float() * scale)[:, :, None])
        .to(low.dtype)
        .view(low.shape)
    )


def scale_ranks_backward(
    grad: Tensor, low: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `lora.Implementation`."""
    grad_TEr, low_TEr = _by_expert(grad, weights).float(), _by_expert(low, weights).float()
    grad_weights_TE = torch.einsum("ter,ter->te", grad_TEr, low_TEr)
    return scale_ranks(grad, weights, scale), grad_weights_TE.mul_(scale)
