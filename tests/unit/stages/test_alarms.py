"""Alarms name the cause of a fault, and a command or setting that works."""

from __future__ import annotations

import math

import torch

from prism_lite.parts import Malformed, Parts
from prism_lite.stages.alarms import alarm, completions, rewards, supervised
from prism_lite.types import Rollout

ZERO = torch.zeros(1)


def rollout(parts: Parts | Malformed, finish: str = "end") -> Rollout:
    return Rollout((1,), "", parts, finish, ZERO, ZERO)  # type: ignore[arg-type]


def test_truncation_is_called_truncation():
    assert completions.truncated_completions([True] + [False] * 9, limit=80) is None
    alarm = completions.truncated_completions([True] * 3 + [False] * 7, limit=80)
    assert alarm is not None and alarm.value == 0.3
    assert "sampling.max_completion_tokens = 80" in alarm.message
    assert alarm.changes == {"sampling.max_completion_tokens": "*2"}


def test_malformed_completions_name_the_reason_and_not_those_that_are_cut():
    good, bad = rollout(Parts("c", "t", "a")), rollout(Malformed("no <think>"))
    cut = rollout(Malformed("no end"), "length")
    assert completions.malformed_completions([good, bad, cut, cut, cut]) is None
    alarm = completions.malformed_completions([good, bad, bad, cut])
    assert alarm is not None and math.isclose(alarm.value, 2 / 3)
    assert "no <think>" in alarm.message and "no end" not in alarm.message


def test_groups_without_spread_point_at_the_cause():
    alarm = rewards.zero_spread_groups([0.0] * 8, group_size=2, causes="truncated_completions")
    assert alarm is not None and "too easy" not in alarm.message
    assert "truncated_completions" in alarm.message
    easy = rewards.zero_spread_groups([1.0] * 6 + [0.0] * 2, group_size=2, largest=1.0)
    assert easy is not None and "75% of them have the largest reward" in easy.message


def diverged(losses: list[float], grad_norm: float) -> alarm.Alarm | None:
    return supervised.diverged_sft(
        losses, grad_norm, vocab_size=1000, optim="sft.optim.learning_rate"
    )


def test_a_diverged_loss():
    assert diverged([2.0 - 0.01 * i for i in range(40)], 1.0) is None
    assert diverged([2.0], 1.0) is None
    rising = diverged([1.0, 1.1, 2.0, *([2.9, 3.1] * 5)], 1.0)
    assert rising is not None and rising.name == "sft_diverges"
    noisy = [0.10, 0.07, 0.13, 0.11, 0.08, 0.14, 0.09, 0.10, 0.15, 0.09]
    assert diverged(noisy, 1.0) is None, "no more than batches differ"
    assert diverged([0.07, *noisy], 1.0) is None, "an easy first batch"
    assert diverged([0.10, 0.10, 0.12, 0.12], 1.0) is None, "too few steps"
    at_once = diverged([0.1, 3.0, 6.0, 7.0, 7.1, 7.0, 6.9, 7.0, 7.0, 7.1, 7.0, 7.0], 1.0)
    assert at_once is not None and at_once.value > 6
    chance = diverged([2.0, math.log(1000)], 0.0)
    assert chance is not None and chance.name == "sft_at_chance"
    assert "sft.optim.learning_rate" in chance.message
    assert chance.changes == {"sft.optim.learning_rate": "*0.1"}
    assert diverged([2.0, math.log(1000)], 1.0) is None, "at the start it is there with a gradient"
    assert diverged([2.0, math.nan], 0.0) is not None
