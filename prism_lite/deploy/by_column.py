"""Held-out figures of a finished run for the rows of each value of a column of its data file.

Reads what the evaluations of the run have stored; no model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_lite.data.task import load_heldout
from prism_lite.files import read_json
from prism_lite.recipe import read_run
from prism_lite.stages.evaluate import evaluated_samples, interval95
from prism_lite.types import EVALUATED_STAGES

_FIGURES = ("accuracy", "caption_accuracy", "think_validity", "format_rate")


def figures_by_column(run: Path, column: str) -> list[dict[str, Any]]:
    """Return the figures of every evaluated stage for each value of a column.

    Args:
        run: the run folder.
        column: of the file data.heldout.

    Returns:
        One record for each stage and value, in order: stage, value, n (prompts), and [mean, low, high] of
        each figure (95 % intervals, the unit is the prompt).

    Raises:
        ValueError: nothing was evaluated, the rows have no such column, or the file has changed.
    """
    config = read_run(run)
    rates = {
        stage: read_json(path)
        for stage in EVALUATED_STAGES
        if (path := run / "evaluations" / f"{stage}.json").is_file()
    }
    if not rates:
        raise ValueError(f"--run {run}: no stage was evaluated; set data.heldout and eval.stages.")
    samples = evaluated_samples(load_heldout(config), config)
    columns = sorted({name for sample in samples for name in sample.columns})
    if column not in columns:
        raise ValueError(
            f"--by {column}: the held-out rows have no such column; they have "
            f"{', '.join(columns) or 'none, as they are not from a file'}."
        )
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(str(sample.columns.get(column)), []).append(row)
    records = []
    for stage, of_stage in rates.items():
        num_evaluated = len(of_stage["format_rate"])
        if num_evaluated != len(samples):
            raise ValueError(
                f"{config.data.heldout}: stage {stage} was evaluated on {num_evaluated} rows, "
                f"now there are {len(samples)}. The file has changed, or rows were skipped: give the file "
                "as it was, without defective rows, or evaluate again with a new --out."
            )
        for value, rows in sorted(rows_of.items()):
            record: dict[str, Any] = {"stage": stage, "value": value, "n": len(rows)}
            for name in _FIGURES:
                if name in of_stage:
                    of_value = [of_stage[name][row] for row in rows]
                    record[name] = [sum(of_value) / len(of_value), *interval95(of_value)]
            records.append(record)
    return records
