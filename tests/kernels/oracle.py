"""float64 truth for the kernel tests, and error bounds derived from the data.

Every bound is first-order rounding analysis (Higham, Accuracy and Stability, chapter 3): a sum of n
terms computed with unit roundoff u errs by at most gamma(n) * sum |terms|, and each later step
multiplies the error that it receives by the derivative of that step. gamma(n) is the probabilistic
8 * sqrt(n) * u of Higham and Mary (2019), for roundings that are independent, as those of random
terms are: the worst case n * u is then never met and would hide bugs. (Equal terms do come near it:
`test_float16_gradients_do_not_underflow` keeps its sum short instead.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

U32 = 2.0**-24  # unit roundoff of float32


def roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def smallest(dtype: torch.dtype) -> float:
    """Spacing of the subnormal numbers of `dtype`: the absolute error of rounding near 0."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def gamma(num_terms: int) -> float:
    return 8 * max(num_terms, 1) ** 0.5 * U32


def assert_close(name: str, actual: Tensor | None, expected: Tensor, bound: Tensor | float) -> None:
    """|actual - expected| <= bound, elementwise; NaN and infinities must agree."""
    assert actual is not None, f"{name} is missing"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape, f"{name}: {actual.shape} != {expected.shape}"
    is_finite = expected.isfinite()
    same = torch.equal(actual[~is_finite].nan_to_num(7.0), expected[~is_finite].nan_to_num(7.0))
    assert same, f"{name}: expected {expected[~is_finite]}, got {actual[~is_finite]}"
    bound = torch.as_tensor(bound, dtype=torch.float64).cpu().expand(expected.shape)[is_finite]
    error = (actual - expected)[is_finite].abs()
    assert not error.isnan().any(), f"{name}: NaN where {expected[is_finite][error.isnan()]}"
    excess = (error / bound.clamp(min=1e-300)).max().item() if error.numel() else 0.0
    assert excess <= 1.0, f"{name}: error is {excess:.3g} times its bound"


class TokenTruth(NamedTuple):
    """Exact results of `token_logprobs` and bounds of their errors. Shapes as in the public API."""

    logprob: Tensor
    entropy: Tensor
    logprob_direction: Tensor  # [T, D], d logprob / d hidden
    entropy_direction: Tensor
    logprob_bound: Tensor
    entropy_bound: Tensor
    logprob_direction_bound: Tensor
    entropy_direction_bound: Tensor


def token_truth(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> TokenTruth:
    """Closed forms in float64 of what `token_logprobs` computes from these (rounded) inputs."""
    half, out = weight.dtype, hidden.dtype
    h, w, ids = hidden.detach().double().cpu(), weight.double().cpu(), ids.cpu()
    (num_tokens, width), vocabulary = h.shape, w.shape[0]
    one_hot = torch.zeros(num_tokens, vocabulary, dtype=torch.float64)
    one_hot[torch.arange(num_tokens), ids] = 1
    logits = h @ w.T / temperature
    logp = torch.log_softmax(logits, 1)
    p = logp.exp()
    entropy = -(p * logp).sum(1)
    surprise = logp + entropy[:, None]
    d, q = (one_hot - p) / temperature, -p * surprise / temperature

    # A logit errs by the GEMM's sum, the log-sum-exp by the same at most, plus its own sum.
    logit_error = (gamma(width) + 4 * U32) * (h.abs() @ w.abs().T).amax(1) / temperature
    scale = logits.abs().amax(1) + entropy + 1
    sums_error = (gamma(vocabulary) + 16 * U32) * scale
    logprob_bound = 2 * logit_error + sums_error
    entropy_bound = 2 * logit_error * (p * surprise.abs()).sum(1) + sums_error

    # p errs by 2 * logit_error relatively; it is stored in the weight's dtype for the second GEMM
    # (float16 scaled by 1024), whose sum errs by gamma(V); the result is rounded twice at the most.
    stored = roundoff(half) + 8 * U32 + gamma(vocabulary)
    flushed = smallest(half) / (1024 if half == torch.float16 else 1) * w.abs().sum(0) / temperature
    relative = (2 * logprob_bound + stored)[:, None]
    rounded = 2 * roundoff(out) + 4 * U32

    def direction_bound(coefficient: Tensor, error: Tensor, exact: Tensor) -> Tensor:
        product = (coefficient.abs() * relative + error) @ w.abs()
        return product + flushed + rounded * exact.abs() + smallest(out)

    logprob_direction, entropy_direction = d @ w, q @ w
    surprise_error = p * (logprob_bound + entropy_bound)[:, None] / temperature
    return TokenTruth(
        logprob=logp.gather(1, ids[:, None])[:, 0],
        entropy=entropy,
        logprob_direction=logprob_direction,
        entropy_direction=entropy_direction,
        logprob_bound=logprob_bound,
        entropy_bound=entropy_bound,
        logprob_direction_bound=direction_bound(d, torch.zeros_like(d), logprob_direction),
        entropy_direction_bound=direction_bound(q, surprise_error, entropy_direction),
    )
