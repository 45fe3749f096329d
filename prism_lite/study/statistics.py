"""Figures of several seeds: means and paired differences, each with two 95 % intervals.

The crossed bootstrap resamples seeds and prompts and takes percentiles; Student's interval is over the
seeds' means. With two or three seeds Student's is wide, and it should be; the bootstrap cannot see
seeds that were not run. A conclusion needs both.

Shape letters: S seeds, P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

_NUM_RESAMPLES = 4000


def student95(values: Sequence[float]) -> list[float] | None:
    """Compute the 95 % interval of the mean of independent values by Student's t; None for one value."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [mean - half, mean + half]


def bootstrap95(rate_SP: np.ndarray) -> list[float] | None:
    """Compute the 95 % percentile interval of the mean, seeds and prompts resampled independently.

    Args:
        rate_SP: the rate, or the difference of two rates, of each prompt in each seed.

    Returns:
        [low, high]; None for one seed.
    """
    num_seeds, num_prompts = rate_SP.shape
    if num_seeds < 2:
        return None
    weight_BS, weight_BP = _weights(num_seeds, 0), _weights(num_prompts, 1)
    mean_B = ((weight_BS @ rate_SP) * weight_BP).sum(1)
    low, high = np.quantile(mean_B, [0.025, 0.975])
    return [float(low), float(high)]


@lru_cache(maxsize=8)
def _weights(size: int, axis: int) -> np.ndarray:
    """Draw how often each of `size` units occurs in each resample, as shares: float64 [B, size]."""
    rng = np.random.default_rng([axis, size])
    return rng.multinomial(size, np.full(size, 1 / size), size=_NUM_RESAMPLES) / size


def mean_of_seeds(rate_SP: np.ndarray) -> dict[str, Any]:
    """Return mean, bootstrap95 and student95 of one figure of one arm."""
    return {
        "mean": float(rate_SP.mean()),
        "bootstrap95": bootstrap95(rate_SP),
        "student95": student95(rate_SP.mean(1).tolist()),
    }


def paired_differences(
    rates: Mapping[str, Mapping[str, np.ndarray]], reference: str, figures: Sequence[str]
) -> list[dict[str, Any]]:
    """Compute the reference arm minus each other arm, paired by seed and prompt.

    Args:
        rates: rate_SP of each figure of each arm, all in the same order of seeds and prompts.
        figures: their names; one that was not measured in both arms is left out.

    Returns:
        other, figure, by_seed, mean, bootstrap95, student95 and conclusion of each.
    """
    differences = []
    for other in rates:
        if other == reference:
            continue
        for figure in figures:
            if figure in rates[reference] and figure in rates[other]:
                difference_SP = rates[reference][figure] - rates[other][figure]
                item = mean_of_seeds(difference_SP)
                by_seed = difference_SP.mean(1).tolist()
                differences.append(
                    {"other": other, "figure": figure, "by_seed": by_seed}
                    | item
                    | {"conclusion": conclusion(item)}
                )
    return differences


def conclusion(item: Mapping[str, Any]) -> str:
    """Return what follows from two intervals: "higher", "lower", or why nothing does."""
    intervals = [item["bootstrap95"], item["student95"]]
    if None in intervals:
        return "one seed, no interval: no conclusion"
    if all(low > 0 for low, _ in intervals):
        return "higher"
    if all(high < 0 for _, high in intervals):
        return "lower"
    return "no evidence of a difference"
