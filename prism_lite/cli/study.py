"""`prism-lite study`: arms x seeds. Arguments here, the work in `study.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_lite.cli.imports import quiet_libraries


def add_command(commands: Any) -> None:
    """Add `study` to the command line's subparsers."""
    command = commands.add_parser("study", help="does alignment help? arms x seeds, with intervals")
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
    command.set_defaults(handler=run_command)


def run_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """List, or do, the runs of a study.

    Raises:
        ValueError: as `plan_study` and `run_study`; a seed that is no number.
    """
    from prism_lite.study.arms import DEFAULT_ARMS, plan_study

    # `--seeds 0 1 align.steps=5`: argparse hands the setting to the option before it.
    arms, more = _apart(arguments.arms or DEFAULT_ARMS)
    seeds, further = _apart(arguments.seeds)
    overrides = [*overrides, *more, *further]
    for seed in seeds:
        if not seed.removeprefix("-").isdecimal():
            raise ValueError(f"--seeds {seed}: expected whole numbers.")
    out = Path(arguments.out)
    planned = plan_study(
        arguments.recipe, overrides, arms=arms, seeds=[int(seed) for seed in seeds], out=out
    )
    if arguments.dry_run:
        _list(planned, arguments.recipe)
        return 0

    from prism_lite.models.load_unsloth import import_first

    import_first(planned[0].config.model)
    quiet_libraries()
    from rich.console import Console

    from prism_lite.runs import report
    from prism_lite.runs.folder import Stopped
    from prism_lite.study.report import print_study
    from prism_lite.study.run import run_study

    console = Console()
    try:
        found = run_study(planned, out, console=console)
    except (Stopped, KeyboardInterrupt) as stop:
        console.print(report.resume_line(stop, arguments.given), soft_wrap=True)
        return 3
    print_study(found, console)
    console.print(f"study: {out} (study.json, study.md, study.png, seed-N/ARM/)")
    return 0


def _apart(items: Any) -> tuple[list[str], list[str]]:
    """Values of an option, and settings that followed it."""
    return [i for i in items if "=" not in i], [i for i in items if "=" in i]


def _list(planned: Any, recipe: str) -> None:
    from prism_lite.study.arms import START, budget, commands_of

    for run in planned:
        print(f"# seed {run.seed}, {run.arm}" + _budget_text(budget(run.config), run.arm == START))
        for command in commands_of(run, recipe):
            print(command)


def _budget_text(found: dict[str, int], is_start: bool) -> str:
    if is_start:
        return ": SFT, shared by the arms of this seed"
    return (
        f": {found['policy_updates']} policy updates after SFT, from {found['completions']} "
        "completions"
    )
