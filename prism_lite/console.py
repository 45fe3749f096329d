"""Printing to a rich console: users' text as it is, and progress that a log file can hold."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.text import Text

T = TypeVar("T")
_PLAIN_EVERY_S = 30.0


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: brackets are not markup, :words: are not emoji, and the terminal wraps lines.

    So that a command is copied, and a log file searched, as it was printed.
    """
    console.print(Text(text, style=style), soft_wrap=True)


def tracked(
    items: Iterable[T], description: str, *, console: Console, total: int | None = None
) -> Iterator[T]:
    """Yield items with a progress bar on a terminal, else with a plain line every 30 seconds."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    if console.is_terminal:
        yield from track(items, escape(description), total=total, console=console, transient=True)
        return
    last_s = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last_s >= _PLAIN_EVERY_S:
            last_s = time.monotonic()
            say(console, f"{description}: {number} of {total or '?'}")
        yield item


class PlainProgress:
    """Lines about the steps of a stage: at its start, every tenth of it and every 30 seconds."""

    def __init__(self, console: Console, stage: str, start: int, num_steps: int) -> None:
        self._console, self._stage = console, stage
        self._start, self._num_steps = start, num_steps
        self._started_s = self._last_s = time.monotonic()
        if start < num_steps:
            say(console, f"{stage}: {num_steps - start} of {num_steps} steps to do")

    def after_step(self, done: int, metrics: str) -> None:
        """Print a line if it is due.

        Args:
            done: finished steps of the stage.
            metrics: of the last step, as text.
        """
        now_s, num_steps = time.monotonic(), self._num_steps
        is_tenth = 10 * done // num_steps > 10 * (done - 1) // num_steps
        if not is_tenth and now_s - self._last_s < _PLAIN_EVERY_S:
            return
        self._last_s = now_s
        left_s = (now_s - self._started_s) / (done - self._start) * (num_steps - done)
        parts = [f"{self._stage}: step {done} of {num_steps}", metrics, f"{_duration(left_s)} left"]
        say(self._console, ", ".join(filter(None, parts)))


def _duration(seconds: float) -> str:
    """Return a time as 45 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
