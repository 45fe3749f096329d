"""The run folder: all files of a run. Stages and the pipeline write it; reports and the demo read it.

`config.yaml env.json metrics.jsonl rollouts/ stages/ evaluations/ policy/ discriminator/ results.json
plots/ README.md control.json`, and `skipped.jsonl` where rows of the data were left out. The user (or the
demo) controls a run through control.json; the signals of `prism_lite.signals` have the effect of the
command "stop". Of several processes the first one writes the folder and decides; the others read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from prism_lite.files import write_jsonl, write_text
from prism_lite.models.device import release_unused
from prism_lite.processes import broadcast, gather, on_first, rank
from prism_lite.recipe import to_dict
from prism_lite.runs import checkpoint
from prism_lite.runs.control import Control
from prism_lite.runs.leftovers import remove_empty_run, remove_unfinished
from prism_lite.runs.lock import locked
from prism_lite.runs.metric_log import MetricLog
from prism_lite.runs.peak_memory import peak_gib
from prism_lite.runs.resume import check_folder, has_begun, stage_settings
from prism_lite.runs.skipped_steps import FILE as SKIPPED_STEPS
from prism_lite.runs.skipped_steps import add_skipped, num_in_a_row, read_skipped
from prism_lite.runs.small_files import read_object, set_aside, write_object
from prism_lite.types import NotFiniteError, Sample, Stopped

T = TypeVar("T")
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
        first_step: the first step of the running stage that is not left out; None where the stage has
            been resumed.
        batch: the rows of the current step, for skipped_steps.jsonl.
    """

    def __init__(
        self, path: Path, config: RunConfig, console: Console, device: torch.device | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.console = console
        self.device = device or torch.device("cpu")
        self.ends_stage = False
        self.first_step: int | None = None
        self.batch: Sequence[Sample] = ()
        self._step_started_s: float | None = None
        self._open_step: int | None = None  # the step that runs, until it is logged
        self._bar_text = ""
        self._closes = ExitStack()
        self._log = MetricLog(path, config, console, self._closes)
        self._control = Control(path, console)

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
        on_first(lambda: checkpoint.save_final(self.stage(stage), tensors))

    def restore(self, stage: str, needed: Sequence[str] = ()) -> checkpoint.Restored | None:
        """Load the newest good checkpoint of an unfinished stage; print which ones were refused.

        Args:
            needed: files of a checkpoint that the stage reads.
        """
        restored, refused = checkpoint.load_latest(
            self.stage(stage), settings=stage_settings(self.config, stage), needed=needed
        )
        for sentence in refused:
            say(self.console, sentence, "yellow")
        self._log.drop_steps(stage, restored.step if restored else 0)
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
            self.ends_stage, saved_s = False, time.monotonic()
            skipped = read_skipped(self.stage(stage))
            remaining = [step for step in range(start, num_steps) if step not in skipped]
            self.first_step = remaining[0] if remaining and start == 0 else None
            for step in range(start, num_steps):
                if step in skipped:
                    self.log(stage, step, {"not_finite_steps": 1.0}, is_step=False)
                else:
                    self._step_started_s, self._open_step = time.perf_counter(), step
                    release_unused(self.device)
                    yield step
                progress.update(task, advance=1, metrics=self._bar_text)
                if plain is not None:
                    plain.after_step(step + 1, self._bar_text)
                done, self.ends_stage = step + 1, broadcast(self.ends_stage)
                if self.ends_stage:  # without a checkpoint: a resumed run comes to the same end
                    break
                stop = self._control.asked_to_stop()
                if stop or (done < num_steps and broadcast(self._is_save_due(done, saved_s))):
                    self._save_checkpoint(stage, done, trained)
                    saved_s = time.monotonic()
                if stop:
                    raise Stopped(f"stopped in stage {stage} after step {done} of {num_steps}")
        self._step_started_s = self._open_step = None

    def _save_checkpoint(
        self, stage: str, num_done: int, trained: Callable[[], checkpoint.Trained]
    ) -> None:
        folder, settings = self.stage(stage), stage_settings(self.config, stage)
        on_first(lambda: checkpoint.save_checkpoint(folder, num_done, trained(), settings=settings))

    def _is_save_due(self, num_done: int, saved_s: float) -> bool:
        """Check whether a checkpoint is due, by steps or by the minutes since the last one."""
        minutes = self.config.save_minutes
        is_old = minutes > 0 and time.monotonic() - saved_s >= 60 * minutes
        return is_old or num_done % self.config.save_every == 0

    def skip_step(self, stage: str, error: NotFiniteError) -> None:
        """Record that the step which runs is left out from now on, with its batch and the reason.

        Raises:
            NotFiniteError: the error, if it did not arise in a step.
            RuntimeError: it is the last one of `max_skipped_steps` in a row.
        """
        step, folder = self._open_step, self.stage(stage)
        if step is None:
            raise error
        self._step_started_s = self._open_step = None
        on_first(lambda: add_skipped(folder, step, str(error), self.batch))
        say(
            self.console,
            f"{stage} step {step} is left out, the stage resumes before it: {error}. Its batch: "
            f"{folder / SKIPPED_STEPS}",
            "yellow",
        )
        in_a_row = num_in_a_row(read_skipped(folder).keys(), step)
        if in_a_row >= self.config.max_skipped_steps:
            raise RuntimeError(
                f"stage {stage}: {in_a_row} steps in a row, up to step {step}, met NaN or infinity, the "
                f"last one because {error}. The rows are in {folder / SKIPPED_STEPS}. The same command "
                "continues after them; a lower STAGE.optim.learning_rate needs another --out."
            ) from error

    def with_progress(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield items with a progress bar; requests to stop or pause are obeyed in between.

        Raises:
            Stopped: when asked to stop. What was done with the items is not saved.
        """
        for item in tracked(items, description, console=self.console):
            if self._control.asked_to_stop():
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
            metrics["mem/peak_gib"] = max(gather(peak_gib(self.device)))
            if self.device.type == "cuda":
                metrics["mem/reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
        self._log.append(stage, step, metrics)
        if is_step:
            self._open_step = None
            texts = [
                f"{t} {metrics[name]:.2f}" for name, t in _BAR_METRICS.items() if name in metrics
            ]
            self._bar_text = ", ".join(texts[:2])

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, of one stage or all."""
        return self._log.lines(stage)

    def write_rollouts(self, stage: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write rollouts/<stage>-<step>.jsonl."""
        if rank() == 0:
            write_jsonl(self.path / "rollouts" / f"{stage}-{step}.jsonl", records)

    def write_rates(self, stage: str, rates: Mapping[str, Sequence[float]]) -> None:
        """Write evaluations/<stage>.json: the rates of each held-out prompt, by figure."""
        if rank() > 0:
            return
        path = self.path / "evaluations" / f"{stage}.json"
        path.parent.mkdir(exist_ok=True)
        rounded = {name: [round(value, 4) for value in values] for name, values in rates.items()}
        write_object(path, rounded)

    def results(self) -> dict[str, Any]:
        """Return the content of results.json, or an empty mapping; set a damaged file aside."""
        return self.read("results.json", "the evaluations are repeated")

    def read(self, name: str, consequence: str) -> dict[str, Any]:
        """Return the content of a JSON file of the run; set a damaged one aside and print it."""
        content, problem = read_object(self.path / name)
        if problem and rank() == 0:
            damaged = set_aside(self.path / name)
            text = f"{self.path / name} is damaged, {problem}: it is now {damaged}; {consequence}"
            say(self.console, text, "yellow")
        return content

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        if rank() == 0:
            write_object(self.path / "results.json", results)

    def request_stop(self) -> None:
        """Stop after the current step."""
        self._control.request_stop()

    def check_stop(self, where: str) -> None:
        """Stop here if that was asked for.

        Args:
            where: between which parts of the work, for the message.

        Raises:
            Stopped: when asked to stop.
        """
        if self._control.asked_to_stop():
            raise Stopped(f"stopped {where}")


@contextmanager
def open_run(
    path: Path, config: RunConfig, console: Console, device: torch.device | None = None
) -> Iterator[RunFolder]:
    """Open a run folder for writing: create it, or resume a run with the same settings.

    config.yaml is the first file that is written. If the work inside fails before anything is computed,
    what was created is removed again.

    Raises:
        ValueError: the folder holds a run with other settings or something else, or is in use.
    """
    added = check_folder(path, config)
    missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_new = not (path / "config.yaml").exists()
        settings = yaml.safe_dump(to_dict(config), sort_keys=False)
        if is_new:
            write_text(path / "config.yaml", settings)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be created: {error.strerror}.") from error
    with signals.caught(), locked(path):
        check_folder(path, config)  # another process may have begun meanwhile
        remove_unfinished(path)
        write_text(path / "config.yaml", settings)
        (path / "rollouts").mkdir(exist_ok=True)
        (path / "control.json").unlink(missing_ok=True)
        if added:
            names = ", ".join(added)
            say(console, f"settings that the run in {path} did not have yet: {names} (defaults)")
        folder = RunFolder(path, config, console, device)
        try:
            with folder._closes:
                yield folder
        except BaseException:
            if is_new and not has_begun(path):
                remove_empty_run(path, missing)
            raise
