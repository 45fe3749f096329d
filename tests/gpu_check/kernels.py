"""Kernels and the attention of trees against float64, and their bandwidth against the card's.

Shape letters: T tokens, D width, V vocabulary, E experts, R ranks of all experts; A batch, H heads,
Q queries, K keys, d head size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import triton_kernels as tk
from prism_lite.models.attention import attend
from prism_lite.models.device import OLDEST_BFLOAT16
from prism_lite.models.packed_attention import packed_attention
from tests.gpu_check.timing import seconds_of
from triton_kernels import reference

VOCABULARY = 151_936  # of Qwen3-VL
# Largest error in nats that rounding explains: hidden states and head have 8 or 11 bits, and the sums over
# the width and the vocabulary are float32.
MOST_NATS = 5e-3
MOST_RELATIVE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def kernel_facts(device: str, *, small: bool) -> Iterator[Mapping[str, Any]]:
    """Yield errors and speeds.

    Raises:
        RuntimeError: a result is wrong.
    """
    yield {"triton": tk.why_no_triton(0) or "runs" if device == "cuda" else "no card"}
    num_tokens, width, vocabulary = (33, 64, 700) if small else (256, 2048, VOCABULARY)
    paths = ("triton", "torch") if device == "cuda" and tk.why_no_triton(0) is None else ("torch",)
    logprobs = [
        facts
        for dtype in MOST_RELATIVE
        for facts in logprob_errors(device, num_tokens, width, vocabulary, dtype, paths)
    ]
    yield {"token_logprobs": logprobs}
    experts = [expert_errors(device, num_tokens, width, path) for path in paths]
    yield {"lora_experts": experts}
    has_bfloat16 = device == "cpu" or torch.cuda.get_device_capability() >= OLDEST_BFLOAT16
    of_card = torch.bfloat16 if has_bfloat16 else torch.float16
    attention = [
        attention_errors(device, dtype) for dtype in dict.fromkeys((torch.float16, of_card))
    ]
    yield {"attention": attention}
    packed = packed_attention_errors(device) if device == "cuda" else []
    yield {"attention of a token step": packed}
    yield {"speed": speeds(device, of_card, small=small)}
    facts = (*logprobs, *experts, *attention, *packed)
    wrong = [fact for fact in facts if not fact["is_right"]]
    if wrong:
        raise RuntimeError(f"wrong results: {wrong}")


def logprob_errors(
    device: str,
    num_tokens: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    paths: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Compare log-probs, entropies and gradients with the reference in float64."""
    generator = torch.Generator(device).manual_seed(0)
    hidden_TD = torch.randn(num_tokens, width, device=device, generator=generator).to(dtype)
    head_VD = torch.randn(vocabulary, width, device=device, generator=generator)
    head_VD = (head_VD * 3 / width**0.5).to(dtype)
    ids_T = torch.randint(0, vocabulary, (num_tokens,), device=device, generator=generator)
    ids_T[0] = tk.IGNORED_ID
    weight_T = torch.linspace(-1, 1, num_tokens, device=device)
    true_TD, true_head_VD = hidden_TD.double().requires_grad_(), head_VD.double()
    true = [
        reference.token_logprobs(x, true_head_VD, ids, temperature=0.7, return_entropy=True)
        for x, ids in zip(true_TD.split(64), ids_T.split(64), strict=True)
    ]
    true_logprob_T, true_entropy_T = (torch.cat(pieces) for pieces in zip(*true, strict=True))
    (true_logprob_T * weight_T).sum().backward()
    for path in paths:
        x_TD = hidden_TD.clone().requires_grad_()
        with mock.patch.dict(os.environ, PRISM_KERNELS=path):
            logprob_T, entropy_T = tk.token_logprobs(
                x_TD, head_VD, ids_T, temperature=0.7, return_entropy=True
            )
            (logprob_T * weight_T).sum().backward()
        nats = max(_largest(logprob_T, true_logprob_T), _largest(entropy_T, true_entropy_T))
        relative = _relative(x_TD.grad, true_TD.grad)
        yield {
            "dtype": _name(dtype), "path": path, "vocabulary": vocabulary, "most_nats": nats,
            "gradient": relative, "is_right": nats < MOST_NATS and relative < MOST_RELATIVE[dtype],
        }  # fmt: skip


def expert_errors(device: str, num_tokens: int, width: int, path: str) -> dict[str, Any]:
    """Compare routing and LoRA experts with the reference in float64."""
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator) / shape[-1] ** 0.5

    inputs = (
        random(num_tokens, width),
        random(8, 16, width),
        random(8, width, 16),
        random(num_tokens, 8),
    )
    results = []
    for dtype, module in ((torch.float32, tk), (torch.float64, reference)):
        x, A, B, logits = (value.to(dtype).detach().requires_grad_() for value in inputs)
        with mock.patch.dict(os.environ, PRISM_KERNELS=path):
            routing = module.route_topk(logits, 2)
            out = module.lora_experts(x, A, B, routing.weights, scale=2.0)
            (out.square().sum() + routing.balance_loss).backward()
        results.append([out, *(value.grad for value in (x, A, B, logits))])
    relative = max(_relative(a, b) for a, b in zip(*results, strict=True))
    return {"path": path, "relative": relative, "is_right": relative < MOST_RELATIVE[torch.float32]}


