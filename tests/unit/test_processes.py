"""What several processes share, and how an error of one reaches the others."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from prism_lite import processes
from prism_lite.processes import (
    broadcast,
    first_goes_ahead,
    gather,
    joined,
    num_processes,
    on_first,
    rank,
    share,
    share_work,
    sum_gradients,
    together,
)
from prism_lite.types import NotFiniteError
from tests.several_processes import results_of, run_processes


def test_one_process_does_all_of_it_and_waits_for_nothing(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_gather_object", None)  # calling it would fail
    items, parameter = ["a", "b"], nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    gradient = parameter.grad
    with joined():
        assert (num_processes(), rank()) == (1, 0)
        assert share(items) is items
        assert share_work(items, lambda shared: [text * 2 for text in shared]) == ["aa", "bb"]
        assert [together(lambda: 1), on_first(lambda: 2), first_goes_ahead(lambda: 3)] == [1, 2, 3]
        assert (broadcast(items), gather(5)) == (items, [5])
        sum_gradients([parameter])
    assert parameter.grad is gradient


@pytest.mark.parametrize("num", [2, 3])
def test_results_come_in_the_order_of_one_process(tmp_path, num):
    def work() -> list:
        numbers = [share_work(range(n), lambda s: [i * i for i in s]) for n in range(8)]
        return [rank(), list(share(range(7))), numbers, broadcast(rank() + 5), gather(rank())]

    results = results_of(num, tmp_path, work)
    shares = [shared for _, shared, _, _, _ in results]
    assert [number for shared in shares for number in shared] == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for number, (own, _, numbers, value, ranks) in enumerate(results):
        assert own == number
        assert numbers == [[i * i for i in range(n)] for n in range(8)]
        assert (value, ranks) == (5, list(range(num)))


def test_gradients_are_summed_and_none_stays_where_no_process_has_one(tmp_path):
    def work() -> list:
        parameters = [nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
        parameters[0].grad = torch.full((2, 3), 1.0 + rank())
        if rank() == 1:
            parameters[1].grad = torch.arange(6.0).view(2, 3)
        sum_gradients(parameters)
        return [parameter.grad for parameter in parameters]

    for gradients in results_of(2, tmp_path, work):
        assert torch.equal(gradients[0], torch.full((2, 3), 3.0))
        assert torch.equal(gradients[1], torch.arange(6.0).view(2, 3))
        assert gradients[2] is None


def test_an_infinite_gradient_of_one_process_is_infinite_in_all(tmp_path):
    def work() -> float:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([1.0, torch.inf if rank() == 1 else 1.0])
        sum_gradients([parameter])
        return float(parameter.grad[1])

    assert results_of(2, tmp_path, work) == [torch.inf, torch.inf]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("row 3 has no answer"),
        NotFiniteError("logits are not finite"),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(28, "No space left on device", "/run/x"),
    ],
)
def test_an_error_of_one_process_is_raised_by_all(tmp_path, error):
    def fail(shared: range) -> list:
        if 2 in shared:
            raise error
        return list(shared)

    def work() -> list:
        caught = []
        for attempt in (
            lambda: share_work(range(3), fail),
            lambda: on_first(lambda: fail(range(3))),
            lambda: first_goes_ahead(lambda: fail(range(3))),
        ):
            try:
                attempt()
            except (RuntimeError, ValueError, OSError) as raised:
                caught.append([type(raised).__name__, str(raised)])
        return [*caught, share_work(range(2), list)]  # they still work together

    for result in results_of(2, tmp_path, work):
        assert result == [[type(error).__name__, str(error)]] * 3 + [[0, 1]]


def test_the_first_process_does_what_is_done_once_before_the_others(tmp_path):
    def make() -> str:
        file = tmp_path / "made"
        text = "found" if file.exists() else "made"
        file.touch()
        return text

    def work() -> list:
        return [on_first(lambda: rank()), first_goes_ahead(make)]

    assert results_of(2, tmp_path, work) == [[0, "made"], [None, "found"]]


def test_a_killed_process_ends_the_others_with_a_sentence(tmp_path):
    def work() -> None:
        with joined():
            share_work(range(2), list)
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            share_work(range(2), list)

    first, second = run_processes(2, tmp_path, work, most_s=90)
    assert second.code == -signal.SIGKILL
    assert first.code == 1 and first.seconds < 60
    assert "LostProcessError: process 0 of 2 ends, because another one has ended" in first.text


def test_accelerate_that_starts_one_of_several_processes_is_refused(monkeypatch):
    """As it does without NVIDIA GPUs; it leaves the address of the processes in the environment."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with joined():
        assert num_processes() == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="add --multi_gpu"), joined():
        pass


def test_several_machines_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="several machines"), joined():
        pass


def test_the_launcher_s_numbers_count_only_where_it_started_several(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (processes.launched_rank(), processes.local_rank()) == (0, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.launched_rank(), processes.local_rank()) == (1, 1)
