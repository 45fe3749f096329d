"""`prism-lite plan`: will a recipe fit a card? Arguments here, the work in `prism_lite/planner/`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from prism_lite.cli.imports import quiet_libraries

NOTHING_HELPS = (
    "Lowering model.max_pack_tokens and sampling.max_rows to a quarter is not enough, or leaves a pack too "
    "small for a prompt with one completion: lower sampling.max_completion_tokens and "
    "discriminator.max_part_tokens, or take a smaller model."
)


def add_command(commands: Any) -> None:
    """Add `plan` to the command line's subparsers."""
    command = commands.add_parser(
        "plan",
        help="will a recipe fit the card? (no GPU needed)",
        description="Simulates every stage of a recipe at full size, on any machine and without a "
        "download, and prints the memory that each needs on the card. Takes about a minute.",
        epilog="Settings are given as for run: prism-lite plan --recipe t4-2b model.max_pixels=401408",
    )
    command.add_argument(
        "--recipe",
        default="tiny",
        metavar="NAME|FILE",
        help="a shipped recipe or a file; default: tiny",
    )
    command.add_argument(
        "--card", metavar="GIB", help="the card's memory (T4: 15); default: the recipe's card"
    )
    command.add_argument("--json", action="store_true", help="print figures for programs")
    command.add_argument(
        "--find",
        action="store_true",
        help="also search the largest group size, pack and picture that fit (three to five minutes)",
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

    card_gib = _card_gib(arguments.card)
    config = load_recipe(arguments.recipe, overrides)
    quiet_libraries()

    from rich.console import Console
    from rich.progress import track

    from prism_lite.planner import offload, report, search
    from prism_lite.planner.plan import card_for, plan

    if arguments.find and card_for(config, card_gib) is None:
        raise ValueError("--find needs a card: give --card GIB.")
    console = Console(stderr=arguments.json)

    def each(items: Sequence[Any], doing: str) -> Iterable[Any]:
        return track(items, description=doing, console=console, transient=True)

    planned = plan(config, card_gib=card_gib, each=each)
    if arguments.json:
        found = search.find_largest(config, planned, each=each) if arguments.find else None
        print(json.dumps(_for_programs(planned, found), indent=1))
        return 0
    report.print_plan(planned, console)
    if not planned.fits:
        moved = offload.what_to_move(config, planned, each=each)
        report.print_moved(moved, console)
        lowered = search.what_to_lower(config, planned, each=each)
        title = "lowering one of these is enough"
        if not lowered:
            lowered = search.what_to_lower_together(config, planned, each=each)
            title = "no setting is enough alone; these together are"
        if lowered:
            report.print_found(lowered, console, title)
        else:
            console.print(NOTHING_HELPS)
    if arguments.find:
        found = search.find_largest(config, planned, each=each)
        report.print_found(found, console, "one setting changed, the rest as they are")
    return 0


def _card_gib(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    if not 1 <= gib <= 1024:
        raise ValueError(f"--card {given}: expected a card's memory in GiB, 1 to 1024 (T4: 15).")
    return gib


def _for_programs(planned: Any, found: list[Any] | None) -> dict[str, Any]:
    figures = planned.to_json()
    return figures if found is None else figures | {"found": list(map(dataclasses.asdict, found))}
