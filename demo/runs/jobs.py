"""Training in a process of its own, steered through the run folder.

The web process only starts it and writes control.json. What it knows of the training lies on the disk
(`.training.json`: process id and when that process began), so a killed web process forgets nothing, and
a lock left by a killed training is recognised as stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from demo.runs.folder import RUN_NAME, control_command, is_finished

REPOSITORY = Path(__file__).parents[2]
LOCK, GUARD, LOGS = ".training.json", ".training.guard", ".logs"
LOG_TAIL_BYTES = 8192
PROGRAM = (sys.executable, "-m", "prism_lite", "run")


@dataclass(frozen=True)
class Job:
    """A training process.

    Attributes:
        run: id of its run.
        pid, created_s: the process, and when it began (a process id alone is used again).
        command: what a person would type.
    """

    run: str
    pid: int
    created_s: float
    command: str


class Jobs:
    """The training processes of one folder of runs: at most one at a time."""

    def __init__(self, root: Path, *, program: Sequence[str] = PROGRAM) -> None:
        self.root = root
        self._program = program
        self._children: list[subprocess.Popen[bytes]] = []

    def current(self) -> Job | None:
        """The training that runs now, or None."""
        for child in self._children:
            child.poll()  # an ended child stays a zombie until it is asked
        try:
            job = Job(**json.loads((self.root / LOCK).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return job if _is_alive(job) else None

    def start(self, run: str, arguments: Sequence[str]) -> Job:
        """Start `prism-lite run` in the folder of this run.

        Args:
            run: id; a new name or an unfinished run.
            arguments: what follows `prism-lite run --out DIR`.

        Raises:
            ValueError: the name is no name, or a training runs already.
        """
        if not RUN_NAME.fullmatch(run):
            raise ValueError(
                f"run name {run!r}: expected 1 to 40 small letters, digits, - or _, the first a letter "
                "or digit."
            )
        with self._guard():
            running = self.current()
            if running is not None:
                raise ValueError(
                    f"{running.run!r} is training already (process {running.pid}): one at a time. "
                    "Pause or stop it first."
                )
            out = self.root / run
            log = self._log(run)
            log.parent.mkdir(exist_ok=True)
            command = [*self._program, "--out", str(out), *arguments]
            path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
            with log.open("ab") as sink:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # it outlives this web process
                )
            self._children.append(child)
            shown = " ".join(["prism-lite", "run", "--out", f"runs/{run}", *arguments])
            job = Job(run, child.pid, psutil.Process(child.pid).create_time(), shown)
            _replace(self.root / LOCK, json.dumps(asdict(job)) + "\n")
        return job

    def resume(self, run: str) -> str:
        """Go on with a paused or an ended, unfinished run; says what was done."""
        running = self.current()
        path = self.root / run
        if running is not None and running.run == run:
            if control_command(path) != "pause":
                return f"{run} is training."
            self._control(run, "resume")
            return f"{run} goes on."
        if is_finished(path):
            raise ValueError(f"{run} is finished: start a new run under another name.")
        self.start(run, ["--recipe", str(path / "config.yaml")])
        return f"{run} goes on from its last checkpoint."

    def pause(self, run: str) -> str:
        """Hold the training at its next step."""
        self._demand_running(run)
        if not (self.root / run / "config.yaml").is_file():
            raise ValueError(f"{run} is still preparing its base model: pause it once it trains.")
        self._control(run, "pause")
        return f"{run} pauses after the step it is in."

    def stop(self, run: str) -> str:
        """Save at the next step and end; before the first step there is nothing to save."""
        job = self._demand_running(run)
        if (self.root / run / "config.yaml").is_file():
            self._control(run, "stop")
            return f"{run} saves after the step it is in and stops; Resume goes on from there."
        psutil.Process(job.pid).terminate()
        return f"{run} was stopped before its first step: nothing was trained yet."

    def log_tail(self, run: str) -> str:
        """The end of what the training printed."""
        try:
            with self._log(run).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def wait(self, seconds: float) -> bool:
        """Whether no training runs within this time."""
        end_s = time.monotonic() + seconds
        while self.current() is not None:
            if time.monotonic() > end_s:
                return False
            time.sleep(0.1)
        return True

    def _demand_running(self, run: str) -> Job:
        job = self.current()
        if job is None or job.run != run:
            raise ValueError(f"{run} is not training here; Resume starts it again.")
        return job

    def _control(self, run: str, command: str) -> None:
        _replace(self.root / run / "control.json", json.dumps({"command": command}) + "\n")

    def _log(self, run: str) -> Path:
        return self.root / LOGS / f"{run}.log"

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """One start at a time, also between two web processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / GUARD).open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


def _replace(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _is_alive(job: Job) -> bool:
    try:
        process = psutil.Process(job.pid)
        is_same = abs(process.create_time() - job.created_s) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
