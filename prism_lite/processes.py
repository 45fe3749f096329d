"""Several processes, one per card, that do the work of one: `torchrun` or `accelerate launch` starts them.

Every process holds the model and knows the complete batch. A function that shares work takes the complete
batch, works on the process's own share of it, and returns the complete result in the order of one process.
Gradients are summed once per optimizer step (`sum_gradients`), so all processes take the same step: the
batch, its counts and its random numbers are those of one process. The first process alone writes the run
folder, and decides when to stop.

In one process each function is the identity. Objects and gradients travel through the machine's memory
(gloo): adapters are small, and gloo notices at once when another process ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from prism_lite.types import NotFiniteError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
R = TypeVar("R")

# How long a process waits for one that has not ended. The others may have shorter completions to sample or
# train on than the slowest, so that minutes of waiting are usual.
_TIMEOUT = timedelta(minutes=30)
_SEVERAL_MACHINES = (
    "processes on several machines are not supported: start all of them on one machine."
)
_ONE_INSTEAD = (
    "accelerate launch was asked for several processes and started one, as it does without NVIDIA GPUs: "
    "add --multi_gpu, which starts them on a CPU too, or use torchrun --nproc_per_node N."
)

_num_processes, _rank = 1, 0  # of the group that `joined` has formed


def num_processes() -> int:
    """Return how many processes work together."""
    return _num_processes


def rank() -> int:
    """Return the number of this process, 0 for the first one, which writes the run folder."""
    return _rank


def launched_rank() -> int:
    """Return the number that the launcher gave this process, also outside `joined`."""
    return int(os.environ.get("RANK", "0")) if _num_launched() > 1 else 0


def local_rank() -> int:
    """Return the number of the card of this process."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _num_launched() > 1 else 0


def refuse_several(what: str) -> None:
    """Refuse several processes where only one can work.

    Raises:
        ValueError: torchrun or accelerate started more than one process.
    """
    num = _num_launched()
    if num > 1:
        raise ValueError(
            f"{num} processes were started (WORLD_SIZE={num}), and {what} runs in one: start it without "
            "torchrun, or with accelerate launch --num_processes 1."
        )


