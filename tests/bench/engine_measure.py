"""Paired timings, peak memory of the process above what it held, and token passes of the decoder."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_lite.models.backbone import Backbone
from prism_lite.sampling import decoder, token_step


def paired_seconds(
    actions: dict[str, Callable[[], Any]], repeats: int, before: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each action, one round after the other; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats + 1):
        for name, action in actions.items():
            before()
            started = time.perf_counter()
            action()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


class PeakMemory:
    """Highest resident memory of this process since the start, above what it held then (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier must not count as held
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        self._before = _status("VmRSS")

    def read_mib(self) -> float:
        return (_status("VmHWM") - self._before) / 1024


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_mib(action: Callable[[], Any]) -> float:
    """Peak memory of one call."""
    memory = PeakMemory()
    action()
    return memory.read_mib()


@contextmanager
def token_passes(backbone: Backbone) -> Iterator[dict[str, int]]:
    """Tokens that pass the decoder's first layer, by modules or by the lean forward."""
    counted = {"tokens": 0}
    plain = token_step.run_lean_decoder

    def lean(_decoder: Any, hidden_TD: Any, *args: Any, **others: Any) -> Any:
        counted["tokens"] += hidden_TD.shape[0]
        return plain(_decoder, hidden_TD, *args, **others)

    def layer(_module: Any, args: Any) -> None:
        counted["tokens"] += args[0].shape[:-1].numel()

    handle = backbone.core.model.language_model.layers[0].register_forward_pre_hook(layer)
    token_step.run_lean_decoder = decoder.run_lean_decoder = lean
    try:
        yield counted
    finally:
        token_step.run_lean_decoder = decoder.run_lean_decoder = plain
        handle.remove()
