"""`prism-lite run` and the four stages alone. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prism_lite.cli.imports import quiet_libraries


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import yaml

    from prism_lite.recipe import load_recipe, to_dict

    if arguments.seed is not None:
        overrides = [*overrides, f"seed={arguments.seed}"]
    if arguments.backend is not None:
        overrides = [*overrides, f"model.backend={arguments.backend}"]
    config = load_recipe(arguments.recipe, overrides)
    if arguments.dry_run:
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0

    from prism_lite.models.load_unsloth import import_first

    import_first(config.model)
    quiet_libraries()
    from rich.console import Console

    from prism_lite import pipeline
    from prism_lite.runs import report
    from prism_lite.runs.folder import Stopped
    from prism_lite.types import STAGES

    console = Console()
    out = arguments.out or f"runs/{config.recipe}"
    stages = arguments.stages or STAGES
    try:
        results = pipeline.run(config, out, stages=stages, console=console)
    except (Stopped, KeyboardInterrupt) as stop:
        console.print(report.resume_line(stop, arguments.given), soft_wrap=True)
        return 3
    if results.get("stages"):
        console.print(report.results_table(results))
    console.print(f"run folder: {out} (plots/, README.md, policy/, metrics.jsonl)")
    return 0


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", default="tiny", metavar="NAME|FILE", help="default: tiny")
    command.add_argument("--out", metavar="DIR", help="run folder; default: runs/RECIPE")
    command.add_argument("--seed", type=int, help="default: the recipe's")
    command.add_argument(
        "--backend", choices=("auto", "transformers", "unsloth"), help="the loader"
    )
    command.add_argument("--dry-run", action="store_true", help="print the settings and stop")


EPILOG = (
    "Any setting: --align.group_size 8 or align.group_size=8. What each one means: "
    "prism-lite settings [SECTION|WORD]."
)
STAGE_HELP = {
    "sft": "stage 1 alone: imitation of the demonstrations",
    "warmup": "stage 2 alone: the discriminator learns teacher against SFT samples",
    "align": "stage 3 alone: the adversarial game",
    "rlvr": "stage 4 alone: reinforcement with verifiable rewards",
}


def _overrides(rest: Sequence[str]) -> list[str]:
    """`--align.group_size 8`, `--align.group_size=8` and `align.group_size=8`, all as the last.

    Raises:
        ValueError: an argument that is none of these.
    """
    overrides, waiting = [], list(rest)
    while waiting:
        item = waiting.pop(0)
        if "=" in item:
            overrides.append(item.removeprefix("--"))
        elif item.startswith("--") and waiting and not waiting[0].startswith("--"):
            overrides.append(f"{item.removeprefix('--')}={waiting.pop(0)}")
        else:
            raise ValueError(
                f"cannot understand {item!r}: settings are given as key=value or --key value."
            )
    return overrides
