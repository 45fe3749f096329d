"""A study: arms x seeds of ordinary run folders, and what they say together.

`out/seed-N/start` holds the SFT run that the arms of seed N share; `out/seed-N/ARM` the arms. The same
study again goes on where it stopped: a finished run is read, never redone.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_lite import pipeline
from prism_lite.files import to_json, write_text
from prism_lite.runs.folder import check_folder
from prism_lite.runs.report import COLUMNS
from prism_lite.study import report
from prism_lite.study.arms import REFERENCE_ARM, START, PlannedRun, budget
from prism_lite.study.statistics import over_seeds, paired_differences


def run_study(planned: Sequence[PlannedRun], out: Path, *, console: Console) -> dict[str, Any]:
    """Do the runs that are not finished, compare all of them, write study.json, .md and .png.

    Args:
        planned: from `plan_study`.
        out: the study's folder.

    Returns:
        The content of study.json.

    Raises:
        ValueError: a folder holds something else; found before the first run starts.
        Stopped: asked to stop; saved.
    """
    if (out / "config.yaml").exists():
        raise ValueError(f"--out {out} holds a run: name another folder for the study.")
    for run in planned:
        check_folder(run.folder, run.config)
    with Progress(
        TextColumn("[bold]study[/] {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("", total=len(planned))
        for run in planned:
            name = f"seed {run.seed}, {run.arm}"
            progress.update(bar, description=name)
            if is_finished(run):
                console.print(f"{name}: already done")
            else:
                console.print(f"[bold]{name}[/]: {run.folder}", highlight=False)
                pipeline.run(run.config, run.folder, stages=run.stages, console=console)
                gc.collect()  # the backbone goes before the next one comes
            progress.advance(bar)
    study = summary(planned)
    write_text(out / "study.json", to_json(study))
    write_text(out / "study.md", report.markdown(study))
    report.write_plot(study, out / "study.png")
    return study


def is_finished(run: PlannedRun) -> bool:
    """Whether the run got to its end: its last stage is evaluated and its card, the last file that a
    run writes, is there."""
    if not (run.folder / "README.md").is_file():
        return False
    results = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    return run.stages[-1] in results.get("stages", {})


def summary(planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """What finished runs say together.

    Returns:
        runs (per arm and seed), means (over seeds, "start" is the shared SFT policy), differences
        (the adversarial arm minus each other one, where it is among the arms), and what was run.
    """
    seeds = list(dict.fromkeys(run.seed for run in planned))
    names = list(dict.fromkeys(run.arm for run in planned))
    figures = {name: [figures_of(run) for run in planned if run.arm == name] for name in names}
    arms = [name for name in names if name != START]
    of_arms = {name: figures[name] for name in arms}
    differences = (
        paired_differences(of_arms, REFERENCE_ARM, [name for name, _ in COLUMNS])
        if REFERENCE_ARM in arms
        else []
    )
    first = {run.arm: run for run in reversed(planned)}
    results = json.loads((planned[0].folder / "results.json").read_text(encoding="utf-8"))
    return {
        "recipe": planned[0].config.recipe,
        "task": results["task"],
        "n": results["n"],
        "num_samples": planned[0].config.eval.num_samples,
        "seeds": seeds,
        "arms": arms,
        "overrides": {name: list(first[name].overrides) for name in names},
        "budgets": {name: budget(first[name].config) for name in arms},
        "runs": {name: dict(zip(map(str, seeds), figures[name], strict=True)) for name in figures},
        "means": {name: over_seeds(figures[name]) for name in figures},
        "differences": [
            dataclasses.asdict(found) | {"mean": found.mean, "verdict": found.verdict}
            for found in differences
        ],
    }


def figures_of(run: PlannedRun) -> dict[str, Any]:
    """The figures of a finished run's last policy; `seconds` of training after the shared SFT (of SFT
    itself in the run that is shared)."""
    results = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    spent = {
        stage: seconds
        for stage, seconds in results["seconds"].items()
        if stage != "sft" or run.arm == START
    }
    return results["stages"][run.stages[-1]] | {"seconds": sum(spent.values())}
