"""The run folder: all files of a run. Stages and the pipeline write it; reports and the demo read it.

`config.yaml env.json metrics.jsonl rollouts/ stages/ evaluations/ policy/ discriminator/ results.json
plots/ README.md control.json`, and `skipped.jsonl` where rows of the data were left out. The user (or the
demo) controls a run through control.json; the signals of `prism_lite.signals` have the effect of the
command "stop".
"""

from __future__ import annotations

import fcntl
import json
import resource
import shutil
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
)

from prism_lite import signals
from prism_lite.config import RunConfig
from prism_lite.console import PlainProgress, say, tracked
from prism_lite.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from prism_lite.models.device import release_unused
from prism_lite.recipe import to_dict
from prism_lite.runs import checkpoint
from prism_lite.runs.resume import check_folder, fingerprint
from prism_lite.runs.trackers import open_trackers
from prism_lite.types import Stopped

T = TypeVar("T")
_PAUSE_POLL_S = 0.5
# Metrics of the last step shown beside the progress bar: the first two that exist. The loss is last,
# as the value of a policy-gradient loss is not informative.
_BAR_METRICS = {
    "reward": "reward",
    "disc/pair_accuracy_reasoning": "pairs won",
    "malformed_rate": "malformed",
    "loss": "loss",
}


