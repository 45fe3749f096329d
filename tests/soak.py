"""A kill harness: `python -m tests.soak --kills 200` (make soak).

A round trains a tiny base and then runs a micro pipeline (with the stored micro base). Each is started
again and again and killed (SIGKILL) at random instants or at its n-th file operation, until it is finished.
What is finished must have the bytes of the one that nothing interrupted. Starts are forks of this process,
which has imported everything.
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
from functools import partial
from pathlib import Path
from typing import Any

# Events of Python's audit hooks: what changes files. (Rust code, as safetensors', raises none.)
_FILE_EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
_MOST_STARTS = 80  # of one piece of work
_MOST_KILLS_OF_BASE = 4  # in a round: it starts from the beginning after each
_MOST_OPERATIONS = 200
_MOST_SECONDS = 8.0
_SETTINGS = {
    "save_every": 1,
    "sft__steps": 4,
    "warmup__steps": 2,
    "align__steps": 3,
    "rlvr__steps": 3,
}
Work = Callable[[Path], None]


@dataclass
class Report:
    """What happened.

    Attributes:
        num_kills: of these `num_at_operations` at a file operation, `num_in_base` in the base's training.
        problems: finished work with other bytes, or a start that ended with a traceback.
    """

    num_kills: int = 0
    num_at_operations: int = 0
    num_in_base: int = 0
    num_rounds: int = 0
    problems: list[str] = field(default_factory=list)


def soak(folder: Path, num_kills: int, *, seed: int = 0) -> Report:
    """Run rounds in `folder` until there were `num_kills` kills."""
    report, rng = Report(), random.Random(seed)
    works: dict[str, Work] = {"base": _train_base, "run": _run_pipeline}
    expected = {}
    for name, work in works.items():
        code = _wait(_start(work, folder / "reference" / name))
        assert code == 0, (folder / "reference" / name / "output").read_text()
        expected[name] = result_bytes(folder / "reference" / name)
    while report.num_kills < num_kills and not report.problems:
        report.num_rounds += 1
        for name, work in works.items():
            current = folder / f"round-{report.num_rounds}" / name
            most = num_kills - report.num_kills
            most = min(most, _MOST_KILLS_OF_BASE) if name == "base" else most
            num_before = report.num_kills
            _finish_in_spite_of_kills(work, current, rng, report, most)
            report.num_in_base += report.num_kills - num_before if name == "base" else 0
            if not report.problems and result_bytes(current) != expected[name]:
                report.problems.append(f"{current} has other bytes than the reference")
        if not report.problems:
            shutil.rmtree(folder / f"round-{report.num_rounds}")
    return report


def _finish_in_spite_of_kills(
    work: Work, folder: Path, rng: random.Random, report: Report, most_kills: int
) -> None:
    """Start a piece of work until it is finished; at most `most_kills` starts are killed."""
    stop_at = report.num_kills + most_kills
    for _ in range(_MOST_STARTS):
        if report.num_kills >= stop_at:
            code = _wait(_start(work, folder))
        else:
            code = _start_and_kill(work, folder, rng, report)
        if code == 0:
            return
        if code != -signal.SIGKILL:
            break
    output = (folder / "output").read_text()[-2000:]
    report.problems.append(f"{folder}: a start ended with {code}: {output}")


def result_bytes(folder: Path) -> dict[str, bytes]:
    """Return the weights of all stages, of policy and discriminator, and of the base."""
    files = [p for p in folder.rglob("*.safetensors") if "checkpoint-" not in str(p)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(files)}


def _train_base(folder: Path) -> None:
    from prism_lite.digits.base_model import tiny_base
    from tests.micro import micro_recipe

    config = micro_recipe(tiny__steps=12)
    tiny_base(config.tiny, config.data.digits, cache=folder / "cache")


def _run_pipeline(folder: Path) -> None:
    from prism_lite import pipeline
    from tests.make_micro_base import put_micro_base
    from tests.micro import micro_recipe, quiet_console

    cache = folder / "cache"
    if not cache.exists():
        put_micro_base(folder / "copying")
        os.replace(folder / "copying", cache)
    os.environ["PRISM_LITE_CACHE"] = str(cache)
    pipeline.run(micro_recipe(**_SETTINGS), folder / "run", console=quiet_console())


def _start_and_kill(work: Work, folder: Path, rng: random.Random, report: Report) -> int:
    """Start once; kill at a random instant, or at a random file operation. Return the exit code."""
    if rng.random() < 0.5:
        number = rng.randint(1, _MOST_OPERATIONS)
        code = _wait(_start(work, folder, partial(_kill_at_operation, number, folder)))
        report.num_at_operations += code == -signal.SIGKILL
    else:
        code = _wait(_start(work, folder), timeout_s=rng.uniform(0.02, _MOST_SECONDS))
    report.num_kills += code == -signal.SIGKILL
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


def _start(work: Work, folder: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Fork a process that does the work in `folder`; its output goes to the file `output`."""
    import prism_lite.pipeline  # noqa: F401 - once, in the parent

    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "copying", ignore_errors=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        prepare()
        work(folder)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here, and the harness reports its output
        traceback.print_exc()
    finally:
        sys.stdout.flush()
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
