"""`prism-lite study`: arms x seeds. Arguments here, the work in `prism_lite/study/`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_lite.cli.imports import prepare_imports
from prism_lite.processes import refuse_several

if TYPE_CHECKING:
    from prism_lite.study.plan import PlannedRun
    from prism_lite.study.run import StudyOptions


def add_command(commands: Any) -> None:
    """Add `study` to the command line's subparsers."""
    command = commands.add_parser("study", help="compare baselines over seeds, with intervals")
    add = command.add_argument
    add("--recipe", default="tiny", metavar="NAME|FILE", help="default: tiny")
    add("--seeds", nargs="+", default=["0", "1", "2"], metavar="N", help="default: 0 1 2")
    add(
        "--arms",
        nargs="+",
        default=[],
        metavar="ARM",
        help="default: none sft-10 sft-30 dpo frozen adversarial game-on; also: base best-of-n mixed "
        "game-both oracle one-expert free",
    )
    add(
        "--reference",
        metavar="ARM",
        help="the others are subtracted from it; default: the arm that equals the recipe, or the last",
    )
    add("--drift", nargs="+", default=[], metavar="KIND", help="a study for each data.digits.drift")
    add(
        "--teacher-errors",
        nargs="+",
        default=[],
        metavar="RATE",
        help="a study for each rate at which the teacher misreads and slips",
    )
    add("--base-seeds", action="store_true", help="train a tiny base with each seed (minutes each)")
    add(
        "--tune",
        action="append",
        default=[],
        metavar="[ARM:]KEY[+KEY]=V1,V2",
        help="values to try on the tuning seeds, the same for each KEY; each arm needs as many tries",
    )
    add("--tuning-seeds", nargs="+", default=[], metavar="N", help="not among --seeds")
    add(
        "--tune-by",
        default="mean",
        metavar="FIGURE",
        help="chooses the try; default: the mean of accuracy, caption_accuracy, transfer_accuracy",
    )
    add("--out", default="runs/study", metavar="DIR", help="default: runs/study")
    add(
        "--report", metavar="DIR", help="write study.md and plots of DIR/study.json again, and stop"
    )
    add("--dry-run", action="store_true", help="list the runs and stop")
    command.set_defaults(handler=_study)


def _study(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """List or execute the runs of a study, or write its report again.

    Raises:
        ValueError: as `plan_study` and `run_study`; several processes were started; an option has a value
            that is not one of its own.
    """
    refuse_several("prism-lite study")
    if arguments.report is not None:
        from prism_lite.study.report import rebuild_reports

        rebuild_reports(Path(arguments.report))
        print(f"study: {arguments.report} (study.md, plots)")
        return 0
    options = _options(arguments, overrides)
    if arguments.dry_run:
        _list(options)
        return 0

    from prism_lite.recipe import load_recipe

    prepare_imports(load_recipe(options.recipe, options.overrides).model)
    from rich.console import Console

    from prism_lite.console import say
    from prism_lite.study.report import print_study
    from prism_lite.study.run import run_study

    console = Console()
    study = run_study(options, console=console)
    print_study(study, console)
    say(console, f"study: {options.out} (study.json, study.md, plots, seed-N/ARM/)")
    return 0


def _options(arguments: argparse.Namespace, overrides: list[str]) -> StudyOptions:
    """Check the arguments and return them by their types."""
    from prism_lite.study.arms import DEFAULT_ARMS
    from prism_lite.study.results import BEST_BY, FIGURES
    from prism_lite.study.run import StudyOptions
    from prism_lite.study.tuning import check_tuning, parse_tries

    # `--seeds 0 1 align.steps=5`: argparse adds the setting to the values of the option before it.
    lists: dict[str, list[str]] = {}
    for name in ("arms", "seeds", "tuning_seeds", "drift", "teacher_errors"):
        values = getattr(arguments, name)
        overrides = overrides + [text for text in values if "=" in text]
        lists[name] = [text for text in values if "=" not in text]
    arms = tuple(lists["arms"] or DEFAULT_ARMS)
    seeds = _integers("--seeds", lists["seeds"])
    tuning_seeds = _integers("--tuning-seeds", lists["tuning_seeds"])
    tries = parse_tries(arguments.tune, arms)
    check_tuning(tries, tuning_seeds, seeds)
    for option, arm in (("--reference", arguments.reference),):
        if arm is not None and arm not in arms:
            raise ValueError(f"{option} {arm}: it is not among --arms {' '.join(arms)}.")
    if arguments.tune_by not in ("mean", *FIGURES):
        raise ValueError(f"--tune-by {arguments.tune_by}: expected mean ({', '.join(BEST_BY)}) or one "
                         f"of {', '.join(FIGURES)}.")  # fmt: skip
    try:
        rates = tuple(map(float, lists["teacher_errors"]))
    except ValueError:
        raise ValueError(
            f"--teacher-errors {' '.join(lists['teacher_errors'])}: expected rates."
        ) from None
    return StudyOptions(
        recipe=arguments.recipe,
        overrides=tuple(overrides),
        arms=arms,
        seeds=seeds,
        out=Path(arguments.out),
        reference=arguments.reference,
        drifts=tuple(lists["drift"]),
        teacher_errors=rates,
        base_per_seed=arguments.base_seeds,
        tries=tries,
        tuning_seeds=tuning_seeds,
        best_by=arguments.tune_by,
        command=_command(arguments, lists | {"arms": [*arms]}, overrides),
    )


def _integers(option: str, texts: Sequence[str]) -> tuple[int, ...]:
    for text in texts:
        if not text.removeprefix("-").isdecimal():
            raise ValueError(f"{option} {text}: expected whole numbers.")
    return tuple(map(int, texts))


def _command(
    arguments: argparse.Namespace, lists: dict[str, list[str]], overrides: Sequence[str]
) -> str:
    """Return the command line that rebuilds the study."""
    words = ["prism-lite", "study", "--recipe", arguments.recipe]
    for name, values in lists.items():
        words += [f"--{name.replace('_', '-')}", *values] if values else []
    for text in arguments.tune:
        words += ["--tune", text]
    if arguments.reference:
        words += ["--reference", arguments.reference]
    if arguments.tune:
        words += ["--tune-by", arguments.tune_by]
    words += ["--base-seeds"] if arguments.base_seeds else []
    return shlex.join([*words, "--out", arguments.out, *overrides])


def _list(options: StudyOptions) -> None:
    """Print each run's budget and the commands that do the same."""
    from prism_lite.study.arms import START, budget
    from prism_lite.study.plan import commands_of
    from prism_lite.study.run import plan_cells, plan_tuning_runs

    def show(title: str, planned: PlannedRun) -> None:
        text = "SFT, shared by the arms of this seed"
        if planned.arm != START:
            counts = budget(planned.config)
            text = (
                f"{counts['policy_updates']} policy updates after SFT, from {counts['completions']} "
                "completions"
            )
        print(f"# {title}seed {planned.seed}, {planned.arm}: {text}")
        for command in commands_of(planned, options.recipe):
            print(command)

    listed: dict[Path, tuple[str, PlannedRun]] = {}
    for (_, number), runs in plan_tuning_runs(options).items():
        for run in runs:
            listed.setdefault(run.folder, (f"tuning, try {number}, ", run))
    for cell, runs in plan_cells(options).items():
        for run in runs:
            listed.setdefault(run.folder, (f"{cell}, " if cell else "", run))
    for title, run in listed.values():
        show(title, run)
    if options.tries:
        print("# the reported runs also have the best try of their arm's tuning")
