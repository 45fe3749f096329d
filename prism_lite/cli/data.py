"""`prism-lite data check`: print every defect of a data file, write the clean rows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prism_lite.data.checks.check import Report
    from prism_lite.data.checks.rules import CheckRules

EXIT_CLEAN, EXIT_DEFECTS = 0, 2


def _data_check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import yaml

    from prism_lite.data.checks.rules import CheckRules

    if overrides:
        raise ValueError(f"data check takes no settings, got {overrides[0]!r}.")
    columns = yaml.safe_load(arguments.columns) if arguments.columns else None
    if columns is not None and not isinstance(columns, dict):
        raise ValueError(f"--columns {arguments.columns!r}: expected '{{ours: theirs, ...}}'.")
    return main_check(
        arguments.path,
        columns=columns,
        fix=arguments.fix,
        eval_path=arguments.eval,
        rules=CheckRules(stage=arguments.stage),
        image_root=arguments.image_root,
    )


def main_check(
    path: str | Path,
    *,
    fix: str | Path | None = None,
    eval_path: str | Path | None = None,
    rules: CheckRules | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    limit: int | None = None,
    num_shown: int = 5,
) -> int:
    """Print the report of a check, write the clean rows if asked to, and return the exit code.

    Args:
        path: the file to check.
        fix: where the clean rows go (see `doctor_fix.write_fixed`); None writes nothing.
        eval_path, rules, columns, image_root, limit: as for `check`.
        num_shown: messages shown per kind.

    Returns:
        0 where every row is clean, 2 where not, also when `fix` wrote the clean ones.

    Raises:
        ValueError: `fix`, the evaluation file or the column map cannot be used.
    """
    from prism_lite.data.checks.check import check, overlap_keys
    from prism_lite.data.checks.fix import write_fixed
    from prism_lite.data.checks.rules import CheckRules
    from prism_lite.data.formats.load import load_samples

    report = check(
        path, rules=rules, columns=columns, image_root=image_root, eval_path=eval_path, limit=limit
    )
    print_report(report, num_shown=num_shown)
    if fix is not None and report.num_rows:
        overlap = overlap_keys(eval_path, image_root=image_root) if eval_path else frozenset()
        opened = load_samples(path, columns=columns, image_root=image_root, limit=limit)
        fixed = write_fixed(opened, fix, rules=rules or CheckRules(), overlap=overlap)
        print(f"{fixed.num_clean} clean rows: {fixed.clean}")
        print(f"{fixed.num_rejected} rejected rows with reasons: {fixed.rejects}")
        if fixed.note:
            print(fixed.note)
    return EXIT_CLEAN if report.ok else EXIT_DEFECTS


def print_report(report: Report, *, num_shown: int = 5) -> None:
    """The report for a person: format, one sample, counts by kind, the first rows of each kind."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(f"{report.path}: {report.convention or 'not readable'}", style="bold"))
    if report.first_sample:
        console.print(Text(f"first sample:\n{report.first_sample}\n"))
    console.print(Text(f"{report.num_rows} rows, {report.num_clean} clean"))
    if report.ok:
        return
    table = Table("kind", "rows", "first messages")
    for kind, count in sorted(report.counts.items(), key=lambda item: -item[1]):
        shown = [finding.message for finding in report.findings if finding.kind == kind][:num_shown]
        if count > len(shown):
            shown.append(f"... and {count - len(shown)} more")
        table.add_row(kind, str(count), Text("\n".join(shown)))
    console.print(table)
