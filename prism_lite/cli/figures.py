"""`prism-lite figures`: the held-out figures of a run by the values of a column."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(commands: Any) -> None:
    """Add `figures` to the command line's subparsers."""
    command = commands.add_parser(
        "figures",
        help="held-out figures of a run by a column of its file",
        description="Prints the figures of every evaluated stage, with 95 % intervals, for the held-out "
        "rows of each value of a column. No model is loaded.",
        epilog="Example: prism-lite figures --run runs/easy --by kind",
    )
    command.add_argument("--run", required=True, metavar="DIR", help="a run folder")
    command.add_argument("--by", required=True, metavar="COLUMN", help="of the held-out file")
    command.add_argument("--json", metavar="FILE", help="write the figures here")
    command.set_defaults(handler=_print, takes_settings=False)


def _print(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prism_lite.deploy.by_column import figures_by_column
    from prism_lite.files import write_json
    from prism_lite.runs.changes import FIGURES, TITLES

    records = figures_by_column(Path(arguments.run), arguments.by)
    names = [name for name in FIGURES if name in records[0]]
    table = Table("stage", arguments.by, "n", *(FIGURES[name] for name in names))
    for record in records:
        cells = []
        for name in names:
            mean, low, high = record[name]
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        title = TITLES.get(record["stage"], record["stage"])
        table.add_row(title, Text(record["value"]), str(record["n"]), *cells)
    Console(soft_wrap=True).print(table)
    if arguments.json:
        write_json(Path(arguments.json), records)
    return 0
