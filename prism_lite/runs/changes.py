"""What each stage changed: paired differences of its held-out figures to those of where it started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from prism_lite.runs.small_files import read_object
from prism_lite.types import EVALUATED_STAGES

# Console titles of the compared figures.
FIGURES = {
    "accuracy": "accuracy",
    "transfer_accuracy": "transfer",
    "caption_accuracy": "captions",
    "think_validity": "thinks",
    "format_rate": "format",
}
_COMPARED = ("accuracy", "transfer_accuracy", "caption_accuracy", "think_validity")
TITLES = {"control": "RLVR alone"}


def change_rows(folder: Path, *, rlvr_start: str, as_range: bool = False) -> list[list[str]]:
    """Return a header and one row for each stage, as text; [] if fewer than two were evaluated.

    A cell is the mean difference and half its 95 % interval over the prompts, which are the same in both
    stages. The last row compares the run's last policy with RLVR alone, where the run has it.

    Args:
        rlvr_start: the stage whose policy RLVR continued.
        as_range: write intervals as +0.30 (+0.26 to +0.34) instead of +0.30±0.04.
    """
    rates = {
        stage: stage_rates
        for stage in EVALUATED_STAGES
        if (stage_rates := read_object(folder / "evaluations" / f"{stage}.json")[0])
    }
    starts = {"sft": "base", "control": "sft", "align": "sft", "rlvr": rlvr_start}
    pairs = [(stage, start) for stage, start in starts.items() if {stage, start} <= rates.keys()]
    if {"rlvr", "control"} <= rates.keys():
        pairs.append(("rlvr", "control"))
    if not pairs:
        return []
    names = [name for name in _COMPARED if all(name in of_stage for of_stage in rates.values())]
    rows = [["change", *(FIGURES[name] for name in names)]]
    for stage, start in pairs:
        cells = (
            _difference(rates[stage][name], rates[start][name], as_range=as_range) for name in names
        )
        rows.append([f"{TITLES.get(stage, stage)} - {TITLES.get(start, start)}", *cells])
    return rows


def _difference(after: Sequence[float], before: Sequence[float], *, as_range: bool) -> str:
    """Write +0.30±0.04, with * where the interval excludes zero."""
    differences = [a - b for a, b in zip(after, before, strict=True)]
    mean = fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = 1.96 * stdev(differences) / len(differences) ** 0.5
    interval = f" ({mean - half:+.2f} to {mean + half:+.2f})" if as_range else f"±{half:.2f}"
    return f"{mean:+.2f}{interval}{'*' if abs(mean) > half else ''}"
