"""`token_logprobs` against float64: values, gradients, chunks, edges, errors."""

import math

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.oracle import assert_close, roundoff, token_truth
from triton_kernels import logprob_torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_inputs(
    num_tokens: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: str,
    generator: torch.Generator,
    *,
    spread: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of standard deviation `spread`; the first ids sit on the edges of the vocabulary."""
    hidden = torch.randn(num_tokens, width, generator=generator) * spread / width**0.5
    weight = torch.randn(vocabulary, width, generator=generator)
    ids = torch.randint(0, vocabulary, (num_tokens,), generator=generator)
    edges = torch.tensor([0, vocabulary - 1, 127, 128, 511, 512])
    edges = edges[edges < vocabulary][:num_tokens]
    ids[: edges.numel()] = edges
    hidden = hidden.to(device, dtype).requires_grad_()
    return hidden, weight.to(device, dtype), ids.to(device)


def check_against_truth(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, generator: torch.Generator
) -> None:
    """Values and the gradient of each output, with an own random factor for each token."""
    truth = token_truth(hidden, weight, ids, temperature)
    factor = torch.randn(ids.shape, generator=generator).double()
    for name in ("logprob", "entropy"):
        hidden.grad = None
        logprob, entropy = tk.token_logprobs(
            hidden, weight, ids, temperature=temperature, return_entropy=True
        )
        assert logprob.dtype == entropy.dtype == torch.float32
        assert_close("logprob", logprob, truth.logprob, truth.logprob_bound)
        assert_close("entropy", entropy, truth.entropy, truth.entropy_bound)
        output = {"logprob": logprob, "entropy": entropy}[name]
        (output * factor.to(output)).sum().backward()
        assert hidden.grad is not None and hidden.grad.dtype == hidden.dtype
        exact = getattr(truth, f"{name}_direction") * factor[:, None]
        bound = getattr(truth, f"{name}_direction_bound") * factor[:, None].abs().clamp(min=1)
        assert_close(f"gradient of {name}", hidden.grad, exact, bound)


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
        for num_tokens in (1, 100, 2000, 100_000):
            rows = logprob_torch._chunk_rows(num_tokens, torch.device("cpu"))
            assert rows == 512 or 4 * rows * num_tokens <= 8 * 2**20


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
    """
    vocabulary = 139_230
    hidden = torch.zeros(1, 2, dtype=torch.float16, device=device, requires_grad=True)
    weight = torch.ones(vocabulary, 2, dtype=torch.float16, device=device)
    weight[5] = 0
    tk.token_logprobs(hidden, weight, torch.tensor([5], device=device)).sum().backward()
    exact = torch.full((1, 2), -(1 - 1 / vocabulary))
    assert_close("gradient", hidden.grad, exact, 2 * roundoff(torch.float16) + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_tokens_give_nothing(dtype, device, generator) -> None:
    hidden, weight, ids = make_inputs(9, 16, 50, dtype, device, generator)
    is_ignored = torch.arange(9) % 3 == 1
    with torch.no_grad():
        full = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    ids = ids.masked_fill(is_ignored.to(device), tk.IGNORED_ID)
    logprob, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    (logprob.sum() + entropy.sum()).backward()
    assert hidden.grad is not None
    for got, all_values in zip((logprob, entropy), full, strict=True):
        assert torch.equal(got[is_ignored], torch.zeros_like(got[is_ignored]))
        assert torch.equal(got[~is_ignored], all_values[~is_ignored])
    assert not hidden.grad[is_ignored].any()
    assert hidden.grad[~is_ignored].any(dim=1).all()


def test_no_tokens(device) -> None:
    hidden = torch.empty(0, 8, device=device, requires_grad=True)
    weight, ids = (
        torch.randn(11, 8, device=device),
        torch.empty(0, dtype=torch.int64, device=device),
    )
    logprob, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    assert logprob.shape == entropy.shape == (0,)
    (logprob.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 8)
    with torch.no_grad():
        assert tk.token_logprobs(hidden, weight, ids).shape == (0,)


def test_strides_and_int32_ids(device, generator) -> None:
    hidden, weight, ids = make_inputs(12, 16, 300, torch.float32, device, generator)
    strided_hidden = hidden.detach().T.contiguous().T.requires_grad_()
    strided_weight = torch.stack([weight, weight], dim=2)[:, :, 1]
    strided_ids = torch.stack([ids, ids], dim=1)[:, 0].to(torch.int32)
    assert not (strided_hidden.is_contiguous() or strided_weight.is_contiguous())
    check_against_truth(strided_hidden, strided_weight, strided_ids.long(), 1.0, generator)
    logprob = tk.token_logprobs(strided_hidden, strided_weight, strided_ids)
    plain = tk.token_logprobs(hidden, weight, ids)
    bound = token_truth(hidden, weight, ids, 1.0).logprob_bound
    assert_close("logprob", logprob, plain, 2 * bound)


def test_logits_of_minus_infinity(device, generator) -> None:
    """Forbidden tokens (weights of -inf against positive hidden states) leave the others exact."""
    hidden, weight, ids = make_inputs(6, 4, 40, torch.float32, device, generator)
    hidden = hidden.detach().abs() + 0.1
    allowed = torch.arange(40, device=device) % 3 != 0
    ids = torch.where(allowed[ids], ids, 1)
    ids[0] = 3  # a forbidden token: -inf
    masked = torch.where(allowed[:, None], weight, -torch.inf)
    logprob, entropy = tk.token_logprobs(hidden, masked, ids, return_entropy=True)
    number = torch.cumsum(allowed, 0) - 1
    truth = token_truth(hidden, weight[allowed], number[ids], 1.0)
    expected = truth.logprob.clone()
    expected[0] = -torch.inf
    assert_close("logprob", logprob, expected, truth.logprob_bound)
    assert_close("entropy", entropy, truth.entropy, truth.entropy_bound)
    nothing = torch.full_like(weight, -torch.inf)
    logprob, entropy = tk.token_logprobs(hidden, nothing, ids, return_entropy=True)
    assert logprob.isnan().all() and entropy.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_stays_visible_and_alone(bad, device, generator) -> None:
    hidden, weight, ids = make_inputs(5, 8, 30, torch.float32, device, generator)
    with torch.no_grad():
        clean = tk.token_logprobs(hidden, weight, ids)
        hidden[2, 3] = bad
    logprob, entropy = tk.token_logprobs(hidden, weight, ids, return_entropy=True)
    logprob.sum().backward()
    assert hidden.grad is not None
    assert not logprob[2].isfinite() and not entropy[2].isfinite()
    assert not hidden.grad[2].isfinite().any()
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(logprob[others], clean[others])
    assert hidden.grad[others].isfinite().all()


def test_large_logits(device) -> None:
    """exp(1000) overflows; the log-prob does not."""
    hidden = torch.tensor([[1000.0], [-1000.0]], device=device, requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [-1.0]], device=device)
    logprob, entropy = tk.token_logprobs(
        hidden, weight, torch.tensor([0, 0], device=device), return_entropy=True
    )
    assert logprob.tolist() == [0.0, -2000.0] and entropy.tolist() == [0.0, 0.0]
    logprob.sum().backward()
    assert hidden.grad is not None and hidden.grad.flatten().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("tops", [(200.0, 0.0, -90.0), (-90.0, 0.0, 200.0), (0.0, 200.0, 1.0)])
def test_the_maximum_rises_and_falls_between_blocks(tops, device, generator, monkeypatch) -> None:
    """Three blocks of 4,096 columns whose largest logits differ by more than exp can span."""
    monkeypatch.setattr(logprob_torch, "_chunk_rows", lambda *_: 4096)
    blocks = [torch.rand(4096, 1, generator=generator) * 4 - 4 + top for top in tops]
    weight = torch.cat(blocks).to(device)
    hidden = torch.ones(3, 1, device=device).requires_grad_()
    ids = torch.tensor([17, 4096 + 17, 8192 + 17], device=device)
    check_against_truth(hidden, weight, ids, 1.0, generator)


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


def test_mixed_dtypes(device, generator) -> None:
    """float32 hidden states with a 16-bit head, as under QLoRA."""
    hidden, weight, ids = make_inputs(7, 16, 100, torch.bfloat16, device, generator)
    hidden = hidden.detach().float().requires_grad_()  # representable in both
    check_against_truth(hidden, weight, ids, 1.0, generator)
