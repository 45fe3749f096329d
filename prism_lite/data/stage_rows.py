"""Rows of data files for each stage: a file is read once, its pictures are decoded once.

A row that a stage would refuse (a malformed teacher completion, for example) is an error or is left
out here, before anything is trained.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import __version__ as pillow_version
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_lite.config import DataConfig
from prism_lite.data.checks.boxes import ask_for_boxes
from prism_lite.data.checks.check import check_row
from prism_lite.data.checks.rules import (
    NEEDED_FIELDS,
    CheckRules,
    DataStage,
    is_read_by,
    picture_defects,
)
from prism_lite.data.formats.base import Finding, RowError
from prism_lite.data.formats.load import load_samples, plural_rows
from prism_lite.types import Picture, Sample

_NUM_SHOWN = 3  # messages of left-out rows on the console; skipped.jsonl has them all


@dataclass(frozen=True)
class StoredFile:
    """A data file in memory.

    Attributes:
        path: as given.
        convention: the detected format.
        rows: in order, samples, or what is wrong with the row for any stage.
        notes: what the user should know of the file although it is not a defect.
    """

    path: str
    convention: str
    rows: tuple[Sample | Finding, ...]
    notes: tuple[str, ...] = ()


def read_file(
    data: DataConfig, path: str, *, console: Console | None = None, stamps: Path | None = None
) -> StoredFile:
    """Read a file and decode its pictures.

    Args:
        data: the settings of the files, and whether a bad row is an error.
        path: as for `load_samples`.
        console: shows the progress.
        stamps: folder that remembers files whose pictures were all decoded before: as long as none
            has changed, only their headers are read again.

    Raises:
        ValueError: the file cannot be read; or a row cannot, where data.on_bad_row is "error".
    """
    opened = load_samples(path, columns=data.columns or None, image_root=data.image_root)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *bar, TimeElapsedColumn(), console=console, transient=True, disable=console is None
    ) as progress:
        stored = progress.track(opened.rows(), description=f"reading {path}")
        rows = [_raise_if_bad(sample, data) for _, sample in stored]
        pictures = [p for row in rows if isinstance(row, Sample) for p in row.pictures]
        stamp = stamps / _fingerprint(pictures) if stamps and pictures else None
        rules = CheckRules(decode_pictures=stamp is None or not stamp.exists())
        stored = progress.track(rows, description=f"checking pictures of {path}")
        rows = [_raise_if_bad(_check_pictures(row, rules), data) for row in stored]
    kinds = {row.kind for row in rows if isinstance(row, Finding)}
    if stamp and "unreadable_picture" not in kinds:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    notes = tuple(opened.notes.lines())
    if console:
        for note in notes:
            console.print(f"{path}: {note}", markup=False, highlight=False)
    return StoredFile(path, opened.convention, tuple(rows), notes)


def _raise_if_bad(row: Sample | Finding, data: DataConfig) -> Sample | Finding:
    if isinstance(row, Finding) and data.on_bad_row == "error":
        raise RowError(row.kind, row.message)
    return row


def _check_pictures(row: Sample | Finding, rules: CheckRules) -> Sample | Finding:
    """Return the row, or the first defect of its pictures."""
    if isinstance(row, Sample):
        for picture in row.pictures:
            for kind, message in picture_defects(picture, rules):
                return Finding(row.file, row.row, kind, f"{row.source}: {message}")
    return row


def _fingerprint(pictures: Sequence[Picture]) -> str:
    """Return a name that is equal for the same unchanged pictures and the same decoder."""
    digest = hashlib.sha256(pillow_version.encode())
    for picture in pictures:
        name = picture.id
        if isinstance(picture.source, Path):
            stat = picture.source.stat()
            name = f"{picture.source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def rows_for(
    data: DataConfig,
    stored: StoredFile,
    stage: DataStage,
    *,
    needed: str | None = None,
    also_read: tuple[str, ...] = (),
) -> tuple[tuple[Sample, ...], list[Finding]]:
    """Return the rows that hold the field `needed`, and the first defect of each bad row.

    Rows for other stages are in neither.

    Args:
        needed: default: the field that the stage needs.
        also_read: see `CheckRules`.

    Raises:
        ValueError: the first bad row, where data.on_bad_row is "error".
    """
    has_boxes = data.boxes.unit is not None or ask_for_boxes(stored.rows)
    rules = CheckRules(
        stage=stage,
        also_read=also_read,
        rows_of_other_stages=True,
        check_pictures=False,
        boxes=data.boxes if has_boxes else None,
    )
    needed = needed or needed_by(stage)
    samples, skipped = [], []
    first_places: dict[bytes, str] = {}
    for row in stored.rows:
        if isinstance(row, Sample) and not is_read_by(row, stage, needed):
            continue
        findings = check_row(row, rules, first_places)
        if findings:
            _raise_if_bad(findings[0], data)
            skipped.append(findings[0])
        elif isinstance(row, Sample):
            samples.append(row)
    return tuple(samples), skipped


def needed_by(stage: DataStage) -> str:
    """Return the field of a sample without which a stage has no use for it."""
    return "student" if stage == "warmup" else NEEDED_FIELDS[stage]


def describe_skipped(skipped: Sequence[Finding]) -> str:
    """Return how many rows were left out and why, and the first of them in full."""
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(r.kind for r in skipped).most_common())
    lines = [f"  {row.message}" for row in skipped[:_NUM_SHOWN]]
    if len(skipped) > _NUM_SHOWN:
        lines.append(f"  ... and {len(skipped) - _NUM_SHOWN} more")
    return "\n".join([f"skipped {plural_rows(len(skipped))} ({counts}):", *lines])
