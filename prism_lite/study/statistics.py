"""Figures of several seeds: means and paired differences, each with a 95 % interval over the seeds.

Pure functions. The interval is Student's: with two or three seeds it is wide, and it ought to be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpmath import betainc, findroot


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
        return sum(self.by_seed) / len(self.by_seed)

    @property
    def verdict(self) -> str:
        """What may be said: "higher", "lower", "no evidence of a difference", or why nothing."""
        if self.ci95 is None:
            return "one seed, no interval: nothing can be said"
        low, high = self.ci95
        if low <= 0 <= high:
            return "no evidence of a difference"
        return "higher" if low > 0 else "lower"


def t_interval95(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values by Student's t; None for a single value."""
    num = len(values)
    if num < 2:
        return None
    mean = sum(values) / num
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (num - 1))
    half = t_quantile(num - 1) * deviation / math.sqrt(num)
    return mean - half, mean + half


@functools.cache
def t_quantile(degrees: int) -> float:
    """The x with P(|t| <= x) = 0.95, of Student's t with this many degrees of freedom."""

    def beyond(x):
        share = betainc(degrees / 2, 0.5, 0, degrees / (degrees + x * x), regularized=True)
        return share - 0.05

    return float(findroot(beyond, 2.0))


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the runs of one arm, in the form of a stage's figures in results.json.

    Args:
        runs: figures by name, one mapping per seed; `ci95` of a single run is over its prompts and is
            not looked at.

    Returns:
        The mean of each figure that every run has, and `ci95` with [low, high] over the seeds for
        each; without `ci95` entries where there is one seed only.
    """
    names = [name for name in runs[0] if name != "ci95" and all(name in run for run in runs)]
    means: dict[str, Any] = {name: sum(run[name] for run in runs) / len(runs) for name in names}
    intervals = {name: t_interval95([run[name] for run in runs]) for name in names}
    return means | {"ci95": {name: list(found) for name, found in intervals.items() if found}}


def paired_differences(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], reference: str, figures: Sequence[str]
) -> list[Difference]:
    """The reference arm minus each other arm, over the same seeds.

    Args:
        runs: per arm the figures of its runs, in the same order of seeds.
        figures: which ones; one that was not measured in both arms is left out.
    """
    found = []
    for other in runs:
        if other == reference:
            continue
        for figure in figures:
            pairs = list(zip(runs[reference], runs[other], strict=True))
            if all(figure in ours and figure in theirs for ours, theirs in pairs):
                by_seed = tuple(ours[figure] - theirs[figure] for ours, theirs in pairs)
                found.append(Difference(other, figure, by_seed, t_interval95(by_seed)))
    return found
