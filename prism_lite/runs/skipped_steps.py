"""Steps that are left out because numbers were not finite: stages/<stage>/skipped_steps.jsonl.

A resumed run leaves them out again, so that it does not meet the same batch for ever.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from prism_lite.files import write_text
from prism_lite.types import Sample

FILE = "skipped_steps.jsonl"


def read_skipped(stage_folder: Path) -> dict[int, dict[str, Any]]:
    """Return the records of skipped steps by step; damaged lines are left out."""
    try:
        lines = (stage_folder / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    records: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records[record["step"]] = record
    return records


def add_skipped(stage_folder: Path, step: int, reason: str, batch: Sequence[Sample]) -> None:
    """Record a step with the reason and its batch: where each row is from, its text and its pictures."""
    rows = [
        {
            "prompt_id": sample.id,
            "source": sample.source,
            "prompt": [turn.text for turn in sample.turns],
            "pictures": [picture.id for picture in sample.pictures],
            "demonstration": sample.demonstration,
            "teacher": sample.teacher,
        }
        for sample in batch
    ]
    records = read_skipped(stage_folder)
    records[step] = {"step": step, "reason": reason, "batch": rows}
    ordered = (json.dumps(records[number], ensure_ascii=False) for number in sorted(records))
    stage_folder.mkdir(parents=True, exist_ok=True)
    write_text(stage_folder / FILE, "".join(f"{line}\n" for line in ordered))


def num_in_a_row(steps: Collection[int], last: int) -> int:
    """Return how many steps without a gap end with `last`."""
    first = last
    while first - 1 in steps:
        first -= 1
    return last - first + 1
