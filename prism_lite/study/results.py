"""What a study found: the content of study.json, from finished run folders.

Shape letters: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from prism_lite.discriminator.step import CHANNELS
from prism_lite.files import read_json, read_jsonl
from prism_lite.study.arms import START, budget
from prism_lite.study.curves import add_areas, curve_of, training_seconds
from prism_lite.study.plan import PlannedRun
from prism_lite.study.statistics import mean_of_seeds, paired_differences
from prism_lite.version import git_commit, installed_version

# The figures that arms are compared by, and their titles.
FIGURES = {
    "transfer_accuracy": "transfer accuracy",
    "caption_accuracy": "caption accuracy",
    "accuracy": "accuracy",
    "think_validity": "think validity",
    "format_rate": "format rate",
}
BEST_BY = (
    "accuracy",
    "caption_accuracy",
    "transfer_accuracy",
)  # "mean": the mean of those measured


def summary(
    planned: Sequence[PlannedRun],
    *,
    reference: str,
    command: str,
) -> dict[str, Any]:
    """Compare the finished runs of one cell.

    Args:
        planned: its runs, the arms of a seed in the same order for each seed.
        reference: the arm that the others are subtracted from.
        command: rebuilds the study.

    Returns:
        The content of study.json, without tuning.
    """
    seeds = list(dict.fromkeys(run.seed for run in planned))
    starts = [run for run in planned if run.arm == START]
    runs = {
        arm: [run for run in planned if run.arm == arm]
        for arm in dict.fromkeys(run.arm for run in planned)
        if arm != START
    }
    rates = {arm: _rates_of(of_arm) for arm, of_arm in runs.items()}
    results = read_json(starts[0].folder / "results.json")
    arms = {}
    for arm, of_arm in runs.items():
        arms[arm] = {
            "overrides": [t for t in of_arm[0].overrides if t not in starts[0].overrides],
            **budget(of_arm[0].config),
            "seeds": {
                str(run.seed): figures_of(run, "rlvr") | {"seconds": _seconds_of(run)}
                for run in of_arm
            },
            "judge": {str(run.seed): judge_of(run) for run in of_arm},
            "means": {name: mean_of_seeds(rate_SP) for name, rate_SP in rates[arm].items()},
            "curves": {
                str(run.seed): curve_of(run, start, _warmup_seconds(run))
                for run, start in zip(of_arm, starts, strict=True)
            },
        }
    add_areas(arms)
    return {
        "recipe": planned[0].config.recipe,
        "task": results["task"],
        "command": command,
        "version": installed_version("prism-lite"),
        "commit": git_commit(),
        "num_prompts": {
            name: rate_SP.shape[1] for name, rate_SP in next(iter(rates.values())).items()
        },
        "num_samples": planned[0].config.eval.num_samples,
        "seeds": seeds,
        "base_seeds": list(dict.fromkeys(run.config.tiny.seed for run in planned)),
        "reference": reference,
        "start": {
            stage: {str(run.seed): figures_of(run, stage) for run in starts}
            for stage in ("base", "sft")
        },
        "arms": arms,
        "differences": paired_differences(rates, reference, [*FIGURES]),
    }


def figures_of(run: PlannedRun, stage: str) -> dict[str, float]:
    """Return the figures of a finished run's evaluation after a stage, without intervals."""
    figures = read_json(run.folder / "results.json")["stages"][stage]
    return {
        name: round(value, 6)
        for name, value in figures.items()
        if isinstance(value, float) and name != "seconds"
    }


def judge_of(run: PlannedRun) -> dict[str, float]:
    """Return what a run's discriminator knew; empty without one.

    `auc_CHANNEL`: the probability that a right part outscores a wrong one of the same group, by the
    verifier: mean over the steps of alignment and RLVR; `auc_CHANNEL_first`: over the first five.
    `grounding_CHANNEL` and `..._untrained`: the grounding probe after and before the warm-up, each also
    by likelihood alone and without it.
    """
    lines = read_jsonl(run.folder / "metrics.jsonl")
    figures = {}
    for channel in CHANNELS:
        name = f"disc/auc_{channel}"
        aucs = [line[name] for line in lines if name in line]
        if aucs:
            figures[f"auc_{channel}"] = round(fmean(aucs), 4)
            figures[f"auc_{channel}_first"] = round(fmean(aucs[:5]), 4)
    for line in lines:
        if line["stage"] == "warmup":
            figures |= {
                name.removeprefix("disc/"): value
                for name, value in line.items()
                if name.startswith("disc/grounding")
            }
    return figures


def score_of(figures: Mapping[str, float], name: str) -> float:
    """Return the figure that tuning maximises; "mean" is that of accuracy, captions and transfer."""
    if name != "mean":
        return figures[name]
    values = [figures[figure] for figure in BEST_BY if figure in figures]
    return sum(values) / len(values)


def _rates_of(runs: Sequence[PlannedRun]) -> dict[str, np.ndarray]:
    """Read rate_SP of each compared figure from the last evaluations of an arm's runs."""
    files = [read_json(run.folder / "evaluations" / "rlvr.json") for run in runs]
    names = [name for name in FIGURES if all(name in file for file in files)]
    return {name: np.array([file[name] for file in files]) for name in names}


def _warmup_seconds(run: PlannedRun) -> float:
    if "warmup" not in run.stages:
        return 0.0
    return read_json(run.folder / "results.json")["seconds"]["warmup"]


def _seconds_of(run: PlannedRun) -> float:
    """Return the seconds of training after SFT, with those of a warm-up that another run did."""
    own = sum(training_seconds(run, stage) for stage in ("align", "rlvr"))
    return round(own + _warmup_seconds(run), 1)
