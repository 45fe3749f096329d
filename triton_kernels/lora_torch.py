"""The step between the two products of `lora_experts`, in plain torch.

Shape letters: T tokens, E experts, r rank, R = E * r.
"""

import torch
from torch import Tensor


def scale_ranks(low: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See `lora.Implementation`."""
    low_TEr = low.view(*weights.shape, -1)
    return (low_TEr * (weights.float() * scale)[:, :, None]).to(low.dtype).view(low.shape)


def scale_ranks_backward(
    grad: Tensor, low: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `lora.Implementation`."""
    shape = (*weights.shape, low.shape[1] // weights.shape[1])
    grad_weights_TE = torch.einsum("ter,ter->te", grad.view(shape).float(), low.view(shape).float())
    return scale_ranks(grad, weights, scale), grad_weights_TE.mul_(scale)
