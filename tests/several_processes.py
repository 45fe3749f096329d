"""Run work in several processes that form a group, forked from this one: nothing is imported again."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism_lite.__main__ import main
from prism_lite.processes import joined, launched_rank


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (minus a signal), what it printed, and after how many seconds."""

    code: int
    text: str
    seconds: float


def start_processes(
    num: int, folder: Path, work: Callable[[], int | None], port: int | None = None
) -> dict[int, int]:
    """Fork processes with the environment of torchrun; return their process ids by rank.

    Args:
        folder: where each writes what it prints, to rank-N.
        work: returns the exit code, or None for 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    sys.stdout.flush()
    sys.stderr.flush()
    pids = {}
    for rank in range(num):
        pid = os.fork()
        if pid == 0:
            _work(rank, num, port, folder / f"rank-{rank}", work)
        pids[pid] = rank
    return {rank: pid for pid, rank in pids.items()}


def wait_for(pids: dict[int, int], folder: Path, *, most_s: float = 120.0) -> list[Ended]:
    """Wait until all processes have ended; return how, by rank."""
    started_s, ended = time.monotonic(), {}
    while len(ended) < len(pids):
        for rank, pid in pids.items():
            if rank in ended:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                seconds = time.monotonic() - started_s
                text = (folder / f"rank-{rank}").read_text()
                ended[rank] = Ended(os.waitstatus_to_exitcode(status), text, seconds)
            elif time.monotonic() - started_s > most_s:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [ended[rank] for rank in sorted(ended)]


def run_processes(
    num: int, folder: Path, work: Callable[[], int | None], *, most_s: float = 120.0
) -> list[Ended]:
    """Run work in several processes that form a group, and wait for them."""
    return wait_for(start_processes(num, folder, work), folder, most_s=most_s)


def command(num: int, folder: Path, *arguments: object) -> list[Ended]:
    """Run a command of the command line in several processes."""
    return run_processes(num, folder, lambda: main([str(argument) for argument in arguments]))


def results_of(num: int, folder: Path, work: Callable[[], Any]) -> list[Any]:
    """Return what the work returns in each of several processes: tensors, numbers and text."""

    def save() -> None:
        with joined():
            torch.save(work(), folder / f"result-{launched_rank()}")

    check_all_done(run_processes(num, folder, save))
    return [torch.load(folder / f"result-{rank}") for rank in range(num)]


def check_all_done(ended: Sequence[Ended]) -> None:
    for process in ended:
        assert process.code == 0, process.text


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _work(rank: int, num: int, port: int, output: Path, work: Callable[[], int | None]) -> None:
    """Run the work in a forked process, which ends here."""
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num),
            "LOCAL_WORLD_SIZE": str(num),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        code = work() or 0
    except BaseException:  # noqa: BLE001 - the fork must not return into the tests
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
