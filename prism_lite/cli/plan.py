"""`prism-lite plan`: does a recipe fit a card, and how long does it take? The work is done in planner/."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_lite.cli.imports import quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from prism_lite.planner.hours import Hours
    from prism_lite.planner.plan import Plan
    from prism_lite.planner.search import LargestValue, Moved
    from prism_lite.planner.simulate_phase import Simulated

_BAR_CELLS = 40
_WORK_NAMES = {
    "train": "training", "judge": "discriminator", "sample": "sampling", "panel": "panel",
    "evaluate": "evaluation",
}  # fmt: skip
_NOTHING_HELPS = (
    "Lowering model.max_pack_tokens and sampling.max_rows to a quarter is not enough, or leaves a pack too "
    "small for a prompt with one completion: lower sampling.max_completion_tokens and "
    "discriminator.max_part_tokens, or take a smaller model."
)


def add_command(commands: Any) -> None:
    """Add `plan` to the command line's subparsers."""
    command = commands.add_parser(
        "plan",
        help="does a recipe fit the card, and how long does it take? (no GPU needed)",
        description="Simulates every stage of a recipe at full size, on any machine and without a "
        "download, and prints the memory and the hours that each needs on the card. Takes about a "
        "minute.",
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
        "--measured",
        metavar="FILE",
        help="JSON file of gpu-check on this card: its times calibrate the hours",
    )
    command.add_argument(
        "--find",
        action="store_true",
        help="also search the largest group size, pack and picture that fit (three to five minutes)",
    )
    command.set_defaults(handler=_run_plan)