def attention_errors(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Compare attention and its log-sum with float64; queries of one token and of a pack."""
    generator = torch.Generator(device).manual_seed(2)
    relative = 0.0
    for num_queries, num_keys in ((1, 64), (300, 517)):
        q, k, v = (
            torch.randn(2, 8, n, 128, device=device, generator=generator).to(dtype)
            for n in (num_queries, num_keys, num_keys)
        )
        out_AHQd, lse_AHQ = attend(q, k, v, scale=128**-0.5)
        score = q.double() @ k.double().transpose(-1, -2) * 128**-0.5
        relative = max(
            relative,
            _relative(out_AHQd, score.softmax(-1) @ v.double()),
            _relative(lse_AHQ, score.logsumexp(-1)),
        )
    return {
        "dtype": _name(dtype), "relative": relative, "is_right": relative < MOST_RELATIVE[dtype],
    }  # fmt: skip


def packed_attention_errors(device: str) -> list[dict[str, Any]]:
    """Compare the attention of a token step with float64, in the types that this card decodes in.

    Two prompts of 300 tokens with 16 rows each and 40 tokens of its own for every row, as PackedCache lays
    them out.
    """
    is_new = torch.cuda.get_device_capability() >= OLDEST_BFLOAT16
    facts = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32) if is_new else (torch.float16,):
        attention = packed_attention(torch.device(device), dtype, 128, 128**-0.5)
        generator = torch.Generator().manual_seed(3)
        num_queries, num_keys = [2 * 16] * 2 + [2] * 32, [300] * 2 + [40] * 32
        q_NJd = torch.randn(128, 8, 128, generator=generator).to(dtype).to(device)
        buffer = torch.randn(sum(num_keys), 16, 128, generator=generator).to(dtype).to(device)
        begins = [
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device)
            for counts in (num_queries, num_keys)
        ]
        out_NJd, lse = attention.attend(q_NJd, buffer[:, :8], buffer[:, 8:], *begins, 32, 300)
        lse_NJ = lse.take(attention.lse_slots(num_queries, 8).to(device))
        true_out, true_lse = [], []
        keys_values = buffer.double().split(num_keys)
        for q, kv in zip(q_NJd.double().split(num_queries), keys_values, strict=True):
            score_JQK = torch.einsum("qjd,kjd->jqk", q, kv[:, :8]) * 128**-0.5
            true_out.append(torch.einsum("jqk,kjd->qjd", score_JQK.softmax(-1), kv[:, 8:]))
            true_lse.append(score_JQK.logsumexp(-1).T)
        relative = max(
            _relative(out_NJd, torch.cat(true_out)), _relative(lse_NJ, torch.cat(true_lse))
        )
        facts.append(
            {
                "dtype": _name(dtype),
                "public": not attention.is_by_sequence,
                "relative": relative,
                "is_right": relative < MOST_RELATIVE[dtype],
            }
        )
    return facts


def speeds(device: str, dtype: torch.dtype, *, small: bool) -> dict[str, float]:
    """Return bandwidths in GB/s and the share of the plain product's speed that log-probs reach.

    Args:
        dtype: the type that this card computes in.
    """
    num_tokens, width, vocabulary = (33, 64, 700) if small else (1024, 2048, VOCABULARY)
    source = torch.empty(2**20 if small else 2**28, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source), device)
    low_TR = torch.randn(64 * num_tokens, 128, device=device).to(dtype)
    weight_TE = torch.rand(64 * num_tokens, 8, device=device)
    from triton_kernels import lora

    scale_s = seconds_of(
        lambda: lora._implementation(low_TR).scale_ranks(low_TR, weight_TE, 2.0), device
    )
    num_bytes = 2 * low_TR.nbytes + weight_TE.nbytes
    hidden_TD = torch.randn(num_tokens, width, device=device).to(dtype)
    head_VD = torch.randn(vocabulary, width, device=device).to(dtype)
    ids_T = torch.arange(num_tokens, device=device) % vocabulary
    logprob_s = seconds_of(lambda: tk.token_logprobs(hidden_TD, head_VD, ids_T), device, repeats=5)
    product_s = seconds_of(lambda: hidden_TD @ head_VD.T, device, repeats=5)
    return {
        "copy_gb_s": round(2 * source.nbytes / copy_s / 1e9, 1),
        "scale_ranks_gb_s": round(num_bytes / scale_s / 1e9, 1),
        "logprobs_over_one_product": round(logprob_s / product_s, 2),
        "product_tflop_s": round(2 * num_tokens * width * vocabulary / product_s / 1e12, 2),
    }


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


def _relative(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
