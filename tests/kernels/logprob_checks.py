"""Inputs and comparison shared by the tests of `token_logprobs`."""

import torch
from torch import Tensor

import triton_kernels as tk
from tests.kernels.oracle import assert_close, token_truth

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
    """Values and gradients, of the log-prob alone and of both outputs, by random factors."""
    truth = token_truth(hidden, weight, ids, temperature)
    factor = torch.randn(ids.shape, generator=generator).double()
    for share_of_entropy in (0.0, 0.75):
        hidden.grad = None
        logprob, entropy = tk.token_logprobs(
            hidden, weight, ids, temperature=temperature, return_entropy=True
        )
        assert logprob.dtype == entropy.dtype == torch.float32
        assert_close("logprob", logprob, truth.logprob, truth.logprob_bound)
        assert_close("entropy", entropy, truth.entropy, truth.entropy_bound)
        loss_T = logprob + share_of_entropy * entropy if share_of_entropy else logprob
        (loss_T * factor.to(loss_T)).sum().backward()
        assert hidden.grad is not None and hidden.grad.dtype == hidden.dtype
        exact = truth.logprob_direction + share_of_entropy * truth.entropy_direction
        bound = truth.logprob_direction_bound + share_of_entropy * truth.entropy_direction_bound
        bound = bound * factor[:, None].abs().clamp(min=1)
        name = f"gradient of logprob + {share_of_entropy} entropy"
        assert_close(name, hidden.grad, exact * factor[:, None], bound)
