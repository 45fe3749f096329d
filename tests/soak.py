"""A kill harness: `python -m tests.soak --kills 200` (make soak).

A micro run, with the training of its tiny base, is started again and again and killed (SIGKILL) at random
instants or at its n-th file operation, until it is finished; then the next round begins, until there were
enough kills. Each finished run must have the bytes of the run that nothing interrupted. Starts are forks
of this process, which has imported everything.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Events of Python's audit hooks: what changes files. (Rust code, as safetensors', raises none.)
_FILE_EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
_MOST_STARTS = 60  # of one round
_MOST_OPERATIONS = 260
_MOST_SECONDS = 9.0
BASE_STEPS = 20


@dataclass
class Report:
    """What happened.

    Attributes:
        num_kills: of these `num_at_operations` at a file operation.
        num_in_base: kills before the base was trained.
        problems: a finished run with other bytes, or a start that ended with a traceback.
    """

    num_kills: int = 0
    num_at_operations: int = 0
    num_in_base: int = 0
    num_rounds: int = 0
    problems: list[str] = field(default_factory=list)


def soak(
    folder: Path,
    num_kills: int,
    *,
    seed: int = 0,
    config: Any = None,
    most_seconds: float = _MOST_SECONDS,
) -> Report:
    """Run rounds in `folder` until there were `num_kills` kills."""
    from tests.micro import micro_recipe

    config = config or micro_recipe(tiny__steps=BASE_STEPS)
    report, rng = Report(), random.Random(seed)
    reference = folder / "reference"
    code = _wait(_start(config, reference, lambda: None))
    assert code == 0, "the run that nothing interrupts failed"
    expected = result_bytes(reference)
    while report.num_kills < num_kills and not report.problems:
        report.num_rounds += 1
        current = folder / f"round-{report.num_rounds}"
        for _ in range(_MOST_STARTS):
            if report.num_kills >= num_kills:
                code = _wait(_start(config, current, lambda: None))
            else:
                code = _start_and_kill(config, current, rng, report, most_seconds)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                report.problems.append(f"a start ended with {code}: see {current / 'output'}")
                break
        if not report.problems and result_bytes(current) != expected:
            report.problems.append(f"{current} has other bytes than {reference}")
        if not report.problems:
            shutil.rmtree(current)
    return report


def result_bytes(folder: Path) -> dict[str, bytes]:
    """Return the weights of all stages, of policy and discriminator, and of the base."""
    files = [p for p in folder.rglob("*.safetensors") if "checkpoint-" not in str(p)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(files)}


def _start_and_kill(
    config: Any, folder: Path, rng: random.Random, report: Report, most_seconds: float
) -> int:
    """Start once; kill at a random instant, or at a random file operation. Return the exit code."""
    has_base = any((folder / "cache").glob("tiny-*/digest.json"))
    if rng.random() < 0.5:
        number = rng.randint(1, _MOST_OPERATIONS)
        code = _wait(_start(config, folder, lambda: _kill_at_operation(number, folder)))
        report.num_at_operations += code == -signal.SIGKILL
    else:
        pid = _start(config, folder, lambda: None)
        code = _wait(pid, timeout_s=rng.uniform(0.02, most_seconds))
    if code == -signal.SIGKILL:
        report.num_kills += 1
        report.num_in_base += not has_base
    return code


def _kill_at_operation(number: int, folder: Path) -> None:
    """Kill this process at the `number`-th operation on a file of the run or the cache."""
    remaining = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal remaining
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if not (is_write or event in _FILE_EVENTS) or str(folder) not in str(arguments[0]):
            return
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _start(config: Any, folder: Path, prepare: Callable[[], None]) -> int:
    """Fork a process that runs the pipeline in `folder`; its output goes to the file `output`."""
    from prism_lite import pipeline
    from tests.micro import quiet_console

    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ["PRISM_LITE_CACHE"] = str(folder / "cache")
        prepare()
        pipeline.run(config, folder / "run", console=quiet_console())
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here, and the harness reports its output
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int, *, timeout_s: float | None = None) -> int:
    """Wait for a process, kill it after the timeout, and return its exit code, -N for signal N."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        time.sleep(0.005)


def main() -> int:
    """Run the harness and print what happened; 1 if anything was lost."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one, removed at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        report = soak(arguments.folder or Path(temporary), arguments.kills, seed=arguments.seed)
    print(
        f"{report.num_kills} kills ({report.num_at_operations} at a file operation, the others at random "
        f"instants; {report.num_in_base} while the base was trained) in {report.num_rounds} rounds, "
        f"{time.monotonic() - started_s:.0f} s: {'; '.join(report.problems) or '0 bytes of difference'}"
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
