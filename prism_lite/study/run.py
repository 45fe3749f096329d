"""A study: its runs as ordinary run folders, and their comparison.

`out/seed-N/start` holds the SFT run that the arms of seed N share, `out/seed-N/ARM` the arms; with axes
these are in `out/CELL`. The same command again resumes a study: a finished run is read, never repeated.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_lite import pipeline
from prism_lite.console import say
from prism_lite.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.runs.resume import check_folder
from prism_lite.study import report
from prism_lite.study.arms import recipe_arm
from prism_lite.study.plan import Cell, PlannedRun, cells_of, plan_study, sources_of
from prism_lite.study.results import summary
from prism_lite.study.tuning import Tries, plan_tuning, tuning_results
from prism_lite.types import Stage


@dataclass(frozen=True)
class StudyOptions:
    """What the user asked for.

    Attributes:
        recipe, overrides: of all runs.
        arms, seeds: what is compared.
        out: the study's folder.
        reference: the arm that the others are subtracted from; None: the arm that equals the recipe if
            it is among the arms, else the last one.
        drifts, teacher_errors: the axes; empty: those of the recipe.
        base_per_seed: train a tiny base with each seed.
        tries, tuning_seeds: of each arm; empty: nothing is tuned.
        best_by: the figure that chooses a try.
        command: rebuilds the study.
    """

    recipe: str
    overrides: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    reference: str | None = None
    drifts: tuple[str, ...] = ()
    teacher_errors: tuple[float, ...] = ()
    base_per_seed: bool = False
    tries: Tries | None = None
    tuning_seeds: tuple[int, ...] = ()
    best_by: str = "mean"
    command: str = ""

    @property
    def cells(self) -> list[Cell]:
        return cells_of(self.drifts, self.teacher_errors)


Plan = dict[str, list[PlannedRun]]  # runs of each cell, by its name


def plan_tuning_runs(options: StudyOptions) -> dict[tuple[str, int], list[PlannedRun]]:
    """List the runs of tuning, which has the settings of the first cell."""
    return plan_tuning(
        options.tries or {},
        options.recipe,
        (*options.overrides, *options.cells[0].overrides),
        options.tuning_seeds,
        options.out / "tuning",
        base_per_seed=options.base_per_seed,
    )


def plan_cells(options: StudyOptions, tuned: Mapping[str, Sequence[str]] | None = None) -> Plan:
    """List the runs of every cell; cells of one drift share the SFT runs."""
    starts: dict[str, dict[int, PlannedRun]] = {}
    return {
        cell.name: plan_study(
            options.recipe,
            (*options.overrides, *cell.overrides),
            arms=options.arms,
            seeds=options.seeds,
            out=options.out / cell.name,
            starts=starts.setdefault(cell.drift, {}),
            base_per_seed=options.base_per_seed,
            tuned=tuned,
        )
        for cell in options.cells
    }


def reference_of(options: StudyOptions) -> str:
    """Return the arm that the others are compared with."""
    if options.reference is not None:
        return options.reference
    arm = recipe_arm(load_recipe(options.recipe, options.overrides))
    return arm if arm in options.arms else options.arms[-1]


def run_study(options: StudyOptions, *, console: Console) -> dict[str, Any]:
    """Run what is not finished, compare all runs, write study.json, study.md and plots.

    Returns:
        The content of study.json.

    Raises:
        ValueError: a folder holds something else; found before the first run starts.
        Stopped: asked to stop; saved.
    """
    out = options.out
    if (out / "config.yaml").exists():
        raise ValueError(f"--out {out} holds a run: name another folder for the study.")
    tuning = plan_tuning_runs(options)
    tuning_runs = _once(run for runs in tuning.values() for run in runs)
    _check_folders([*tuning_runs, *(() if tuning else _once(_all_runs(plan_cells(options))))])
    _run_all(tuning_runs, "tuning", console)
    listed, best = tuning_results(options.tries or {}, tuning, options.best_by)
    plan = plan_cells(options, best)
    runs = _once(_all_runs(plan))
    _check_folders(runs)
    _run_all(runs, "study", console)
    studies = {}
    for name, planned in plan.items():
        study = summary(planned, reference=reference_of(options), command=options.command)
        study["tuning"] = {"seeds": list(options.tuning_seeds), "best_by": options.best_by}
        for arm, tries in listed.items():
            study["arms"][arm] |= {"tuning": tries, "tuned": best[arm]}
        studies[name] = study
        write_json(out / name / "study.json", study)
        report.write_report(study, out / name)
    if [*studies] == [""]:
        return studies[""]
    together = {"command": options.command, "cells": studies}
    write_json(out / "study.json", together)
    report.write_report(together, out)
    return together


def _all_runs(plan: Plan) -> list[PlannedRun]:
    return [run for runs in plan.values() for run in runs]


def _once(runs: Any) -> list[PlannedRun]:
    """Return each run folder's run once, in order."""
    return [*{run.folder: run for run in runs}.values()]


def _check_folders(runs: Sequence[PlannedRun]) -> None:
    for run in runs:
        check_folder(run.folder, run.config)


def _run_all(runs: Sequence[PlannedRun], title: str, console: Console) -> None:
    """Run what is not finished; SFT and warm-ups that an earlier run has done are copied."""
    if not runs:
        return
    sources = sources_of(runs)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(title, total=len(runs))
        for run in runs:
            name = f"seed {run.seed}, {run.arm}"
            progress.update(bar, description=f"{title} {name}")
            if _is_finished(run):
                say(console, f"{name}: already done")
            else:
                say(console, f"{name}: {run.folder}")
                for stage in run.stages:
                    if source := sources.get((run.folder, stage)):
                        _copy_stage(source.folder, run, stage)
                pipeline.run(run.config, run.folder, stages=run.stages, console=console)
                gc.collect()  # frees this run's backbone before the next one is loaded
            progress.advance(bar)


def _copy_stage(source: Path, run: PlannedRun, stage: Stage) -> None:
    """Give a run the finished stage of another run that computed the same, with its metrics.

    The seconds of a warm-up count in every arm that uses it; those of SFT, before the arms, in none.
    """
    final = Path("stages", stage, "final")
    if (run.folder / final).is_dir():
        return
    config, metrics = run.folder / "config.yaml", run.folder / "metrics.jsonl"
    run.folder.mkdir(parents=True, exist_ok=True)
    if not config.exists():
        write_text(config, yaml.safe_dump(to_dict(run.config), sort_keys=False))
    before = [line for line in read_jsonl(metrics) if line["stage"] != stage]
    copied = [line for line in read_jsonl(source / "metrics.jsonl") if line["stage"] == stage]
    write_jsonl(metrics, [*before, *copied])
    if stage == "warmup":
        seconds = read_json(source / "results.json")["seconds"][stage]
        write_json(run.folder / "results.json", {"seconds": {stage: seconds}})
    unfinished = (run.folder / final).with_name(".copied")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source / final, unfinished)
    os.replace(unfinished, run.folder / final)


def _is_finished(run: PlannedRun) -> bool:
    """Check that the last stage is evaluated and the model card, a run's last file, is written."""
    if not (run.folder / "README.md").is_file():
        return False
    results = read_json(run.folder / "results.json")
    return run.stages[-1] in results.get("stages", {})
