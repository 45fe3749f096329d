"""Data files read whole: each file once, its rows shared by the stages, its pictures decoded once.

A row that a stage would refuse (a malformed teacher, say) is an error or is left out here, before
anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import __version__ as pillow_version
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_lite.config import DataConfig
from prism_lite.data.checks.check import clean_samples
from prism_lite.data.checks.rules import CheckRules, Stage, picture_defects
from prism_lite.data.formats.base import RawRow, RowError
from prism_lite.data.formats.load import load_samples
from prism_lite.types import Picture, Sample

T = TypeVar("T")
StoredRow = tuple[RawRow, Sample | RowError]
SHOW_AFTER_S = 2.0
NUM_SHOWN = 3  # messages of left-out rows on the console; skipped.jsonl has them all


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out.

    Attributes:
        file: as `Sample.file`.
        row: number in that file, from 1.
        kind: fixed name of the defect, as `data check` reports it.
        message: one sentence with file, row and how to mend it.
    """

    file: str
    row: int
    kind: str
    message: str


@dataclass(frozen=True)
class StoredFile:
    """A data file in memory.

    Attributes:
        path: as given.
        convention: the detected format.
        rows: in order, each with its sample, or with what is wrong with it for any stage.
    """

    path: str
    convention: str
    rows: tuple[StoredRow, ...]


def read_file(
    data: DataConfig, path: str, *, console: Console | None = None, stamps: Path | None = None
) -> StoredFile:
    """Read a file and decode its pictures.

    Args:
        console: shows the progress of a file that takes longer than SHOW_AFTER_S.
        stamps: folder that remembers files whose pictures were all decoded before: as long as none
            has changed only their headers are read again.

    Raises:
        ValueError: the file cannot be read; or a row cannot, where data.on_bad_row is "error".
    """
    opened = load_samples(path, columns=data.columns or None, image_root=data.image_root)
    found = shown_if_slow(opened.rows(), f"reading {path}", console=console)
    # The sample has what is needed of the raw row.
    rows = [(dataclasses.replace(row, value={}), sample) for row, sample in _usable(found, data)]
    pictures = [p for _, sample in rows if isinstance(sample, Sample) for p in sample.pictures]
    stamp = stamps / _name_of(pictures) if stamps and pictures else None
    rules = CheckRules(decode_pictures=stamp is None or not stamp.exists())
    shown = shown_if_slow(rows, f"checking pictures of {path}", console=console, total=len(rows))
    checked = ((row, _with_pictures_checked(row, sample, rules)) for row, sample in shown)
    stored = StoredFile(path, opened.convention, tuple(_usable(checked, data)))
    kinds = {sample.kind for _, sample in stored.rows if isinstance(sample, RowError)}
    if stamp and "unreadable_picture" not in kinds:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    return stored


def _usable(rows: Iterable[StoredRow], data: DataConfig) -> Iterator[StoredRow]:
    """The rows as they are; the first bad one is raised where that is an error."""
    for row, sample in rows:
        if isinstance(sample, RowError) and data.on_bad_row == "error":
            raise sample
        yield row, sample


def _with_pictures_checked(
    row: RawRow, sample: Sample | RowError, rules: CheckRules
) -> Sample | RowError:
    if isinstance(sample, RowError):
        return sample
    defects = (defect for picture in sample.pictures for defect in picture_defects(picture, rules))
    kind, message = next(defects, ("", ""))
    return RowError(kind, f"{row.place}: {message}") if kind else sample


def _name_of(pictures: Sequence[Picture]) -> str:
    """Equal for the same pictures, unchanged in size and time of change, and the same decoder."""
    digest = hashlib.sha256(pillow_version.encode())
    for picture in pictures:
        name = picture.id
        if isinstance(picture.source, Path):
            stat = picture.source.stat()
            name = f"{picture.source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def rows_for(
    data: DataConfig, stored: StoredFile, stage: Stage
) -> tuple[tuple[Sample, ...], list[SkippedRow]]:
    """The rows that hold what a stage needs, and those left out; rows for other stages are passed.

    Raises:
        ValueError: the first bad row, where data.on_bad_row is "error".
    """
    needed = needed_by(stage)
    rules = CheckRules(stage=stage, rows_of_other_stages=True, check_pictures=False)
    samples, findings = clean_samples(stored.rows, rules, on_bad_row=data.on_bad_row)
    skipped = [SkippedRow(f.file, f.row, f.kind, f.message) for f in findings]
    return tuple(sample for sample in samples if getattr(sample, needed)), skipped


def needed_by(stage: Stage) -> str:
    """The field of a sample without which a stage has no use for it."""
    return {"sft": "demonstration", "warmup": "student", "align": "teacher"}.get(stage, "answer")


def describe_skipped(skipped: Sequence[SkippedRow]) -> str:
    """How many rows were left out, why, and the first of them in full."""
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(r.kind for r in skipped).most_common())
    shown = [f"  {row.message}" for row in skipped[:NUM_SHOWN]]
    if len(skipped) > NUM_SHOWN:
        shown.append(f"  ... and {len(skipped) - NUM_SHOWN} more")
    return "\n".join([f"skipped {len(skipped)} rows ({counts}):", *shown])


def shown_if_slow(
    items: Iterable[T], doing: str, *, console: Console | None, total: int | None = None
) -> Iterator[T]:
    """Go through items; from SHOW_AFTER_S on with a progress bar, or a count where no total is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    started_s, task = time.monotonic(), None
    try:
        for number, item in enumerate(items):
            if console and task is None and time.monotonic() - started_s > SHOW_AFTER_S:
                progress.start()
                task = progress.add_task(doing, total=total, completed=number)
            elif task is not None:
                progress.update(task, completed=number)
            yield item
    finally:
        if task is not None:
            progress.stop()
