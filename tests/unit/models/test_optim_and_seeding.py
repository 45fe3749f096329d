"""Schedules, the optimizer step, random numbers by name and the data order."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
import torch

from prism_lite import seeding
from prism_lite.config import OptimConfig
from prism_lite.models.optim import learning_rate_at, make_optimizer, optimizer_step
from prism_lite.seeding import batch_at, generator_for, seed_of


def test_cosine_with_warmup_by_hand():
    config = OptimConfig(1.0, schedule="cosine", warmup_ratio=0.2)
    found = [learning_rate_at(config, step, 10) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert found == pytest.approx([0.5, 1.0, *cosine])
    assert found[2] == 1.0
    assert 0 < found[-1] < 0.05


def test_constant_schedule_and_its_warmup():
    assert {learning_rate_at(OptimConfig(3e-4), step, 7) for step in range(7)} == {3e-4}
    config = OptimConfig(1.0, warmup_ratio=0.5)
    assert [learning_rate_at(config, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
def test_short_runs_have_a_finite_positive_first_rate(num_steps, warmup_ratio):
    config = OptimConfig(1.0, schedule="cosine", warmup_ratio=warmup_ratio)
    assert 0 < learning_rate_at(config, 0, num_steps) <= 1.0


def test_optimizer_step_clips_steps_and_clears():
    parameter = torch.nn.Parameter(torch.zeros(4))
    ours = make_optimizer([parameter], OptimConfig(0.1))
    assert isinstance(ours.inner, torch.optim.AdamW)
    parameter.grad = torch.tensor([3.0, 4.0, 0.0, 0.0])
    stepped = optimizer_step(ours, [parameter], 0.01, 1.0)
    assert stepped == {"grad_norm": pytest.approx(5.0)}
    assert parameter.grad is None
    # AdamW's first step is the learning rate in the direction of each sign
    torch.testing.assert_close(
        parameter.detach(), torch.tensor([-0.01, -0.01, 0, 0]), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([parameter], OptimConfig(0.1))
    parameter.grad = torch.tensor([1.0, bad])
    with pytest.raises(RuntimeError, match="not taken"):
        optimizer_step(optimizer, [parameter], 0.1, 1.0)
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert not optimizer.inner.state


def test_seeds_are_the_same_on_every_machine():
    """The first eight bytes of the SHA-256 of "a/1", shifted to 63 bits."""
    assert seed_of("a", 1) == 0x3B991955F49A1F87
    assert 0 <= seed_of("x") < 2**63
    assert seed_of(0, "sft", 1) != seed_of(0, "sft", 11) != seed_of(0, "rlvr", 1)


def test_generators_of_one_name_agree_and_leave_the_global_one_alone():
    state = torch.random.get_rng_state()
    first = torch.rand(4, generator=generator_for(0, "align", 3, "prompt-1", 2))
    assert torch.equal(first, torch.rand(4, generator=generator_for(0, "align", 3, "prompt-1", 2)))
    assert not torch.equal(
        first, torch.rand(4, generator=generator_for(0, "align", 3, "prompt-1", 3))
    )
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 4), (7, 7), (5, 8), (6, 3), (1, 3)])
def test_every_item_once_per_epoch(num_items, batch_size):
    items = list(range(num_items))
    num_steps = 3 * num_items
    stream = [i for step in range(num_steps) for i in batch_at(items, step, batch_size, 0, "sft")]
    assert len(stream) == num_steps * batch_size
    for start in range(0, len(stream) - num_items + 1, num_items):
        assert Counter(stream[start : start + num_items]) == Counter(items)


def test_the_order_changes_with_epoch_seed_and_stage_only():
    items = list(range(50))
    first = batch_at(items, 0, 50, 0, "sft")
    assert first != items
    assert first == batch_at(items, 0, 50, 0, "sft")
    assert first != batch_at(items, 1, 50, 0, "sft")
    assert first != batch_at(items, 0, 50, 1, "sft")
    assert first != batch_at(items, 0, 50, 0, "align")
    halves = batch_at(items, 0, 25, 0, "sft") + batch_at(items, 1, 25, 0, "sft")
    assert halves == first


def test_an_epoch_is_shuffled_once_and_in_its_own_order(monkeypatch):
    shuffled = []

    class Counting(Random):
        def shuffle(self, x):
            shuffled.append(len(x))
            super().shuffle(x)

    monkeypatch.setattr(seeding, "Random", Counting)
    items = list(range(1013))
    stream = [i for step in range(150) for i in batch_at(items, step, 10, "once", 1)]
    expected = list(items), list(items)
    for epoch, order in enumerate(expected):
        Random(seed_of("once", 1, "epoch", epoch)).shuffle(order)
    assert stream == [*expected[0], *expected[1]][:1500]
    assert shuffled == [1013, 1013]
