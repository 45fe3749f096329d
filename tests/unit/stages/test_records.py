"""Metrics and records of a batch of rollouts against numbers by hand."""

from __future__ import annotations

import io
import math
import re

import pytest
import torch
from rich.console import Console

from prism_lite import parts
from prism_lite.runs.checkpoint import Trained
from prism_lite.runs.folder import open_run
from prism_lite.stages.rollout_log import reward_metrics, rollout_metrics, rollout_records
from prism_lite.types import FinishReason, Group, Rollout, Sample, Turn
from tests.micro import micro_recipe


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
    actual = rollout_metrics(groups, generated_s=2.0)
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
    assert actual == pytest.approx(expected)
    cut = rollout_metrics([group((3, "length"))], generated_s=1.0)
    assert not [name for name in cut if "terminated" in name], "absent is absent"


def test_rewards_mean_spread_and_groups_without():
    accuracy_R = torch.tensor([1.0, 0.0, 1.0, 1.0])
    actual = reward_metrics(2 * accuracy_R, {"accuracy": accuracy_R}, group_size=2)
    expected = {
        "reward": 1.5,
        "reward_std": 0.5,
        "frac_reward_zero_std": 0.5,
        "rewards/accuracy/mean": 0.75,
        "rewards/accuracy/std": 0.1875**0.5,
    }
    assert actual == pytest.approx(expected)


def test_a_reward_of_none_is_left_out_of_means_and_records():
    nan = math.nan
    reward_R = torch.tensor([1.0, nan, 3.0, 2.0, 2.0, nan, nan, nan, nan])
    some_R = torch.tensor([1.0, nan, 3.0, nan, nan, nan, nan, nan, nan])
    rewards = {"some": some_R, "none": torch.full((9,), nan)}
    metrics = reward_metrics(reward_R, rewards, group_size=3)
    expected = {
        "reward": 2.0,
        "reward_std": 0.5,  # 1 and 0; the last group has none
        "frac_reward_zero_std": 0.5,
        "rewards/some/mean": 2.0,
        "rewards/some/std": 1.0,
    }
    assert metrics == pytest.approx(expected)
    assert reward_metrics(torch.full((3,), nan), {}, group_size=3) == {}
    groups = [group((2, "end"), (2, "end"), (2, "end"))] * 3
    records = rollout_records(groups, torch.zeros(9), {}, rewards)
    assert [record["rewards"] for record in records[:3]] == [{"some": 1.0}, {}, {"some": 3.0}]


def test_the_progress_bar_shows_the_last_step_within_eighty_columns(tmp_path):
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True)
    metrics = {"loss": 0.01, "disc/pair_accuracy_reasoning": 0.61, "malformed_rate": 0.02}
    with open_run(tmp_path / "r", micro_recipe(), console) as run:
        for step in run.steps("align", 9_998, 10_000, lambda: Trained({}, {})):
            run.log("align", step, metrics)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    last = [line for line in re.split(r"[\r\n]", plain) if line.strip()][-1]
    assert "10000/10000" in last and "pairs won 0.61, malformed 0.02" in last
    assert "…" not in last and "loss" not in last
