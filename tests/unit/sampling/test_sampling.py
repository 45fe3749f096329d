"""Drawing tokens: the exact distribution, its edges, truncation against transformers' warpers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prism_lite.config import SamplingConfig
from prism_lite.sampling.draw import BLOCK, draw_tokens

LOGITS_V = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf, 1.0, -0.5, 0.9])  # token 4: suppressed
# 99.9 % quantiles of chi-square, by degrees of freedom
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 6: 22.46}


def uniform(num: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chi_square(logits_V, probability_V, sampling, num_draws=20_000) -> float:
    """Of seeded draws against expected probabilities; impossible tokens must not be drawn."""
    drawn = draw_tokens(logits_V.expand(num_draws, -1), uniform(num_draws), sampling)
    count_V = torch.bincount(drawn.token_R, minlength=len(logits_V)).double()
    kept_V = probability_V > 0
    assert not count_V[~kept_V].any()
    log_probability_R = probability_V.log()[drawn.token_R]
    torch.testing.assert_close(drawn.logprob_R.double(), log_probability_R, rtol=0, atol=1e-6)
    entropy = torch.special.entr(probability_V).sum()
    torch.testing.assert_close(
        drawn.entropy_R.double(), entropy.expand(num_draws), rtol=0, atol=1e-6
    )
    expected = num_draws * probability_V[kept_V]
    return float(((count_V[kept_V] - expected).square() / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_distribution(temperature):
    probability_V = (LOGITS_V.double() / temperature).softmax(0)
    sampling = SamplingConfig(temperature=temperature)
    assert chi_square(LOGITS_V, probability_V, sampling) < CHI_SQUARE[6]


@pytest.mark.parametrize(
    ("cut", "num_kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_p": 0.85}, 4),
        ({"min_p": 0.28}, 3),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.2}, 3),
    ],
)
def test_truncated_draws_follow_what_transformers_would_draw_from(cut, num_kept):
    sampling = SamplingConfig(temperature=0.9, **cut)
    no_ids: Any = None
    scores: Any = TemperatureLogitsWarper(0.9)(no_ids, LOGITS_V[None])  # pyright: ignore[reportArgumentType]
    for name, warper in (
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        scores = warper(cut[name])(no_ids, scores) if name in cut else scores
    probability_V = scores[0].double().softmax(0)
    assert int((probability_V > 0).sum()) == num_kept
    assert chi_square(LOGITS_V, probability_V, sampling) < CHI_SQUARE[num_kept - 1]


def test_draws_follow_the_distribution_over_many_blocks():
    """A vocabulary of several blocks and a rest: which block, and where in it."""
    generator = torch.Generator().manual_seed(1)
    logits_V = 2 * torch.randn(3 * BLOCK + 100, generator=generator)
    logits_V[BLOCK : 2 * BLOCK] = -torch.inf  # a block of nothing
    num_draws = 40_000
    drawn = draw_tokens(logits_V.expand(num_draws, -1), uniform(num_draws), SamplingConfig())
    cumulative_V = logits_V.double().softmax(0).cumsum(0)
    expected_R = torch.searchsorted(cumulative_V, uniform(num_draws), right=True)
    # float32 sums of blocks: a draw may fall on the neighbour where a step is that close
    assert int((drawn.token_R != expected_R).sum()) <= 4
    assert bool(logits_V[drawn.token_R].isfinite().all())


def test_the_edges_of_the_unit_interval():
    """0 must not draw an impossible first token, nearly 1 must not run past the last one."""
    almost_one = 1 - 2.0**-53
    for size in (4, 5000):
        logits_RV = torch.full((2, size), -torch.inf)
        logits_RV[:, 1:3] = 1.0
        drawn = draw_tokens(
            logits_RV, torch.tensor([0.0, almost_one], dtype=torch.float64), SamplingConfig()
        )
        assert drawn.token_R.tolist() == [1, 2]
        torch.testing.assert_close(drawn.logprob_R, torch.full((2,), 0.5).log(), rtol=0, atol=1e-6)
    logits_RV = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(
        logits_RV, torch.full((64,), almost_one, dtype=torch.float64), SamplingConfig()
    )
    assert bool((drawn.token_R == 4999).all())


def test_greedy_draw_takes_the_likeliest_token_and_reports_temperature_one():
    logits_RV = torch.tensor([[0.0, -torch.inf, 1.0], [2.0, -torch.inf, 1.0]])
    sampling = SamplingConfig(temperature=0.0, top_p=0.5)
    drawn = draw_tokens(logits_RV, torch.zeros(2, dtype=torch.float64), sampling)
    assert drawn.token_R.tolist() == [2, 0]
    logprob_RV = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).log_softmax(-1)
    torch.testing.assert_close(drawn.logprob_R, logprob_RV.amax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        drawn.entropy_R, torch.special.entr(logprob_RV.exp()).sum(-1), rtol=0, atol=1e-6
    )
