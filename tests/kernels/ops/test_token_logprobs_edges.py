"""`token_logprobs` at the edges: nothing, ignored, infinite, strided, mixed."""

import math

import pytest
import torch

import triton_kernels as tk
from tests.kernels.logprob_checks import DTYPES, check_against_truth, make_inputs
from tests.kernels.oracle import assert_close, token_truth
from triton_kernels import logprob_torch


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


def test_mixed_dtypes(device, generator) -> None:
    """float32 hidden states with a 16-bit head, as under QLoRA."""
    hidden, weight, ids = make_inputs(7, 16, 100, torch.bfloat16, device, generator)
    hidden = hidden.detach().float().requires_grad_()  # representable in both
    check_against_truth(hidden, weight, ids, 1.0, generator)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_16_bit_products_on_the_torch_path(path, dtype, device, generator, monkeypatch) -> None:
    """What CUDA without Triton computes: the CPU path would make these products in float32."""
    if path == "triton":
        pytest.skip("the kernels' own products are 16-bit everywhere")
    monkeypatch.setattr(logprob_torch, "gemm_dtype", lambda weight: weight.dtype)
    monkeypatch.setattr(logprob_torch, "_chunk_rows", lambda *_: 192)
    hidden, weight, ids = make_inputs(21, 16, 700, dtype, device, generator)
    check_against_truth(hidden, weight, ids, 0.8, generator)
