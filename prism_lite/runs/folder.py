"""The run folder: the one place where a run writes and everything else reads.

`config.yaml env.json metrics.jsonl rollouts/ stages/ policy/ discriminator/ results.json plots/
README.md control.json`, and `skipped.jsonl` where rows of the data were left out. A person (or the demo)
steers a run through control.json; Ctrl-C is the same as the command "stop".
"""

from __future__ import annotations

from prism_lite.files import read_jsonl

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

from prism_lite.runs.checkpoint import (Restored, Trained, load_final, load_latest, save_checkpoint, save_final)
from prism_lite.files import write_text
from prism_lite.config import RunConfig
from prism_lite.models.device import peak_gib
from prism_lite.recipe import to_dict
from prism_lite.runs.resume import check_same_settings, fingerprint
from prism_lite.runs.trackers import open_trackers

T = TypeVar("T")
PAUSE_POLL_S = 0.5
# Metrics of the last step that stand beside the progress bar, the first two that there are: a policy
# gradient's loss says nothing, so it comes last.
IN_THE_BAR = (
    ("reward", "reward"),
    ("disc/pair_accuracy_reasoning", "pairs won"),
    ("malformed_rate", "malformed"),
    ("loss", "loss"),
)


class Stopped(Exception):  # noqa: N818 - not an error: the person asked for it
    """The run was asked to stop and has saved; running the same command again resumes."""