def _run_plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plan and print.

    Returns:
        0, also where the recipe does not fit: the question was answered.

    Raises:
        ValueError: wrong settings, an unknown model, a card of no size, `--find` without a card, a record
            of another card.
    """
    from prism_lite.recipe import load_recipe

    card_gib = _card_gib(arguments.card)
    config = load_recipe(arguments.recipe, overrides)
    quiet_libraries()

    from rich.console import Console

    from prism_lite.console import say
    from prism_lite.planner import search
    from prism_lite.planner.plan import card_for, plan

    if arguments.find and card_for(config, card_gib) is None:
        raise ValueError("--find needs a card: give --card GIB.")
    record = None if arguments.measured is None else _record(arguments.measured)
    console = Console()
    if not arguments.json:
        say(console, "simulating a step of every stage: about a minute")
    planned = plan(config, card_gib=card_gib, record=record)
    if arguments.json:
        figures = planned.to_json()
        if arguments.find:
            largest = search.find_largest(config, planned)
            figures["found"] = [dataclasses.asdict(value) for value in largest]
        print(json.dumps(figures, indent=1))
        return 0
    console.print(_plan_table(planned))
    for stage, highest in planned.stages.items():
        work = _WORK_NAMES[highest.phase.work]
        say(console, f"\n{stage}: {work}, the highest moment")
        say(console, "\n".join(_bar_lines(highest, planned)))
    say(console, f"\n{_verdict(planned)}", "green" if planned.fits else "red")
    if planned.hours is not None:
        say(console, _about_hours(planned.hours))
    if not planned.fits:
        console.print(_moved_table(search.what_to_move(config, planned)))
        title, lowered = search.what_to_lower(config, planned)
        if lowered:
            console.print(_largest_table(lowered, title))
        else:
            say(console, _NOTHING_HELPS)
    if arguments.find:
        largest = search.find_largest(config, planned)
        console.print(_largest_table(largest, "one setting changed, the rest as they are"))
    return 0


def _card_gib(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 1 <= gib <= 1024:
        raise ValueError(f"--card {text}: expected a card's memory in GiB, 1 to 1024 (T4: 15).")
    return gib


def _record(file: str) -> dict[str, Any]:
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--measured {file}: cannot be read as JSON ({error}).") from error
    missing = {"card", "gib", "stages"} - set(record)
    if missing:
        raise ValueError(
            f"--measured {file}: no {', '.join(sorted(missing))} in it; give a file that gpu-check wrote."
        )
    return record


def _plan_table(plan: Plan) -> Table:
    card = f"{plan.card.gib:g} GiB card" if plan.card else "CPU"
    columns = ["stage", "GiB reserved" if plan.card else "peak GiB", "highest in"]
    columns += ["s per step", "hours"] if plan.hours else []
    title = f"{plan.recipe}: {plan.model} on a {card} (predicted, not measured)"
    rows = []
    for stage, highest in plan.stages.items():
        gib = f"{highest.peak_gib:.2f}"
        gib += f" to {highest.reserved_gib:.2f}" if plan.card else ""
        cells = [stage, gib, _WORK_NAMES[highest.phase.work]]
        if plan.hours:
            cells += [f"{plan.hours.step_s[stage]:.1f}", f"{plan.hours.stages[stage]:.1f}"]
        rows.append(cells)
    if plan.hours:
        rows.append(["evaluation", "", "", "", f"{plan.hours.evaluation:.1f}"])
        rows.append(["in all", "", "", "", f"{plan.hours.total:.1f}"])
    return _table(title, columns, rows)


def _about_hours(hours: Hours) -> str:
    """Return how long the recipe takes, by what model, and whether a session of Colab holds it."""
    basis = f"calibrated on {hours.measured_on}" if hours.measured_on else "may be wrong by 40 %"
    share = (hours.panels + hours.evaluation) / hours.total
    sessions = (
        "A 12-hour session of Colab holds it."
        if hours.num_sessions == 1
        else f"It takes {hours.num_sessions} sessions of 12 hours on Colab, resumed in each."
    )
    return (
        f"Predicted {hours.total:.1f} hours ({basis}), sampling with {hours.decoding}; "
        f"{share:.0%} of them are panels and evaluation. {sessions}"
    )


def _bar_lines(highest: Simulated, plan: Plan) -> list[str]:
    """Return a line per category that is not empty: name, bar, GiB; a full bar is the card, or the peak."""
    full_gib = plan.card.gib if plan.card else highest.peak_gib
    lines = []
    for name, gib in highest.by_category.items():
        if gib > 0:
            cells = round(_BAR_CELLS * gib / full_gib)
            lines.append(f"  {name:12}{'#' * cells:{_BAR_CELLS}} {gib:7.3f}")
    if highest.off_card_gib:
        lines.append(f"  and {highest.off_card_gib:.2f} GiB wait in the CPU's memory")
    return lines


def _verdict(plan: Plan) -> str:
    """Whether it fits, in a sentence."""
    if plan.card is None:
        return (
            f"Peak of tensors {plan.peak_gib:.2f} GiB, beside Python and its libraries. Hours are "
            "predicted for cards alone; the run says how long each stage still takes."
        )
    share = f"{plan.peak_gib:.2f} of {plan.card.gib:g} GiB reserved at the most"
    spare = f"{1 - plan.room_gib / plan.card.gib:.0%} to spare"
    if plan.fits:
        return f"Fits: {share}, at least {spare}."
    return f"Does not fit: {share}; {plan.room_gib:.2f} GiB leave {spare} for CUDA."


def _largest_table(results: Sequence[LargestValue], title: str) -> Table:
    """Return settings with their present and their largest values."""
    rows = []
    for result in results:
        largest = "none" if result.largest is None else str(result.largest)
        if result.largest is not None and result.next_larger is None:
            largest += ", none larger tried"
        peak = "" if result.peak_gib is None else f"{result.peak_gib:.2f}"
        rows.append([result.setting, str(result.now), largest, peak])
    return _table(title, ["setting", "now", "largest that fits", "peak GiB"], rows)


def _moved_table(results: Sequence[Moved]) -> Table:
    """Return settings that move memory to the CPU, with what each saves."""
    rows = [
        [
            result.settings,
            f"{result.saved_gib:.2f}",
            f"{result.peak_gib:.2f}",
            "fits" if result.fits else "does not fit",
        ]
        for result in results
    ]
    title = "kept in the CPU's memory or computed again: less on the card, more time"
    return _table(title, ["setting", "saves GiB", "peak GiB", ""], rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Format a table whose columns of numbers are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="table.title"))
    for name in columns:
        is_text = name in ("stage", "highest in", "setting", "")
        table.add_column(name, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