class RunFolder:
    """One run on the disk. Open it with `open_run`.

    Attributes:
        path: the folder.
        config: the resolved settings.
        console: where progress and warnings are printed.
        device: whose peak memory is logged.
        ends_stage: whether the running stage ends with the current step, before its last one.
    """

    def __init__(
        self, path: Path, config: RunConfig, console: Console, device: torch.device | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.console = console
        self.device = device or torch.device("cpu")
        self.ends_stage = False
        self._stop_requested = False
        self._started_s = time.monotonic()
        self._step_started_s: float | None = None
        self._bar_text = ""
        self._trackers: list[Any] = []
        earlier = self.metrics()
        self._num_logged = len(earlier)
        self._earlier_s = max((line.get("time_s", 0.0) for line in earlier), default=0.0)

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / "stages" / name

    def is_done(self, stage: str) -> bool:
        return (self.stage(stage) / "final").is_dir()

    def load_final(self, stage: str) -> dict[str, dict[str, torch.Tensor]]:
        """Load the tensors of a finished stage, by name ("policy", "discriminator")."""
        return checkpoint.load_final(self.stage(stage))

    def save_final(self, stage: str, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Save the tensors of a stage by name, which marks it as finished."""
        checkpoint.save_final(self.stage(stage), tensors)

    def restore(self, stage: str) -> checkpoint.Restored | None:
        """Load the newest good checkpoint of an unfinished stage; print which ones were refused."""
        restored, refused = checkpoint.load_latest(
            self.stage(stage), fingerprint=fingerprint(self.config, stage)
        )
        for sentence in refused:
            say(self.console, sentence, "yellow")
        first_step = restored.step if restored else 0
        # Drop the lines of steps that are repeated. The file is always rewritten, as the next line must
        # not be appended to a last line that a kill has truncated.
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] < first_step]
        write_jsonl(self.path / "metrics.jsonl", kept)
        self._num_logged = len(kept)
        return restored

    def steps(
        self, stage: str, start: int, num_steps: int, trained: Callable[[], checkpoint.Trained]
    ) -> Iterator[int]:
        """Yield the remaining step numbers, with a progress bar or, without a terminal, plain lines.

        After each step: save a checkpoint when it is due, and obey control.json and signals. A stage sets
        `ends_stage` in its last step if that comes before `num_steps`.

        Args:
            start: number of steps that are already done.
            num_steps: of the complete stage.
            trained: returns what a checkpoint saves.

        Raises:
            Stopped: when asked to stop, after saving.
        """
        with Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as progress:
            task = progress.add_task(stage, total=num_steps, completed=start, metrics="")
            is_plain = not self.console.is_terminal
            plain = PlainProgress(self.console, stage, start, num_steps) if is_plain else None
            self.ends_stage = False
            for step in range(start, num_steps):
                self._step_started_s = time.perf_counter()
                release_unused(self.device)
                yield step
                progress.update(task, advance=1, metrics=self._bar_text)
                if plain is not None:
                    plain.after_step(step + 1, self._bar_text)
                if self.ends_stage:  # without a checkpoint: a resumed run comes to the same end
                    break
                done, stop = step + 1, self._asked_to_stop()
                if stop or (done < num_steps and done % self.config.save_every == 0):
                    settings = fingerprint(self.config, stage)
                    checkpoint.save_checkpoint(
                        self.stage(stage), done, trained(), fingerprint=settings
                    )
                if stop:
                    raise Stopped(f"stopped in stage {stage} after step {done} of {num_steps}")
        self._step_started_s = None

    def with_progress(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield items with a progress bar; requests to stop or pause are obeyed in between.

        Raises:
            Stopped: when asked to stop. What was done with the items is not saved.
        """
        for item in tracked(items, description, console=self.console):
            if self._asked_to_stop():
                raise Stopped(f"stopped while {description}")
            yield item

    def log(
        self, stage: str, step: int, metrics: Mapping[str, float], *, is_step: bool = True
    ) -> None:
        """Append a line to metrics.jsonl; add the step's time and the peak memory so far.

        Args:
            is_step: whether these are the step's own metrics; further lines of the same step (an
                evaluation) have neither time nor memory.
        """
        metrics = dict(metrics)
        if is_step and self._step_started_s is not None:
            metrics["step_time"] = time.perf_counter() - self._step_started_s
            metrics["mem/peak_gib"] = peak_gib(self.device)
            if self.device.type == "cuda":
                metrics["mem/reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
        time_s = round(self._earlier_s + time.monotonic() - self._started_s, 3)
        line = {"stage": stage, "step": step, "time_s": time_s, **metrics}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            named = {f"{stage}/{name}": value for name, value in metrics.items()}
            tracker.log(named, step=self._num_logged)
        self._num_logged += 1
        if is_step:
            texts = [
                f"{t} {metrics[name]:.2f}" for name, t in _BAR_METRICS.items() if name in metrics
            ]
            self._bar_text = ", ".join(texts[:2])

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, of one stage or all."""
        return [m for m in read_jsonl(self.path / "metrics.jsonl") if stage in (None, m["stage"])]

    def write_rollouts(self, stage: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write rollouts/<stage>-<step>.jsonl."""
        write_jsonl(self.path / "rollouts" / f"{stage}-{step}.jsonl", records)

    def write_rates(self, stage: str, rates: Mapping[str, Sequence[float]]) -> None:
        """Write evaluations/<stage>.json: the rates of each held-out prompt, by figure."""
        path = self.path / "evaluations" / f"{stage}.json"
        path.parent.mkdir(exist_ok=True)
        rounded = {name: [round(value, 4) for value in values] for name, values in rates.items()}
        write_text(path, json.dumps(rounded) + "\n")

    def results(self) -> dict[str, Any]:
        """Return the content of results.json, or an empty mapping."""
        path = self.path / "results.json"
        return read_json(path) if path.exists() else {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        write_json(self.path / "results.json", results)

    def request_stop(self) -> None:
        """Stop after the current step."""
        self._stop_requested = True

    def _asked_to_stop(self) -> bool:
        """Wait while control.json says "pause"; return whether the run has to stop."""
        while (command := self._command()) == "pause" and not self._is_stopping():
            time.sleep(_PAUSE_POLL_S)
        self._stop_requested = self._stop_requested or command == "stop"
        return self._is_stopping()

    def _is_stopping(self) -> bool:
        return self._stop_requested or signals.received() is not None

    def check_stop(self, where: str) -> None:
        """Stop here if that was asked for.

        Args:
            where: between which parts of the work, for the message.

        Raises:
            Stopped: when asked to stop.
        """
        if self._asked_to_stop():
            raise Stopped(f"stopped {where}")

    def _command(self) -> str | None:
        try:
            return read_json(self.path / "control.json").get("command")
        except (FileNotFoundError, json.JSONDecodeError):
            return None  # a file that is being written is read again after the next step


@contextmanager
def open_run(
    path: Path, config: RunConfig, console: Console, device: torch.device | None = None
) -> Iterator[RunFolder]:
    """Open a run folder for writing: create it, or resume a run with the same settings.

    Raises:
        ValueError: the folder holds a run with other settings or something else, or is in use.
    """
    check_folder(path, config)
    try:
        (path / "rollouts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be created: {error.strerror}.") from error
    with signals.caught(), signals.reacts("note"), (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {path}: wait for it or stop it."
            ) from None
        _remove_unfinished(path)
        write_text(path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        (path / "control.json").unlink(missing_ok=True)
        folder = RunFolder(path, config, console, device)
        with open_trackers(config, path) as folder._trackers:
            yield folder


def _remove_unfinished(path: Path) -> None:
    """Remove what a kill or a full disk has left half-written, so that there is room to resume."""
    for folder in path.glob("stages/*/.*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def start_peak(device: torch.device) -> None:
    """Release what earlier work left unused, and forget its peak. (A CPU process keeps its peak.)"""
    release_unused(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the peak in GiB: of the card's allocator since `start_peak`, or of the CPU process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
