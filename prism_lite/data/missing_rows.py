"""What is said of a data file that has no row for a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prism_lite.data.checks.rules import DataStage
from prism_lite.data.formats.base import Finding
from prism_lite.data.formats.files import find_source, iter_rows
from prism_lite.data.stage_rows import StoredFile, needed_by
from prism_lite.types import Sample


def no_rows_text(
    stored: StoredFile, stage: DataStage, skipped: Sequence[Finding], columns: Mapping[str, str]
) -> str:
    """Say that a file has no row for a stage, and what to do about it."""
    left_out = f" {len(skipped)} rows were skipped: {skipped[0].message}" if skipped else ""
    if stage == "sft" and any(isinstance(row, Sample) and row.teacher for row in stored.rows):
        return (
            f"{stored.path}: no row has a demonstration, which stage sft needs.{left_out} Let SFT imitate "
            f"the teacher's text{_as_demonstration(stored.path, columns)}; or give data.train a file with "
            f"demonstrations and data.align={stored.path}{_way_on(stage)}."
        )
    return (
        f"{stored.path}: no row has a {needed_by(stage)}, which stage {stage} needs.{left_out} "
        f"Detected format: {stored.convention}; name the columns with data.columns, check the file with "
        f"`prism-lite data check`{_way_on(stage)}."
    )


def _way_on(stage: DataStage) -> str:
    return f", or skip the stage with {stage}.steps=0" if stage in ("sft", "align", "rlvr") else ""


def _as_demonstration(path: str, columns: Mapping[str, str]) -> str:
    """Return the setting with which SFT reads the teacher's text, if its column is known."""
    if not columns:
        first = next((row.value for row in iter_rows(find_source(path))), None)
        names = first if isinstance(first, dict) else {}
        columns = {name: name for name in ("prompt", "teacher") if name in names}
    if "prompt" not in columns or "teacher" not in columns:
        return ", which `prism-lite teach --field both` also writes as the demonstration"
    named = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
    return f" with data.columns='{{{named}, demonstration: {columns['teacher']}}}'"
