"""metrics.jsonl: a line for each step or evaluation, also sent to the trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.files import write_jsonl
from prism_lite.processes import on_first, rank
from prism_lite.runs.small_files import read_metrics
from prism_lite.runs.trackers import open_trackers


class MetricLog:
    """The lines of metrics.jsonl in a run folder. Damaged ones are left out when it is opened.

    Args:
        folder: of the run.
        closes: closes the trackers, which are started by the first line.
    """

    def __init__(
        self, folder: Path, config: RunConfig, console: Console, closes: ExitStack
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._config, self._closes = config, closes
        self._trackers: list[Any] | None = None
        self._started_s = time.monotonic()
        earlier, num_damaged = read_metrics(self._path)
        if num_damaged and rank() == 0:
            write_jsonl(self._path, earlier)
            text = f"{self._path}: {num_damaged} damaged or foreign lines are left out"
            say(console, text, "yellow")
        self._num_lines = len(earlier)
        self._earlier_s = max((line.get("time_s", 0.0) for line in earlier), default=0.0)

    def lines(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the lines, of one stage or all."""
        lines, _ = read_metrics(self._path)
        return [line for line in lines if stage in (None, line["stage"])]

    def drop_steps(self, stage: str, first_step: int) -> None:
        """Drop the lines of steps that are repeated.

        The file is always rewritten, as the next line must not be appended to a last line that a kill has
        truncated.
        """
        kept = [m for m in self.lines() if m["stage"] != stage or m["step"] < first_step]
        on_first(lambda: write_jsonl(self._path, kept))
        self._num_lines = len(kept)

    def append(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line, with the seconds since the run began, and send it to the trackers."""
        if rank() == 0:
            time_s = round(self._earlier_s + time.monotonic() - self._started_s, 3)
            self._write({"stage": stage, "step": step, "time_s": time_s, **metrics})
            self._track({f"{stage}/{name}": value for name, value in metrics.items()})
        self._num_lines += 1

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _track(self, named: Mapping[str, float]) -> None:
        if self._trackers is None:
            trackers = open_trackers(self._config, self._path.parent)
            self._trackers = self._closes.enter_context(trackers)
        for tracker in self._trackers:
            tracker.log(named, step=self._num_lines)
