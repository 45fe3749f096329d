"""Figures of several seeds: means and paired differences, each with a 95 % interval over the seeds.

The interval is Student's: with two or three seeds it is wide, and it should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """One figure of the reference arm minus the same figure of another arm, seed by seed.

    Attributes:
        other: the arm that is subtracted.
        figure: "accuracy", ...
        by_seed: the difference of each seed, in the seeds' order.
        ci95: [low, high] of the mean; None with a single seed.
    """

    other: str
    figure: str
    by_seed: tuple[float, ...]
    ci95: tuple[float, float] | None

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    @property
    def conclusion(self) -> str:
        """What follows: "higher", "lower", "no evidence of a difference", or why nothing does."""
        if self.ci95 is None:
            return "one seed, no interval: no conclusion"
        low, high = self.ci95
        if low <= 0 <= high:
            return "no evidence of a difference"
        return "higher" if low > 0 else "lower"


def t_interval95(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean of independent values by Student's t; None for one value."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute means over the runs of one arm, in the form of a stage's figures in results.json.

    Args:
        runs: figures by name, one mapping per seed. The `ci95` of a run is over its prompts and is
            ignored.

    Returns:
        The mean of each figure that every run has, and `ci95` with [low, high] over the seeds for
        each; `ci95` is empty for a single seed.
    """
    names = [name for name in runs[0] if name != "ci95" and all(name in run for run in runs)]
    values = {name: [run[name] for run in runs] for name in names}
    intervals = {name: t_interval95(values[name]) for name in names}
    return {
        **{name: fmean(values[name]) for name in names},
        "ci95": {name: list(interval) for name, interval in intervals.items() if interval},
    }


def paired_differences(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], reference: str, figures: Sequence[str]
) -> list[Difference]:
    """Compute the reference arm minus each other arm, paired by seed.

    Args:
        runs: figures of the runs of each arm, in the same order of seeds.
        figures: their names; one that was not measured in both arms is left out.
    """
    differences = []
    for other in runs:
        if other == reference:
            continue
        for figure in figures:
            pairs = list(zip(runs[reference], runs[other], strict=True))
            if all(figure in ours and figure in theirs for ours, theirs in pairs):
                by_seed = tuple(ours[figure] - theirs[figure] for ours, theirs in pairs)
                differences.append(Difference(other, figure, by_seed, t_interval95(by_seed)))
    return differences