def _num_launched() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the other processes that the launcher started, inside; alone if there are none.

    Raises:
        ValueError: there are several machines; or accelerate was asked for several processes and started
            one.
    """
    global _num_processes, _rank
    num = _num_launched()
    if _num_processes > 1 or num == 1:
        is_asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
        if _num_processes == 1 and is_asked and "WORLD_SIZE" not in os.environ:
            raise ValueError(_ONE_INSTEAD)
        yield
        return
    if int(os.environ.get("LOCAL_WORLD_SIZE", num)) != num:
        raise ValueError(_SEVERAL_MACHINES)
    import torch
    from torch import distributed

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("gloo", timeout=_TIMEOUT)
    _num_processes, _rank = num, distributed.get_rank()
    try:
        yield
    finally:
        _num_processes, _rank = 1, 0
        distributed.destroy_process_group()


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of the items: neighbours, and one more or less than the others'."""
    if _num_processes == 1:
        return items
    start, stop = (len(items) * number // _num_processes for number in (_rank, _rank + 1))
    return items[start:stop]


def share_work(items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Let each process work on its share of the items, and return all results in order.

    An error in one process is raised by all of them.

    Args:
        items: the same in every process.
        work: returns results that can be pickled, and does not wait for other processes.
    """
    return gather_work(lambda: work(share(items)))


def gather_work(work: Callable[[], list[R]]) -> list[R]:
    """Let each process do its part of the work, and return the results of all in order: `share_work`."""
    if _num_processes == 1:
        return work()
    return [result for of_process in _attempt(work) for result in of_process]


def together(work: Callable[[], T]) -> T:
    """Let each process do its part of the work, and wait for the others; return this process's result.

    An error in one process is raised by all of them.

    Args:
        work: does not wait for other processes.
    """
    if _num_processes == 1:
        return work()
    done: list[T] = []
    _attempt(lambda: done.append(work()))
    return done[0]


def on_first(work: Callable[[], T]) -> T | None:
    """Do work in the first process alone while the others wait; return its result there, else None.

    An error is raised by all processes.
    """
    if _num_processes == 1:
        return work()
    done: list[T] = []
    _attempt(lambda: done.append(work()) if _rank == 0 else None)
    return done[0] if done else None


def first_goes_ahead(work: Callable[[], T]) -> T:
    """Do work in every process, in the first one before the others: for files that are made once."""
    done = on_first(work)
    return together(lambda: work() if _rank > 0 else done)  # pyright: ignore[reportReturnType]


def broadcast(value: T) -> T:
    """Return the value of the first process."""
    if _num_processes == 1:
        return value
    from torch import distributed

    holder = [value if _rank == 0 else None]
    _wait(lambda: distributed.broadcast_object_list(holder))
    return holder[0]  # pyright: ignore[reportReturnType]


def gather(value: T) -> list[T]:
    """Return the values of all processes, in order; they are small and can be pickled."""
    return [value] if _num_processes == 1 else _attempt(lambda: value)


def barrier() -> None:
    """Wait until every process is here."""
    together(lambda: None)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their sums over all processes; one that no process has remains None."""
    if _num_processes == 1:
        return
    import torch
    from torch import distributed

    has_gradient_P = torch.tensor([float(p.grad is not None) for p in parameters])
    _wait(lambda: distributed.all_reduce(has_gradient_P))
    summed = [p for p, has in zip(parameters, has_gradient_P.tolist(), strict=True) if has]
    if not summed:
        return
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in summed]
    flat = torch.cat([part.detach().float().flatten().cpu() for part in parts])
    _wait(lambda: distributed.all_reduce(flat))
    for parameter, sum_N in zip(summed, flat.split([p.numel() for p in summed]), strict=True):
        parameter.grad = sum_N.view_as(parameter).to(parameter.device, parameter.dtype)


def _attempt(work: Callable[[], T]) -> list[T]:
    """Return the results of all processes, or raise the first error of one in all of them."""
    from torch import distributed

    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except (ValueError, RuntimeError, MemoryError, OSError) as caught:
        if isinstance(caught, LostProcessError):
            raise
        error = caught
    outcomes: list[Any] = [None] * _num_processes
    own = (_as_message(error), result if error is None else None)
    _wait(lambda: distributed.all_gather_object(outcomes, own))
    if error is not None:
        raise error
    for message, _ in outcomes:
        if message is not None:
            raise _from_message(message)
    return [result for _, result in outcomes]


class LostProcessError(RuntimeError):
    """Another process ended, or did not answer in time."""


def _wait(collective: Callable[[], Any]) -> None:
    """Run a collective.

    Raises:
        LostProcessError: another process ended, or did not answer in time.
    """
    try:
        collective()
    except RuntimeError as error:
        raise LostProcessError(
            f"process {_rank} of {_num_processes} ends, because another one has ended or has not answered "
            f"for {_TIMEOUT.total_seconds():.0f} s; what that one printed says why. The same command "
            "resumes from the last checkpoint, also with another number of processes."
        ) from error


def _error_types() -> tuple[type[Exception], ...]:
    """Return the types whose meaning must arrive in other processes, the most special first."""
    import torch

    return (
        NotFiniteError,
        torch.OutOfMemoryError,
        OSError,
        ValueError,
        MemoryError,
        RuntimeError,
    )


def _as_message(error: Exception | None) -> tuple[int, tuple[Any, ...]] | None:
    """Return an error as its type's number and its arguments; None for none."""
    if error is None:
        return None
    number = next(n for n, kind in enumerate(_error_types()) if isinstance(error, kind))
    if isinstance(error, OSError):
        return number, (error.errno, error.strerror, error.filename)
    return number, (str(error),)


def _from_message(message: tuple[int, tuple[Any, ...]]) -> Exception:
    number, arguments = message
    return _error_types()[number](*arguments)
