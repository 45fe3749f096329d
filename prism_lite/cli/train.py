"""`prism-lite run` and the commands of single stages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_lite import signals
from prism_lite.cli.arguments import check_arguments
from prism_lite.cli.imports import prepare_imports

EPILOG = (
    "Any setting: --align.group_size 8 or align.group_size=8. What each one means: "
    "prism-lite settings [SECTION|WORD]."
)
_HELP = {
    "run": "all stages; run it again to resume",
    "sft": "stage 1 alone: imitation of the demonstrations",
    "warmup": "stage 2 alone: the discriminator learns to tell teacher text from SFT samples",
    "align": "stage 3 alone: the adversarial game",
    "rlvr": "stage 4 alone: reinforcement learning with verifiable rewards",
}


def add_command(commands: Any) -> None:
    """Add `run` and the four stages to the command line's subparsers."""
    for name, text in _HELP.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Ctrl-C, SIGTERM and SIGHUP save at the next step.",
            epilog=EPILOG,
            usage=f"prism-lite {name} [--recipe NAME|FILE] [--out DIR] [OPTION ...] [SETTING=VALUE ...]",
            allow_abbrev=False,  # `--s 3` of another trainer must not become --seed
        )
        command.add_argument(
            "--recipe", default="tiny", metavar="NAME|FILE",
            help=f"a YAML file or one of {', '.join(_recipes())}; default: tiny",
        )  # fmt: skip
        command.add_argument("--out", metavar="DIR", help="run folder; default: runs/RECIPE")
        command.add_argument("--seed", type=int, help="random seed; default: the recipe's")
        command.add_argument(
            "--backend",
            choices=("auto", "transformers", "unsloth"),
            help="library that loads the model",
        )
        command.add_argument(
            "--from-checkpoint",
            metavar="STAGE:STEP",
            help="resume from this checkpoint, as align:40; what came after it is set aside",
        )
        command.add_argument(
            "--accept-changed-inputs",
            action="store_true",
            help="resume although data, pictures, base or rewards have changed; inputs.json records it",
        )
        command.add_argument(
            "--strict",
            action="store_true",
            help="compare pictures and base by content, not by time",
        )
        command.add_argument(
            "--dry-run", action="store_true", help="print the resolved settings and exit"
        )
        command.add_argument(
            "--no-rehearsal",
            action="store_true",
            help="on a card: skip the step of every stage that is taken before the run begins",
        )
        command.set_defaults(handler=_run, stages=None if name == "run" else (name,))


def _recipes() -> list[str]:
    """Return the names of the shipped recipes without importing YAML: help must be quick."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("[!_]*.yaml"))


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run all stages or one, or print the settings."""
    import yaml

    from prism_lite.recipe import load_recipe, to_dict

    options = {"seed": arguments.seed, "model.backend": arguments.backend}
    overrides += [f"{key}={value}" for key, value in options.items() if value is not None]
    config = load_recipe(arguments.recipe, overrides)
    out = Path(arguments.out or f"runs/{config.recipe}")
    if arguments.dry_run:
        from prism_lite.rewards.load import load_rewards

        load_rewards(config)  # refuses a reward function that cannot be imported
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0
    check_arguments(config, out, [text.partition("=")[0] for text in overrides])

    with signals.reacts("exit"):  # an exception inside an extension module's import would be lost
        prepare_imports(config.model)
        from rich.console import Console

        from prism_lite import pipeline
        from prism_lite.console import say
        from prism_lite.output import lasting_output
        from prism_lite.processes import launched_rank
        from prism_lite.runs.report import changes_table, results_table
        from prism_lite.study.measured import room_of
        from prism_lite.types import STAGES

    with lasting_output():
        console = Console(quiet=launched_rank() > 0)
        results = pipeline.run(
            config,
            out,
            stages=arguments.stages or STAGES,
            console=console,
            command=arguments.command_text,
            from_checkpoint=arguments.from_checkpoint,
            accept_changed_inputs=arguments.accept_changed_inputs,
            strict=arguments.strict,
            rehearsal=not arguments.no_rehearsal,
        )
        if results.get("stages"):
            console.print(results_table(results))
        changes = changes_table(out, config)
        if changes is not None:
            console.print(changes)
        room = room_of(config)
        if room is not None and changes is not None:
            say(console, room)
        say(console, f"run folder: {out} (plots/, README.md, policy/, metrics.jsonl)")
    return 0
