"""`prism-lite study`: arms x seeds. Arguments here, the work in `prism_lite/study/`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_lite.cli.imports import prepare_imports

if TYPE_CHECKING:
    from prism_lite.study.arms import PlannedRun


def add_command(commands: Any) -> None:
    """Add `study` to the command line's subparsers."""
    command = commands.add_parser("study", help="compare baselines over seeds, with intervals")
    command.add_argument("--recipe", default="tiny", metavar="NAME|FILE", help="default: tiny")
    command.add_argument("--seeds", nargs="+", default=["0", "1", "2"], metavar="N")
    command.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="default: none sft dpo adversarial; also: one-expert",
    )
    command.add_argument("--out", default="runs/study", metavar="DIR", help="default: runs/study")
    command.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    command.set_defaults(handler=_study)


def _study(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """List or execute the runs of a study.

    Raises:
        ValueError: as `plan_study` and `run_study`; a seed that is not a whole number.
    """
    from prism_lite.study.arms import DEFAULT_ARMS, plan_study

    # `--seeds 0 1 align.steps=5`: argparse adds the setting to the values of the option before it.
    options = [*(arguments.arms or DEFAULT_ARMS), *arguments.seeds]
    overrides += [text for text in options if "=" in text]
    arms = [text for text in arguments.arms or DEFAULT_ARMS if "=" not in text]
    seeds = [text for text in arguments.seeds if "=" not in text]
    for seed in seeds:
        if not seed.removeprefix("-").isdecimal():
            raise ValueError(f"--seeds {seed}: expected whole numbers.")
    out = Path(arguments.out)
    planned = plan_study(
        arguments.recipe, overrides, arms=arms, seeds=list(map(int, seeds)), out=out
    )
    if arguments.dry_run:
        _list(planned, arguments.recipe)
        return 0

    prepare_imports(planned[0].config.model)
    from rich.console import Console

    from prism_lite.study.report import print_study
    from prism_lite.study.run import run_study

    console = Console()
    study = run_study(planned, out, console=console)
    print_study(study, console)
    console.print(f"study: {out} (study.json, study.md, study.png, seed-N/ARM/)")
    return 0


def _list(planned: Sequence[PlannedRun], recipe: str) -> None:
    """Print each run's budget and the commands that do the same."""
    from prism_lite.study.arms import START, budget, commands_of

    for item in planned:
        text = "SFT, shared by the arms of this seed"
        if item.arm != START:
            counts = budget(item.config)
            text = (
                f"{counts['policy_updates']} policy updates after SFT, from {counts['completions']} "
                "completions"
            )
        print(f"# seed {item.seed}, {item.arm}: {text}")
        for command in commands_of(item, recipe):
            print(command)
