"""A study: arms x seeds of ordinary run folders, and their comparison.

`out/seed-N/start` holds the SFT run that the arms of seed N share; `out/seed-N/ARM` the arms. The same
command again resumes a study: a finished run is read, never repeated.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_lite import pipeline
from prism_lite.files import read_json, write_json, write_text
from prism_lite.runs.folder import check_folder
from prism_lite.runs.report import RATE_COLUMNS
from prism_lite.study import report
from prism_lite.study.arms import REFERENCE_ARM, START, PlannedRun, budget
from prism_lite.study.statistics import over_seeds, paired_differences


def run_study(planned: Sequence[PlannedRun], out: Path, *, console: Console) -> dict[str, Any]:
    """Run what is not finished, compare all runs, write study.json, .md and .png.

    Returns:
        The content of study.json.

    Raises:
        ValueError: a folder holds something else; found before the first run starts.
        Stopped: asked to stop; saved.
    """
    if (out / "config.yaml").exists():
        raise ValueError(f"--out {out} holds a run: name another folder for the study.")
    for item in planned:
        check_folder(item.folder, item.config)
    with Progress(
        TextColumn("[bold]study[/] {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("", total=len(planned))
        for item in planned:
            name = f"seed {item.seed}, {item.arm}"
            progress.update(bar, description=name)
            if _is_finished(item):
                console.print(f"{name}: already done")
            else:
                console.print(f"[bold]{name}[/]: {item.folder}", highlight=False)
                pipeline.run(item.config, item.folder, stages=item.stages, console=console)
                gc.collect()  # frees this run's backbone before the next one is loaded
            progress.advance(bar)
    study = _summary(planned)
    write_json(out / "study.json", study)
    write_text(out / "study.md", report.markdown(study))
    report.write_plot(study, out / "study.png")
    return study


def _is_finished(planned: PlannedRun) -> bool:
    """Check that the last stage is evaluated and the model card, a run's last file, is written."""
    if not (planned.folder / "README.md").is_file():
        return False
    results = read_json(planned.folder / "results.json")
    return planned.stages[-1] in results.get("stages", {})


def _summary(planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """Compare finished runs.

    Returns:
        runs (by arm and seed), means (over seeds, "start" is the shared SFT policy), differences
        (the adversarial arm minus each other one, where it is among the arms), and the settings.
    """
    seeds = list(dict.fromkeys(item.seed for item in planned))
    first = {item.arm: item for item in reversed(planned)}
    names = list(dict.fromkeys(item.arm for item in planned))
    figures = {name: [_figures_of(item) for item in planned if item.arm == name] for name in names}
    arms = [name for name in names if name != START]
    differences = (
        paired_differences(
            {name: figures[name] for name in arms}, REFERENCE_ARM, list(RATE_COLUMNS)
        )
        if REFERENCE_ARM in arms
        else []
    )
    results = read_json(planned[0].folder / "results.json")
    return {
        "recipe": planned[0].config.recipe,
        "task": results["task"],
        "n": results["n"],
        "num_samples": planned[0].config.eval.num_samples,
        "seeds": seeds,
        "arms": arms,
        "overrides": {name: list(first[name].overrides) for name in names},
        "budgets": {name: budget(first[name].config) for name in arms},
        "runs": {name: dict(zip(map(str, seeds), figures[name], strict=True)) for name in names},
        "means": {name: over_seeds(figures[name]) for name in names},
        "differences": [
            dataclasses.asdict(item) | {"mean": item.mean, "conclusion": item.conclusion}
            for item in differences
        ],
    }


def _figures_of(planned: PlannedRun) -> dict[str, Any]:
    """Return the figures of a finished run's last policy and its seconds of training.

    The seconds of the shared SFT count in its own run only.
    """
    results = read_json(planned.folder / "results.json")
    seconds = sum(
        spent
        for stage, spent in results["seconds"].items()
        if stage != "sft" or planned.arm == START
    )
    return results["stages"][planned.stages[-1]] | {"seconds": seconds}
