"""`prism-lite data check`: print every defect of a data file, write the clean rows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from prism_lite.cli import easy_vqa, template
from prism_lite.data.template import explain
from prism_lite.types import STAGES

if TYPE_CHECKING:
    from prism_lite.data.checks.check import Report

_NUM_SHOWN = 5  # messages per kind


def add_command(commands: Any) -> None:
    """Add `data check` to the command line's subparsers."""
    data = commands.add_parser(
        "data",
        help="check a data file before training (check PATH), write one or a public data set",
        epilog=explain(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = data.add_subparsers(required=True, metavar="SUBCOMMAND")
    template.add_command(subcommands)
    easy_vqa.add_command(subcommands)
    command = subcommands.add_parser("check", help="print every defect of a data file")
    command.add_argument("path", help="file, folder or hub id")
    command.add_argument("--fix", metavar="OUT", help="write the clean rows here")
    command.add_argument("--eval", metavar="FILE", help="also look for overlap with this file")
    command.add_argument("--stage", choices=(*STAGES, "eval"))
    command.add_argument(
        "--columns", metavar="MAP", help="'{prompt: question, images: image, answer: answer}'"
    )
    command.add_argument("--image_root", metavar="DIR", help="relative picture paths start here")
    command.add_argument(
        "--boxes",
        choices=[
            f"{unit},{form}" for unit in ("pixels", "thousandths") for form in ("xyxy", "xywh")
        ],
        help="unit and form of boxes in answers; default: pixels,xyxy where the prompts ask for boxes",
    )
    command.set_defaults(handler=_check, takes_settings=False)


def _check(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    """Print the report of a check and write the clean rows if asked to.

    Returns:
        0 where every row is clean, 2 where not, also when `--fix` wrote the clean ones.

    Raises:
        ValueError: `--fix`, the evaluation file or the column map cannot be used.
    """
    import yaml

    from prism_lite.data.checks.boxes import SYSTEMS
    from prism_lite.data.checks.check import check, prompt_keys, with_boxes
    from prism_lite.data.checks.fix import write_fixed
    from prism_lite.data.checks.rules import CheckRules
    from prism_lite.data.formats.load import load_samples

    columns = yaml.safe_load(arguments.columns) if arguments.columns else None
    if columns is not None and not isinstance(columns, dict):
        raise ValueError(f"--columns {arguments.columns!r}: expected '{{ours: theirs, ...}}'.")
    boxes = {f"{system.unit},{system.form}": system for system in SYSTEMS}.get(arguments.boxes)
    path, rules = arguments.path, CheckRules(stage=arguments.stage, boxes=boxes)
    options = {"columns": columns, "image_root": arguments.image_root}
    report = check(path, rules=rules, eval_path=arguments.eval, **options)
    _print_report(report)
    if arguments.fix is not None and report.num_rows:
        overlap = prompt_keys(arguments.eval, image_root=arguments.image_root)
        opened = load_samples(path, **options)
        rules = with_boxes(rules, opened)
        fixed = write_fixed(opened, arguments.fix, rules=rules, overlap=overlap)
        print(f"{fixed.num_clean} clean rows: {fixed.clean}")
        print(f"{fixed.num_rejected} rejected rows with reasons: {fixed.rejects}")
        if fixed.note:
            print(fixed.note)
    return 0 if report.ok else 2


def _print_report(report: Report) -> None:
    """Print format, first sample, counts by kind, and the first messages of each kind."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prism_lite.data.formats.detect import MEANINGS

    console = Console(soft_wrap=True)
    form = MEANINGS[report.convention] if report.convention else "not readable"
    console.print(Text(f"{report.path}: {form}", style="bold"))
    if report.first_sample:
        console.print(Text(f"{report.first_sample}\n"))
    for note in report.notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(f"{report.num_rows} rows, {report.num_clean} clean"))
    if report.first_sample:
        console.print(Text(_rows_by_stage(report)))
    if report.ok:
        return
    table = Table("kind", "rows", "first messages")
    for kind, count in sorted(report.counts.items(), key=lambda item: -item[1]):
        messages = [finding.message for finding in report.findings if finding.kind == kind]
        lines = messages[:_NUM_SHOWN]
        if count > len(lines):
            lines.append(f"... and {count - len(lines)} more")
        table.add_row(Text(kind), str(count), Text("\n".join(lines)))
    console.print(table)


def _rows_by_stage(report: Report) -> str:
    """Say how many rows SFT, alignment and RLVR can train on, and what to do where one has none."""
    without = {
        "sft": "no demonstration: `prism-lite teach --field both` writes them, sft.steps=0 skips it",
        "align": "no teacher text: `prism-lite teach` writes it",
        "rlvr": "no answer",
    }
    counts = ((stage, report.by_stage.get(stage, 0), text) for stage, text in without.items())
    rows = (f"{stage} {num}" + (f" ({text})" if not num else "") for stage, num, text in counts)
    return f"rows by stage: {', '.join(rows)}"
