"""Start the training as a separate process and control it through the run folder.

The state is on disk (`.training.json`: process id and start time), so the training survives a killed web
process, and a record left by a killed training is recognized as stale.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from demo.runs.folder import RUN_ID, control_command, is_finished
from prism_lite.files import write_text
from prism_lite.recipe import load_recipe, recipe_names

REPOSITORY = Path(__file__).parents[2]
RECORD, LOCK, LOGS = ".training.json", ".training.lock", ".logs"
_LOG_TAIL_BYTES = 8192
PRISM_LITE = (sys.executable, "-m", "prism_lite")
# The settings that a first experiment changes: key, title, explanation.
FORM_SETTINGS = (
    ("seed", "Seed", "of all random choices: the same gives the same run"),
    ("sft.steps", "SFT steps", "updates on the demonstrations"),
    ("warmup.steps", "Warm-up steps", "updates of the discriminator before alignment"),
    ("align.steps", "Alignment steps", "updates of policy and discriminator"),
    ("align.group_size", "Group size", "completions per prompt in alignment"),
    ("rlvr.steps", "RLVR steps", "updates on verifiable rewards"),
)
_MAX_VALUE = 100_000  # of these settings


def form_values(recipe: str) -> list[int]:
    """Return the recipe's own values of these settings."""
    config = load_recipe(recipe)
    return [functools.reduce(getattr, key.split("."), config) for key, _, _ in FORM_SETTINGS]


def check_run_name(run_id: str) -> None:
    """Raise a ValueError unless this can be the name of a run."""
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run name {run_id!r}: expected 1 to 40 lower-case letters, digits, hyphens or underscores, "
            "starting with a letter or digit."
        )


def training_arguments(
    recipe: str, values: Sequence[float | None], others: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of `prism-lite run --out DIR`: the recipe and what differs from it.

    Args:
        values: one per setting of the form; None keeps the recipe's value.
        others: further settings, as key=value.
    """
    if recipe not in recipe_names():  # `load_recipe` would also read a file
        raise ValueError(f"recipe {recipe!r}: choose one of {', '.join(recipe_names())}.")
    overrides, defaults = [*others], form_values(recipe)
    for (key, title, _), value, default in zip(FORM_SETTINGS, values, defaults, strict=True):
        if value is None or value == default:
            continue
        if not 0 <= value <= _MAX_VALUE:
            raise ValueError(f"{title} = {value:g}: expected 0 to {_MAX_VALUE}.")
        overrides.append(f"{key}={int(value)}")
    load_recipe(recipe, overrides)  # reports an invalid value before anything starts
    return ["--recipe", recipe, *overrides]


def command_line(run_id: str, recipe: str, values: Sequence[float | None]) -> str:
    """Return the command to type in a terminal."""
    arguments = training_arguments(recipe, values)
    return shlex.join(["prism-lite", "run", "--out", f"runs/{run_id or 'NAME'}", *arguments])


def require_embedded_data(recipe: str) -> None:
    """Raise a ValueError if a recipe needs a data file of the user."""
    data = load_recipe(recipe).data
    if data.task == "files" and data.train is None:
        raise ValueError(
            f"recipe {recipe} trains on your own file: choose one under “Train on your own data”, or copy "
            "the command above, add data.train=FILE and run it in a terminal."
        )


def environment() -> dict[str, str]:
    """Return environment variables with which a child process imports this repository."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


@dataclass(frozen=True)
class TrainingProcess:
    """A process that trains a run. The start time identifies it: process ids are reused."""

    run_id: str
    pid: int
    created_s: float

    def is_alive(self) -> bool:
        """Return whether the process still exists."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created_s) < 1.0
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Trainer:
    """Starts and controls trainings in one folder of runs, at most one at a time."""

    def __init__(self, root: Path, *, program: Sequence[str] = (*PRISM_LITE, "run")) -> None:
        self.root = root
        self._program = program
        self._children: list[subprocess.Popen[bytes]] = []

    def current(self) -> TrainingProcess | None:
        """Return the running training, or None."""
        for child in self._children:
            child.poll()  # otherwise a finished child stays a zombie
        try:
            record = json.loads((self.root / RECORD).read_text(encoding="utf-8"))
            process = TrainingProcess(**record)
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return process if process.is_alive() else None

    def start(self, run_id: str, arguments: Sequence[str]) -> TrainingProcess:
        """Start `prism-lite run --out DIR` with these arguments, for a new or an unfinished run."""
        check_run_name(run_id)
        log = self._log(run_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another web process may start one at the same time
            running = self.current()
            if running is not None:
                raise ValueError(
                    f"{running.run_id!r} is training already (process {running.pid}): only one run can "
                    "train at a time. Stop it first."
                )
            with log.open("ab") as output:
                child = subprocess.Popen(
                    [*self._program, "--out", str(self.root / run_id), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment() | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # it outlives this web process
                )
            self._children.append(child)
            created_s = psutil.Process(child.pid).create_time()
            process = TrainingProcess(run_id, child.pid, created_s)
            write_text(self.root / RECORD, json.dumps(asdict(process)) + "\n")
        return process

    def resume(self, run_id: str) -> str:
        """Resume a paused or interrupted run; return a message."""
        running = self.current()
        path = self.root / run_id
        if running is not None and running.run_id == run_id:
            if control_command(path) != "pause":
                return f"{run_id} is already training."
            return self._send(run_id, "resume", "resumes.")
        if is_finished(path):
            raise ValueError(f"{run_id} is finished: start a new run under another name.")
        self.start(run_id, ["--recipe", str(path / "config.yaml")])
        return f"{run_id} resumes from its last checkpoint."

    def pause(self, run_id: str) -> str:
        """Pause the training after its current step; return a message."""
        self._require_running(run_id)
        if not (self.root / run_id / "config.yaml").is_file():
            raise ValueError(f"{run_id} is still loading its base model: wait for the first step.")
        return self._send(run_id, "pause", "pauses after the current step.")

    def stop(self, run_id: str) -> str:
        """Save and stop after the current step; return a message."""
        process = self._require_running(run_id)
        if (self.root / run_id / "config.yaml").is_file():
            return self._send(
                run_id, "stop", "saves a checkpoint after the current step and stops."
            )
        psutil.Process(process.pid).terminate()
        return f"{run_id} was stopped before its first step: there is nothing to save."

    def log_tail(self, run_id: str) -> str:
        """Return the end of the training's output."""
        try:
            with self._log(run_id).open("rb") as file:
                file.seek(0, os.SEEK_END)
                start = max(0, file.tell() - _LOG_TAIL_BYTES)
                file.seek(start)
                if start:
                    file.readline()  # a part of one
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _require_running(self, run_id: str) -> TrainingProcess:
        process = self.current()
        if process is None or process.run_id != run_id:
            raise ValueError(f"{run_id} is not training; Resume restarts it.")
        return process

    def _send(self, run_id: str, command: str, effect: str) -> str:
        write_text(self.root / run_id / "control.json", json.dumps({"command": command}) + "\n")
        return f"{run_id} {effect}"

    def _log(self, run_id: str) -> Path:
        return self.root / LOGS / f"{run_id}.log"
