"""Token log-probs and entropy of a language-model head, without a [T, vocab] tensor.

Used between the backbone's last hidden states and every loss (SFT, policy gradient, KL). Source: the
chunked-head idea of Liger-Kernel (BSD-2) and quack (Apache-2.0), no code copied. Ours differs: the
gradient of a token's log-prob is g_t * u_t, where only the scalar g_t depends on the loss and

    u_t = d logprob_t / d hidden_t = (W[y_t] - sum_v p_tv W[v]) / temperature

does not. u [T, D] is computed in the forward pass while the chunk of logits is in memory, so that
forward and backward cost two matrix-product units (2 * T * V * D operations each) for *any* loss,
token-separable or not, instead of the three of recomputation. Without gradients the cost is one unit.

Shape letters: T tokens, D width, V vocabulary, C tokens or vocabulary rows of one chunk.
"""

import math
from typing import Literal, Protocol, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triton_kernels._common import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    check_tensor,
    choose_backend,
    describe,
    is_fake,
    no_autocast,
)
from triton_kernels.types import IGNORED_ID, Sweep


class Implementation(Protocol):
    """What `logprob_torch` and `logprob_triton` provide."""

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        inv_temperature: float,
        *,
        entropy: bool,
        direction: torch.dtype | None,
    ) -> Sweep:
        """Compute log-probs and, if requested, the entropy and the gradient's direction in a dtype."""
        ...

    def entropy_direction(
        self,
        hidden: Tensor,
        weight: Tensor,
        lse: Tensor,
        entropy: Tensor,
        inv_temperature: float,
    ) -> Tensor:
        """Compute d entropy_t / d hidden_t, float32 [T, D]."""
        ...


def _implementation(hidden: Tensor) -> Implementation:
    if choose_backend(hidden) == "triton":
        from triton_kernels import logprob_triton  # the only place that needs Triton

        return logprob_triton
    from triton_kernels import logprob_torch

    return logprob_torch


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, inv_temperature: float, entropy: bool):
        # bfloat16 has the range of float32, so the gradient may be rounded here already; float16 would
        # lose the small directions of confident tokens.
        saved = torch.bfloat16 if hidden.dtype == torch.bfloat16 else torch.float32
        with no_autocast(hidden):
            sweep = _implementation(hidden).sweep(
                hidden, weight, ids, inv_temperature, entropy=entropy, direction=saved
            )
        extra = (hidden, weight, sweep.lse, sweep.entropy) if entropy else ()
        ctx.save_for_backward(sweep.direction, *extra)
        ctx.inv_temperature, ctx.dtype = inv_temperature, hidden.dtype
        ctx.set_materialize_grads(False)  # None, not zeros, for an entropy without gradient
        return (sweep.logprob, sweep.entropy) if entropy else sweep.logprob

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_logprob_T, grad_entropy_T = (*grad_outputs, None)[:2]
        direction_TD, *extra = ctx.saved_tensors
        grad_TD = None
        if grad_logprob_T is not None:
            grad_TD = grad_logprob_T[:, None] * direction_TD
        if grad_entropy_T is not None:
            hidden, weight, lse, entropy = extra
            with no_autocast(hidden):
                entropy_TD = _implementation(hidden).entropy_direction(
                    hidden, weight, lse, entropy, ctx.inv_temperature
                )
            entropy_TD.mul_(grad_entropy_T[:, None])
            grad_TD = entropy_TD if grad_TD is None else entropy_TD.add_(grad_TD)
        return (None if grad_TD is None else grad_TD.to(ctx.dtype)), None, None, None, None


def _check(hidden: Tensor, weight: Tensor, token_ids: Tensor, temperature: float) -> None:
    check_tensor("hidden", hidden, {"T": None, "D": None}, FLOAT_DTYPES)
    num_tokens, width = hidden.shape
    on = ("hidden", hidden)
    check_tensor("weight", weight, {"V": None, "D": width}, FLOAT_DTYPES, like=on)
    check_tensor("token_ids", token_ids, {"T": num_tokens}, INDEX_DTYPES, like=on)
    if weight.requires_grad:
        raise ValueError(
            f"weight {describe(weight)} requires grad, but the head is frozen: no gradient flows "
            "to it. Call weight.requires_grad_(False) or pass weight.detach()"
        )
    is_number = isinstance(temperature, int | float)
    if not (is_number and math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
    if weight.shape[0] == 0:
        raise ValueError(f"weight must have at least one row (V >= 1), got {describe(weight)}")


def _has_ignored(token_ids: Tensor, vocabulary: int) -> bool:
    """Check for IGNORED_ID among the ids; refuse ids out of range. Reads the device's memory once."""
    if token_ids.numel() == 0:
        return False
    if is_fake(token_ids):
        return True
    low, high = (int(bound) for bound in torch.aminmax(token_ids))
    has_ignored = low == IGNORED_ID
    if has_ignored:
        low = int(token_ids.masked_fill(token_ids == IGNORED_ID, max(high, 0)).min())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"token_ids {describe(token_ids)} must be in 0..{vocabulary - 1} (or "
            f"{IGNORED_ID} to be ignored), got values from {low} to {high}"
        )
    return has_ignored


@overload
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: Literal[False] = False,
) -> Tensor: ...
@overload
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the log-prob of each token under softmax(hidden @ weight^T / temperature).

    Costs one matrix-product unit without gradients, two with (backward included). Differentiating
    the entropy costs two more, in the backward; only reading it is free.

    Args:
        hidden: [T, D] float32, bfloat16 or float16; any strides. T = 0 is fine.
        weight: [V, D], the frozen head, in any of the three dtypes; must not require grad. On CUDA
            the products are computed in its dtype (as autocast does) with float32 results; on the
            CPU in float32, converting one chunk at a time.
        token_ids: int64 or int32 [T]. -100 marks a token to ignore: log-prob and entropy 0, no
            gradient. (Ignored tokens still cost time: select rows first if there are many.)
        temperature: divides the logits; above 0.
        return_entropy: also return the entropy of each token's distribution.

    Returns:
        logprob [T] float32 in nats; with `return_entropy` the pair (logprob, entropy [T] float32).
        Non-finite inputs give non-finite results. Gradients reach `hidden` only, in its dtype, and
        only once (no second derivative).

    Raises:
        ValueError: a wrong shape, dtype or device, an id out of range, a temperature that is not
            positive and finite, or a weight that requires grad.

    Source: see the module's docstring.
    """
    _check(hidden, weight, token_ids, temperature)
    is_ignored_T = None
    if _has_ignored(token_ids, weight.shape[0]):
        is_ignored_T = token_ids == IGNORED_ID
        token_ids = token_ids.masked_fill(is_ignored_T, 0)
    token_ids, inv_temperature = token_ids.long(), 1.0 / temperature
    entropy_T = None
    if torch.is_grad_enabled() and hidden.requires_grad:
        outputs = _TokenLogprobs.apply(hidden, weight, token_ids, inv_temperature, return_entropy)
        logprob_T, entropy_T = outputs if return_entropy else (outputs, None)
    else:
        with no_autocast(hidden):
            logprob_T, _, entropy_T, _ = _implementation(hidden).sweep(
                hidden, weight, token_ids, inv_temperature, entropy=return_entropy, direction=None
            )
    if is_ignored_T is not None:
        logprob_T = logprob_T.masked_fill(is_ignored_T, 0)
        entropy_T = None if entropy_T is None else entropy_T.masked_fill(is_ignored_T, 0)
    return logprob_T if entropy_T is None else (logprob_T, entropy_T)
