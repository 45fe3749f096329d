"""A plan as text: a table of the stages and a bar for each category against the card."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from prism_lite.planner.offload import Moved
from prism_lite.planner.plan import GIB, SPARE, Plan, StagePlan
from prism_lite.planner.search import Found

BAR_CELLS = 40
PHASE_WORDS = {"train": "training", "judge": "discriminator", "sample": "sampling"}


def print_plan(plan: Plan, console: Console) -> None:
    """Table, bars and the verdict."""
    console.print(_table(plan))
    for stage in plan.stages.values():
        console.print(f"\n{stage.stage}: {PHASE_WORDS[stage.highest.phase]}, the highest moment")
        console.print("\n".join(bar_lines(stage, plan)), markup=False, highlight=False)
    console.print()
    console.print(verdict(plan))


def _table(plan: Plan) -> Table:
    card = f"{plan.card.gib:g} GiB card" if plan.card else "CPU"
    table = Table(title=f"{plan.recipe}: {plan.model} on a {card} (predicted, not measured)")
    table.add_column("stage")
    table.add_column("peak GiB", justify="right")
    if plan.card:
        table.add_column("of the card", justify="right")
        table.add_column("s per step, at least", justify="right")
    table.add_column("highest in")
    for stage in plan.stages.values():
        cells = [stage.stage, f"{stage.peak_gib:.2f}"]
        if plan.card:
            cells += [f"{stage.peak_gib / plan.card.gib:.0%}", f"{stage.seconds_per_step:.1f}"]
        table.add_row(*cells, PHASE_WORDS[stage.highest.phase])
    return table


def bar_lines(stage: StagePlan, plan: Plan) -> list[str]:
    """A line per category that is not empty: name, bar, GiB; against the card where there is one."""
    whole = plan.card.gib if plan.card else stage.peak_gib
    lines = []
    for name, gib in stage.by_category.items():
        if gib > 0:
            cells = round(BAR_CELLS * gib / whole)
            lines.append(f"  {name:12}{'#' * cells:{BAR_CELLS}} {gib:7.3f}")
    off_card = stage.highest.peak.off_card / GIB
    if off_card:
        lines.append(f"  and {off_card:.2f} GiB wait in the CPU's memory")
    return lines


def verdict(plan: Plan) -> str:
    """Whether it fits, in a sentence."""
    if plan.card is None or plan.room_gib is None:
        return f"Peak of tensors {plan.peak_gib:.2f} GiB, beside Python and its libraries."
    share = f"{plan.peak_gib:.2f} of {plan.card.gib:g} GiB"
    if plan.fits:
        return f"[green]Fits[/]: {share}, at least {SPARE:.0%} to spare."
    return f"[red]Does not fit[/]: {share}; {plan.room_gib:.2f} GiB leave {SPARE:.0%} to spare for CUDA."


def print_found(found: list[Found], console: Console, title: str) -> None:
    """A table of settings with their present and their found values."""
    table = Table(title=title)
    for name in ("setting", "now", "largest that fits", "peak GiB"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for item in found:
        largest = "none" if item.largest is None else str(item.largest)
        if item.largest is not None and item.next_larger is None:
            largest += ", none larger tried"
        peak = "" if item.peak_gib is None else f"{item.peak_gib:.2f}"
        table.add_row(item.setting, str(item.now), largest, peak)
    console.print(table)


def print_moved(moved: list[Moved], console: Console) -> None:
    """A table of settings that move memory to the CPU, with what each saves."""
    table = Table(title="kept in the CPU's memory or computed again: less on the card, more time")
    for name in ("setting", "saves GiB", "peak GiB", ""):
        table.add_column(name, justify="right" if "GiB" in name else "left")
    for item in moved:
        verdict = "[green]fits[/]" if item.fits else "does not fit"
        table.add_row(item.settings, f"{item.saved_gib:.2f}", f"{item.peak_gib:.2f}", verdict)
    console.print(table)
