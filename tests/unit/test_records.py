"""Metrics and records of a batch of rollouts against numbers by hand."""

from __future__ import annotations

import pytest
import torch

from prism_lite import parts
from prism_lite.records import reward_metrics, rollout_metrics
from prism_lite.types import FinishReason, Group, Rollout, Sample, Turn


def group(*lengths_and_finish: tuple[int, FinishReason]) -> Group:
    rollouts = tuple(
        Rollout(
            (5,) * length,
            "x",
            parts.parse("x"),
            finish,
            torch.full((length,), -0.7),
            torch.full((length,), 0.5),
        )
        for length, finish in lengths_and_finish
    )
    return Group(Sample("a", (Turn("user", "?"),)), rollouts)


def test_lengths_of_all_and_of_those_that_ended():
    groups = [group((4, "end"), (10, "length")), group((7, "end"), (10, "length"))]
    found = rollout_metrics(groups, generated_s=2.0)
    expected = {
        "num_tokens": 31,
        "completions/mean_length": 31 / 4,
        "completions/min_length": 4,
        "completions/max_length": 10,
        "completions/clipped_ratio": 0.5,
        "completions/mean_terminated_length": 5.5,
        "completions/min_terminated_length": 4,
        "completions/max_terminated_length": 7,
        "malformed_rate": 1.0,
        "entropy": 0.5,
        "gen_tokens_per_s": 15.5,
    }
    assert found == pytest.approx(expected)
    cut = rollout_metrics([group((3, "length"))], generated_s=1.0)
    assert not [name for name in cut if "terminated" in name], "absent is absent"


def test_rewards_mean_spread_and_groups_without():
    accuracy_R = torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = reward_metrics(2 * accuracy_R, {"accuracy": accuracy_R}, group_size=2)
    expected = {
        "reward": 1.5,
        "reward_std": 0.5,
        "frac_reward_zero_std": 0.5,
        "rewards/accuracy/mean": 0.75,
        "rewards/accuracy/std": 0.1875**0.5,
    }
    assert found == pytest.approx(expected)