class RunFolder:
    """One run on the disk. Open it with `open_run`.

    Attributes:
        path: the folder.
        config: the resolved settings.
        console: where progress and warnings are printed.
        device: whose peak memory is logged.
    """

    def __init__(
        self, path: Path, config: RunConfig, console: Console, device: torch.device | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.console = console
        self.device = device or torch.device("cpu")
        self._stop_requested = False
        self._started_s = time.monotonic()
        self._last = ""
        self._step_started_s: float | None = None
        self._trackers: list[Any] = []
        self._num_logged = len(self.metrics())

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / "stages" / name

    def is_done(self, stage: str) -> bool:
        return (self.stage(stage) / "final").is_dir()

    def load_final(self, stage: str) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors of a finished stage, by name ("policy", "discriminator")."""
        return load_final(self.stage(stage))

    def save_final(self, stage: str, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        save_final(self.stage(stage), tensors)

    def restore(self, stage: str) -> Restored | None:
        """The newest good checkpoint of an unfinished stage; says which ones it refused."""
        restored, refused = load_latest(
            self.stage(stage), fingerprint=fingerprint(self.config, stage)
        )
        for sentence in refused:
            self.console.print(f"[yellow]{sentence}[/]")
        self._forget_metrics(stage, after=restored.step if restored else 0)
        return restored

    def steps(
        self, stage: str, start: int, num_steps: int, trained: Callable[[], Trained]
    ) -> Iterator[int]:
        """The step numbers still to do, with progress bar, checkpoints and obedience.

        After each step: a checkpoint when it is due, and control.json or Ctrl-C obeyed.

        Args:
            trained: called at a checkpoint for what to save.

        Raises:
            Stopped: after saving, when asked to stop.
        """
        with Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
            console=self.console,
        ) as progress:
            task = progress.add_task(stage, total=num_steps, completed=start, last="")
            saved = start
            for step in range(start, num_steps):
                self._step_started_s = time.perf_counter()
                yield step
                progress.update(task, advance=1, last=self._last)
                done, stop = step + 1, self._asked_to_stop()
                if stop or (done < num_steps and done % self.config.save_every == 0):
                    save_checkpoint(
                        self.stage(stage),
                        done,
                        trained(),
                        fingerprint=fingerprint(self.config, stage),
                    )
                    saved = done
                if stop:
                    raise Stopped(f"stopped in stage {stage} after step {saved} of {num_steps}")
        self._step_started_s = None

    def each(self, items: Sequence[T], doing: str) -> Iterator[T]:
        """Go through items with a progress bar; a wish to stop or pause is obeyed in between.

        Raises:
            Stopped: when asked to stop. Nothing is saved of what was done with these items.
        """
        for item in track(items, doing, console=self.console, transient=True):
            if self._asked_to_stop():
                raise Stopped(f"stopped while {doing}")
            yield item

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl; a step's line gets its time and the peak memory so far.

        What was not measured is left out, never filled in.
        """
        metrics = dict(metrics)
        if self._step_started_s is not None:
            metrics["step_time"] = time.perf_counter() - self._step_started_s
            metrics["mem/peak_gib"] = peak_gib(self.device)
        line = {
            "stage": stage,
            "step": step,
            "time_s": round(time.monotonic() - self._started_s, 3),
        }
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | metrics) + "\n")
        for tracker in self._trackers:
            named = {f"{stage}/{name}": value for name, value in metrics.items()}
            tracker.log(named, step=self._num_logged)
        self._num_logged += 1
        shown = [f"{title} {metrics[name]:.2f}" for name, title in IN_THE_BAR if name in metrics]
        self._last = ", ".join(shown[:2])

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, of one stage or all."""
        return [m for m in read_jsonl(self.path / "metrics.jsonl") if stage in (None, m["stage"])]

    def write_rollouts(self, stage: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write rollouts/<stage>-<step>.jsonl."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_text(self.path / "rollouts" / f"{stage}-{step}.jsonl", text)

    def results(self) -> dict[str, Any]:
        """results.json, or an empty mapping."""
        path = self.path / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        write_text(self.path / "results.json", json.dumps(results, indent=1) + "\n")

    def _forget_metrics(self, stage: str, *, after: int) -> None:
        """Drop lines of steps that will be done again."""
        path = self.path / "metrics.jsonl"
        kept = [m for m in read_jsonl(path) if m["stage"] != stage or m["step"] < after]
        # Always written anew: a last line cut short by a kill must not meet the next one.
        write_text(path, "".join(json.dumps(m) + "\n" for m in kept))
        self._num_logged = len(kept)

    def _asked_to_stop(self) -> bool:
        while not self._stop_requested:
            command = self._command()
            if command == "pause":
                time.sleep(PAUSE_POLL_S)
                continue
            self._stop_requested = command == "stop"
            break
        return self._stop_requested

    def _command(self) -> str | None:
        path = self.path / "control.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("command")
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:  # being written this moment: look again after the next step
            return None

    def request_stop(self) -> None:
        """Stop at the next step boundary."""
        self._stop_requested = True


@contextmanager
def open_run(
    path: Path, config: RunConfig, console: Console, device: torch.device | None = None
) -> Iterator[RunFolder]:
    """Open a run folder for writing: make it, or take it up again if the settings are the same.

    Raises:
        ValueError: the folder holds a run with other settings, something else, or is in use.
    """
    check_folder(path, config)
    config_path = path / "config.yaml"
    try:
        (path / "rollouts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be made: {error.strerror}.") from error
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {path}: wait for it or stop it."
            ) from None
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        write_text(config_path, text)
        (path / "control.json").unlink(missing_ok=True)
        run = RunFolder(path, config, console, device)
        with _ctrl_c_stops(run), open_trackers(config, path) as run._trackers:
            yield run


def check_folder(path: Path, config: RunConfig) -> None:
    """Whether a run with these settings may write here; writes nothing itself.

    Raises:
        ValueError: the folder holds a run with other settings, or something else.
    """
    existing = next(p for p in (path, *path.resolve().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"--out {path}: {existing} is a file; name a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--out {path}: {existing} cannot be written to; name another folder.")
    has_run = (path / "config.yaml").exists()
    if path.is_dir() and any(path.iterdir()) and not has_run:
        raise ValueError(f"--out {path} is not empty and holds no run: name another folder.")
    if has_run:
        check_same_settings(path, config)


@contextmanager
def _ctrl_c_stops(run: RunFolder) -> Iterator[None]:
    """First Ctrl-C: stop at the next step boundary. Second: at once, without saving."""

    def handle(_signal: int, _frame: Any) -> None:
        run.request_stop()
        run.console.print("stopping after this step (Ctrl-C again: at once, without saving)")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread (a notebook's worker): Ctrl-C is the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


