"""Exact KL divergence over the vocabulary at every token, without a [tokens, vocab] tensor.

Rows of hidden states are walked in chunks; the gradient is formed while a chunk's logits are at hand:

    d KL(p || q) / d logit_v = p_v (log p_v - log q_v - KL)

Shape letters: N tokens, D hidden size, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}  # of each of the few [C, V] tensors
FP16_SCALE = 1024.0  # float16 flushes the share of a rare token to zero without it


def vocabulary_kl(
    hidden_ND: Tensor, reference_ND: Tensor, weight_VD: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL(policy || reference) of the next-token distributions.

    Args:
        hidden_ND: the policy's final hidden states at the predicting positions, with gradient.
        reference_ND: the reference's, without.
        weight_VD: the frozen head of both.
        temperature: divides the logits of both; above 0.

    Returns:
        kl_N: float32, nats; differentiable once, in `hidden_ND`.
    """
    if torch.is_grad_enabled() and hidden_ND.requires_grad:
        return _VocabularyKl.apply(hidden_ND, reference_ND, weight_VD, temperature)
    return _walk(hidden_ND, reference_ND, weight_VD, temperature, None)


class _VocabularyKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, reference_ND, weight_VD, temperature: float):
        direction_ND = torch.empty_like(hidden_ND, dtype=torch.float32)
        kl_N = _walk(hidden_ND, reference_ND, weight_VD, temperature, direction_ND)
        ctx.save_for_backward(direction_ND)
        ctx.dtype = hidden_ND.dtype
        return kl_N

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        (direction_ND,) = ctx.saved_tensors
        return (grad_outputs[0][:, None] * direction_ND).to(ctx.dtype), None, None, None


@torch.no_grad()
def _walk(
    hidden_ND: Tensor,
    reference_ND: Tensor,
    weight_VD: Tensor,
    temperature: float,
    direction_ND: Tensor | None,
) -> Tensor:
    """kl_N; fills `direction_ND`, d kl / d hidden, where it is given."""
    rows = max(1, CHUNK_ELEMENTS[hidden_ND.device.type] // weight_VD.shape[0])
    kl_N = torch.empty(len(hidden_ND), device=hidden_ND.device)
    scale = FP16_SCALE if weight_VD.dtype == torch.float16 else 1.0
    for start in range(0, len(hidden_ND), rows):
        chunk = slice(start, start + rows)
        log_p_CV, log_q_CV = (
            ((states[chunk].to(weight_VD.dtype) @ weight_VD.T).float() / temperature).log_softmax(1)
            for states in (hidden_ND, reference_ND)
        )
        p_CV = log_p_CV.exp()
        log_ratio_CV = log_p_CV.sub_(log_q_CV)
        kl_C = (p_CV * log_ratio_CV).sum(1)
        kl_N[chunk] = kl_C
        if direction_ND is not None:
            share_CV = p_CV.mul_(log_ratio_CV.sub_(kl_C[:, None])).mul_(scale / temperature)
            direction_ND[chunk] = (share_CV.to(weight_VD.dtype) @ weight_VD).float() / scale
    return kl_N
