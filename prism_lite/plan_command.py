"""`prism-lite plan`: will a recipe fit a card? Arguments here, the work in `prism_lite/planner/`."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_command(commands: Any) -> None:
    """Add `plan` to the command line's subparsers."""
    command = commands.add_parser("plan", help="will a recipe fit the card? (no GPU needed)")
    command.add_argument("--recipe", default="tiny", metavar="NAME|FILE", help="default: tiny")
    command.add_argument("--card", type=float, metavar="GIB", help="default: the recipe's card")
    command.add_argument("--json", action="store_true", help="print figures for programs")
    command.add_argument(
        "--find", action="store_true", help="largest group size, pack and picture that fit"
    )
    command.set_defaults(handler=run_plan)


def run_plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plan and print.

    Returns:
        0, also where the recipe does not fit: the question was answered.

    Raises:
        ValueError: wrong settings, an unknown model, a card of no size, `--find` without a card.
    """
    from prism_lite.recipe import load_recipe

    if arguments.card is not None and not 1 <= arguments.card <= 1024:
        raise ValueError(f"--card {arguments.card:g}: expected a card's memory in GiB, 1 to 1024.")
    config = load_recipe(arguments.recipe, overrides)

    from rich.console import Console

    from prism_lite.planner import report, search
    from prism_lite.planner.planning import card_for, plan

    if arguments.find and card_for(config, arguments.card) is None:
        raise ValueError("--find needs a card: give --card GIB.")
    console = Console(stderr=arguments.json)
    with console.status(f"simulating {config.recipe}"):
        planned = plan(config, card_gib=arguments.card)
    if arguments.json:
        print(json.dumps(planned.to_json(), indent=1))
        return 0
    report.print_plan(planned, console)
    if not planned.fits:
        with console.status("trying what to lower"):
            lowered = search.what_to_lower(config, planned)
        report.print_found(lowered, console, "lowering one of these is enough")
    if arguments.find:
        with console.status("trying larger and smaller settings"):
            found = search.find_largest(config, planned)
        report.print_found(found, console, "one setting changed, the rest as they are")
    return 0
