"""`token_logprobs` against float64: values, gradients, chunks, cost."""

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.logprob_checks import DTYPES, check_against_truth, make_inputs
from tests.kernels.oracle import U32, assert_close, roundoff, token_truth
from triton_kernels import logprob_torch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "width", "vocabulary", "temperature"),
    [(1, 1, 1, 1.0), (5, 16, 7, 0.5), (37, 48, 1000, 1.0), (20, 33, 513, 1.7), (3, 8, 4097, 1.0)],
)
def test_values_and_gradients(
    num_tokens, width, vocabulary, temperature, dtype, device, generator
) -> None:
    hidden, weight, ids = make_inputs(num_tokens, width, vocabulary, dtype, device, generator)
    check_against_truth(hidden, weight, ids, temperature, generator)


def test_the_vocabulary_of_qwen(device, generator) -> None:
    hidden, weight, ids = make_inputs(2, 8, 151_936, torch.float32, device, generator)
    check_against_truth(hidden, weight, ids, 1.0, generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_chunks_change_nothing(path, dtype, device, generator, monkeypatch) -> None:
    hidden, weight, ids = make_inputs(21, 16, 700, dtype, device, generator)
    if path == "triton":  # 21 tokens in chunks of 6, 6, 6, 3
        from triton_kernels import logprob_triton

        monkeypatch.setattr(logprob_triton, "_chunk_tokens", lambda *_: 6)
    else:  # 700 rows in chunks of 192, 192, 192, 124
        monkeypatch.setattr(logprob_torch, "_chunk_rows", lambda *_: 192)
    check_against_truth(hidden, weight, ids, 0.8, generator)


def test_chunks_keep_within_the_budget(path) -> None:
    if path == "triton":
        from triton_kernels import logprob_triton as implementation

        for num_tokens, vocabulary in [(1, 1), (1000, 151_936), (100_000, 500), (577, 151_936)]:
            chunk = implementation._chunk_tokens(num_tokens, vocabulary)
            assert 1 <= chunk <= num_tokens
            assert chunk <= 64 or 6 * chunk * vocabulary <= implementation.CHUNK_BYTES
    else:
        for num_tokens, width in [(1, 1), (100, 2560), (2000, 128), (1024, 2560), (100_000, 64)]:
            rows = logprob_torch._chunk_rows(num_tokens, width, torch.device("cpu"))
            assert rows == 512 or 4 * rows * (num_tokens + width) <= 24 * 2**20


def test_a_confident_token_keeps_its_small_gradient(device, generator) -> None:
    """1 - p = 3e-7 at the target: computed as 1 - p in float32 it would keep no digit."""
    weight = torch.randn(40, 8, generator=generator)
    hidden = weight[:1] / weight[0].norm() ** 2 * 20.0
    weight[1:] -= (weight[1:] @ weight[0] / weight[0].norm() ** 2)[:, None] * weight[0]
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    hidden, weight = hidden.to(device).requires_grad_(), weight.to(device)
    tk.token_logprobs(hidden, weight, ids).sum().backward()
    exact = token_truth(hidden, weight, ids, 1.0).logprob_direction
    assert exact.abs().max() < 1e-6
    assert_close("gradient", hidden.grad, exact, 1e-4 * exact.abs().max())


def test_float16_gradients_do_not_underflow(device) -> None:
    """A uniform distribution over 139,230 tokens: p = 120.5 spacings of float16's subnormals.

    All round the same way, so unscaled the gradient would be wrong by 0.5 / 120.5 = 4.1e-3. Scaled
    by 1024 each p is a normal number, right to 2^-11; the gradient may be rounded once more.

    Only 64 rows of the head are not zero: the product is then a sum of 64 terms (adding zeros is
    exact), wrong by 63 u at most in any order. Over 139,230 equal terms the bound would be
    n * u = 8.3e-3 and hide the fault: they all round the same way in each binade, so a library that
    adds in sequence errs by 2e-3 (seen on AVX2), far above the 8 sqrt(n) u of independent roundings.
    """
    vocabulary, rows = 139_230, 64
    hidden = torch.zeros(1, 2, dtype=torch.float16, device=device, requires_grad=True)
    weight = torch.zeros(vocabulary, 2, dtype=torch.float16, device=device)
    weight[-rows:] = 1
    tk.token_logprobs(hidden, weight, torch.tensor([5], device=device)).sum().backward()
    exact = torch.full((1, 2), -rows / vocabulary, dtype=torch.float64)
    # 1 / p and the sum of 139,230 ones are exact integers in float32; exp, log, scaling: 4 u.
    relative = 2 * roundoff(torch.float16) + (rows - 1 + 4) * U32
    assert_close("gradient", hidden.grad, exact, relative * exact.abs())


def test_two_runs_agree_to_the_bit(device, generator) -> None:
    hidden, weight, ids = make_inputs(19, 16, 900, torch.bfloat16, device, generator)
    runs = []
    for _ in range(2):
        hidden.grad = None
        logprob, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
        (logprob.sum() - entropy.sum()).backward()
        assert hidden.grad is not None
        runs.append((logprob.detach(), entropy.detach(), hidden.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_without_gradient_no_direction_is_computed(device, generator, monkeypatch) -> None:
    """The second product is for gradients only, and the third for the entropy's gradient only."""
    calls: list[str] = []
    from triton_kernels import logprob

    real = logprob._implementation

    def recording(hidden: Tensor):
        implementation = real(hidden)

        class Recorder:
            @staticmethod
            def sweep(*args, **kwargs):
                calls.append("logprob" if kwargs["direction"] is None else "logprob+direction")
                return implementation.sweep(*args, **kwargs)

            @staticmethod
            def entropy_direction(*args):
                calls.append("entropy direction")
                return implementation.entropy_direction(*args)

        return Recorder

    monkeypatch.setattr(logprob, "_implementation", recording)
    hidden, weight, ids = make_inputs(4, 8, 30, torch.float32, device, generator)
    with torch.no_grad():
        tk.token_logprobs(hidden, weight, ids)
    with torch.inference_mode():
        tk.token_logprobs(hidden, weight, ids)
    tk.token_logprobs(hidden.detach(), weight, ids)
    assert calls == ["logprob"] * 3
    calls.clear()
    values, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    values.sum().backward()
    assert calls == ["logprob+direction"]
    calls.clear()
    values, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    entropy.sum().backward()
    assert calls == ["logprob+direction", "entropy direction"]


def test_a_loss_that_is_not_token_separable(device, generator) -> None:
    """A sequence-level ratio (as in GSPO): the saved direction serves any loss."""
    hidden, weight, ids = make_inputs(8, 16, 200, torch.float32, device, generator)
    torch.exp(tk.token_logprobs(hidden, weight, ids).mean()).backward()
    truth = token_truth(hidden, weight, ids, 1.0)
    factor = truth.logprob.mean().exp() / 8
    bound = truth.logprob_direction_bound * factor + truth.logprob_bound.max() * (
        truth.logprob_direction.abs() * factor
    )
    assert_close("gradient", hidden.grad, truth.logprob_direction * factor, bound)
