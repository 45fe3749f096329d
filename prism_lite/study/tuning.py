"""Equal tuning: the same number of tries for every arm, on seeds that are not reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prism_lite.study.arms import START
from prism_lite.study.plan import PlannedRun, plan_study
from prism_lite.study.results import figures_of, score_of

Tries = dict[str, list[list[str]]]  # the "key=value"s of each try, by arm


def parse_tries(texts: Sequence[str], arms: Sequence[str]) -> Tries:
    """Read "KEY=V1,V2" (for every arm) and "ARM:KEY=V1,V2" (for one arm, instead of those for all).

    KEY1+KEY2=V1,V2 sets both keys to the same value in each try.

    Returns:
        The tries of each arm; an empty mapping where nothing is tuned.

    Raises:
        ValueError: a text has another form or names another arm; or the arms' numbers of tries differ.
    """
    common: list[list[str]] = []
    own: Tries = {}
    for text in texts:
        name, equals, values = text.partition("=")
        arm, colon, key = name.rpartition(":")
        keys = key.split("+")
        if not equals or not all(keys) or not all(values.split(",")):
            raise ValueError(f"--tune {text}: expected KEY=V1,V2 or ARM:KEY=V1,V2.")
        if colon and arm not in arms:
            raise ValueError(f"--tune {text}: {arm} is not among --arms {' '.join(arms)}.")
        tries = [[f"{key}={value}" for key in keys] for value in values.split(",")]
        (own.setdefault(arm, []) if colon else common).extend(tries)
    tries_of = {arm: own.get(arm, common) for arm in arms}
    counts = {arm: len(tries) for arm, tries in tries_of.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{arm} {count}" for arm, count in counts.items())
        raise ValueError(f"--tune gives the arms different numbers of tries ({listed}).")
    return tries_of if common or own else {}


def check_tuning(tries: Tries, tuning_seeds: Sequence[int], seeds: Sequence[int]) -> None:
    """Check that tuning has seeds of its own.

    Raises:
        ValueError: a seed is tuned on and reported, or tries or their seeds are missing.
    """
    if both := sorted(set(tuning_seeds) & set(seeds)):
        raise ValueError(
            f"--tuning-seeds and --seeds share {' '.join(map(str, both))}: figures of a seed that "
            "settings were chosen on are too good; give other seeds."
        )
    if bool(tries) != bool(tuning_seeds):
        raise ValueError("--tune and --tuning-seeds belong together: give both or neither.")


def plan_tuning(
    tries: Tries,
    recipe: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    **options: Any,
) -> dict[tuple[str, int], list[PlannedRun]]:
    """List the runs of each try, by arm and number of the try; they are stored in `try-N/seed-N/ARM`."""
    starts: dict[int, PlannedRun] = {}
    return {
        (arm, number): plan_study(
            recipe,
            overrides,
            arms=[arm],
            seeds=seeds,
            out=out / f"try-{number}",
            starts=starts,
            tuned={arm: overrides_of_try},
            **options,
        )
        for arm, of_arm in tries.items()
        for number, overrides_of_try in enumerate(of_arm)
    }


def tuning_results(
    tries: Tries,
    planned: Mapping[tuple[str, int], Sequence[PlannedRun]],
    best_by: str,
    figures: Callable[[PlannedRun, str], dict[str, float]] = figures_of,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """Return every try of every arm with its figures, and the best overrides of each arm.

    Args:
        best_by: a figure, or "mean"; of equal tries the first wins.
    """
    listed: dict[str, list[dict[str, Any]]] = {}
    best: dict[str, list[str]] = {}
    for arm, of_arm in tries.items():
        scores = []
        for number, overrides in enumerate(of_arm):
            runs = [run for run in planned[arm, number] if run.arm != START]
            of_seeds = [figures(run, "rlvr") for run in runs]
            listed.setdefault(arm, []).extend(
                {"overrides": overrides, "seed": run.seed, "figures": found}
                for run, found in zip(runs, of_seeds, strict=True)
            )
            scores.append(fmean(score_of(found, best_by) for found in of_seeds))
        best[arm] = of_arm[scores.index(max(scores))]
    return listed, best
