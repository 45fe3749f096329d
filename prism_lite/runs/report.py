"""Results of a run for its reader: tables, plots and the model card. Reads the run folder only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from prism_lite.config import RunConfig
from prism_lite.runs.changes import FIGURES, TITLES, change_rows
from prism_lite.types import EVALUATED_STAGES

RATE_COLUMNS = {
    "accuracy": "accuracy",
    "greedy_accuracy": "greedy accuracy",
    "transfer_accuracy": "transfer accuracy",
    "caption_accuracy": "caption accuracy",
    "think_validity": "think validity",
    "format_rate": "format rate",
}
# Figures of the evaluations inside a stage.
INSIDE = (
    "eval/accuracy", "eval/transfer_accuracy", "eval/caption_accuracy", "eval/think_validity",
    "eval/format_rate",
)  # fmt: skip


def stage_line(stage: str, figures: Mapping[str, Any]) -> str:
    """Return one line about a stage for the console."""
    cells = (
        f"{title} {_figure_text(figures, name, as_range=True)}"
        for name, title in RATE_COLUMNS.items()
        if name in figures
    )
    return f"{stage:5} " + ", ".join(cells)


def console_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows of figures for 80 columns: those of `FIGURES` under their short titles, and seconds."""
    header = rows[0]
    titles = {RATE_COLUMNS[name]: title for name, title in FIGURES.items()} | {"seconds": "seconds"}
    kept = [0, *(i for i, title in enumerate(header) if title in titles)]
    short = [titles.get(header[i], header[i]) for i in kept]
    return [short, *([row[i] for i in kept] for row in rows[1:])]


def figures_header(first: str) -> list[str]:
    """Return the titles of the columns of `figures_row`."""
    return [first, *RATE_COLUMNS.values(), "mean tokens", "seconds"]


def figures_row(
    first: str, figures: Mapping[str, Any], digits: int = 3, *, as_range: bool = False
) -> list[str]:
    """Return one row of a table of figures, as text."""
    return [
        first,
        *(_figure_text(figures, name, digits, as_range=as_range) for name in RATE_COLUMNS),
        _figure_text(figures, "mean_tokens", 1),
        _figure_text(figures, "seconds", 0),
    ]


def _figure_text(
    figures: Mapping[str, Any], name: str, digits: int = 3, *, as_range: bool = False
) -> str:
    """Return a figure with its 95 % interval; "-" where it was not measured.

    As 0.51±0.05, or with 0.81-1.00 below where the interval is skewed; as a range 0.51 (0.46 to 0.56).
    """
    if figures.get(name) is None:
        return "-"
    text = f"{figures[name]:.{digits}f}"
    if name not in figures["ci95"]:
        return text
    low, high = figures["ci95"][name]
    if as_range:
        return f"{text} ({low:.{digits}f} to {high:.{digits}f})"
    if abs((high - figures[name]) - (figures[name] - low)) > 10**-digits:
        return f"{text}\n{low:.{digits}f}-{high:.{digits}f}"
    return f"{text}±{(high - low) / 2:.{digits}f}"


def _results_rows(
    results: Mapping[str, Any], digits: int = 3, *, as_range: bool = False
) -> list[list[str]]:
    """Return a header and one row per evaluated stage, as text."""
    rows = [figures_header("stage")]
    for stage in EVALUATED_STAGES:
        figures = results.get("stages", {}).get(stage)
        if figures is None:
            continue
        seconds = figures.get("seconds")
        if stage == "align" and "warmup" in results.get("seconds", {}):
            seconds = (seconds or 0.0) + results["seconds"]["warmup"]
        title = TITLES.get(stage, stage)
        with_seconds = {**figures, "seconds": seconds}
        rows.append(figures_row(title, with_seconds, digits, as_range=as_range))
    return rows


def results_table(results: Mapping[str, Any]) -> Table:
    """Build the table that `prism-lite run` ends with."""
    title = f"{results['n']} held-out prompts, 95 % intervals"
    if "warmup" in results.get("seconds", {}):
        title += "; align includes warm-up"
    return rows_table(console_rows(_results_rows(results, digits=2)), title)


def changes_table(folder: Path, config: RunConfig) -> Table | None:
    """Build the table of what each stage changed; None if fewer than two stages were evaluated."""
    rows = change_rows(folder, rlvr_start=config.rlvr.start)
    if not rows:
        return None
    return rows_table(rows, "paired by prompt, 95 % intervals; * excludes zero", is_tight=True)


def rows_table(rows: Sequence[Sequence[str]], title: str, *, is_tight: bool = False) -> Table:
    """Build a console table from rows of text, the first one the header; a tight one has no margins."""
    header, *rest = rows
    table = Table(
        title=Text(title, style="table.title"),
        box=SIMPLE_HEAD,
        padding=(0, 0 if is_tight else 1, 0, 0),
        show_edge=not is_tight,
    )
    for i, name in enumerate(header):  # titles wrap, figures never do
        width = max((len(line) for row in rest for line in row[i].split("\n")), default=0)
        table.add_column(name, justify="left" if i == 0 else "right", min_width=width)
    for row in rest:
        table.add_row(*map(Text, row))
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, or say that there are none."""
    if not results.get("stages"):
        return "Not evaluated: no held-out rows."
    return markdown_rows(_results_rows(results, as_range=True))


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, the first one the header, as a Markdown table."""
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *rest])


def reward_name(key: str) -> str:
    """Return the name of a key of rlvr.rewards: of a function, what follows the colon."""
    return key.rpartition(":")[2]
