"""`prism-lite data check PATH`: every defect of a data file before step 0, with row numbers.

A row is clean or it is not: training refuses or skips exactly the rows named here. `--fix OUT` writes
the clean rows to OUT and the others, with their reasons, beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prism_lite.data.checks.first_places import FirstPlaces
from prism_lite.data.checks.rules import CheckRules, defects_of, prompt_key, row_key
from prism_lite.data.formats.base import FileError, RawRow, RowError
from prism_lite.data.formats.load import load_samples, render_sample
from prism_lite.types import Sample

__all__ = [
    "CheckRules",
    "Finding",
    "Report",
    "check",
    "clean_samples",
    "examine",
    "overlap_keys",
]

MAX_KEPT_PER_KIND = 200  # findings with text; the counts are exact


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        kind: fixed name ("picture_count").
        row: number in its file from 1; 0 for the file as a whole.
        message: one sentence with file, row and how to mend it.
        file: path or hub id of that file.
    """

    kind: str
    row: int
    message: str
    file: str = ""


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        path: as given.
        convention: detected format, "" where the file could not be opened.
        num_rows, num_clean: all rows and those without a finding.
        counts: findings by kind; a row may have several.
        findings: in file order, at most MAX_KEPT_PER_KIND of a kind.
        first_sample: rendered, "" where no row is readable.
    """

    path: str
    convention: str
    num_rows: int
    num_clean: int
    counts: Mapping[str, int]
    findings: tuple[Finding, ...] = field(repr=False)
    first_sample: str = field(default="", repr=False)

    @property
    def ok(self) -> bool:
        return not self.counts


def check(
    path: str | Path,
    *,
    rules: CheckRules | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    eval_path: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """Read every row of a file and report its defects; never raises for what the file holds.

    Args:
        path: as for `load_samples`.
        rules: limits and the stage whose fields are demanded.
        columns, image_root, limit: as for `load_samples`.
        eval_path: rows that ask the same of the same pictures as one of this file are reported.

    Raises:
        ValueError: the evaluation file or the column map cannot be used.
    """
    overlap = overlap_keys(eval_path, image_root=image_root) if eval_path else frozenset()
    try:
        opened = load_samples(path, columns=columns, image_root=image_root, limit=limit)
    except FileError as error:
        return _file_report(str(path), error)
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    num_rows = num_clean = 0
    first_sample = ""
    try:
        for _, sample, found in examine(opened.rows(), rules or CheckRules(), overlap=overlap):
            num_rows += 1
            num_clean += not found
            if sample and not first_sample:
                first_sample = render_sample(sample)
            for finding in found:
                counts[finding.kind] += 1
                if counts[finding.kind] <= MAX_KEPT_PER_KIND:
                    findings.append(finding)
    except FileError as error:  # broken further down
        counts[error.kind] += 1
        findings.append(Finding(error.kind, 0, str(error)))
    return Report(
        str(path), opened.convention, num_rows, num_clean, counts, tuple(findings), first_sample
    )


def _file_report(path: str, error: FileError) -> Report:
    finding = Finding(error.kind, 0, str(error))
    return Report(path, "", 0, 0, {error.kind: 1}, (finding,))


def examine(
    stored: Iterable[tuple[RawRow, Sample | RowError]],
    rules: CheckRules,
    *,
    overlap: frozenset[bytes] = frozenset(),
) -> Iterator[tuple[RawRow, Sample | None, list[Finding]]]:
    """Every row (of `SampleFile.rows`) with its sample and its findings; clean rows have none.

    Raises:
        FileError: the file is broken from here on.
    """
    rows, ids = FirstPlaces(), FirstPlaces()
    for row, sample in stored:
        if isinstance(sample, RowError):
            yield row, None, [Finding(sample.kind, row.number, str(sample), row.file)]
            continue
        found = [
            Finding(kind, row.number, f"{row.place}: {message}", row.file)
            for kind, message in defects_of(sample, rules)
        ]
        earlier = rows.first(row_key(sample), row.place)
        if earlier != row.place:
            message = f"{row.place}: the same as {earlier}; drop one of the two."
            found.append(Finding("duplicate_row", row.number, message, row.file))
        elif sample.id != str(row.number):
            first = ids.first(sample.id.encode("utf-8", "surrogatepass"), row.place)
            if first != row.place:
                message = f"{row.place}: id {sample.id!r} is that of {first}; ids must differ."
                found.append(Finding("duplicate_id", row.number, message, row.file))
        if overlap and prompt_key(sample) in overlap:
            message = f"{row.place}: the same question and pictures as an evaluation row; drop it."
            found.append(Finding("eval_overlap", row.number, message, row.file))
        yield row, sample, found


def clean_samples(
    stored: Iterable[tuple[RawRow, Sample | RowError]],
    rules: CheckRules,
    *,
    on_bad_row: Literal["error", "skip"] = "error",
) -> tuple[list[Sample], list[Finding]]:
    """The samples that training may use, and the first finding of each of the other rows.

    Args:
        stored: as for `examine`.
        on_bad_row: "error" raises the first finding.

    Raises:
        ValueError: the first finding, where bad rows are errors; or the file breaks off.
    """
    samples, skipped = [], []
    for _, sample, found in examine(stored, rules):
        if sample is not None and not found:
            samples.append(sample)
        elif on_bad_row == "error":
            raise RowError(found[0].kind, found[0].message)
        else:
            skipped.append(found[0])
    return samples, skipped


def overlap_keys(eval_path: str | Path, *, image_root: str | None = None) -> frozenset[bytes]:
    """Keys of the evaluation rows that training rows must not share."""
    return frozenset(
        prompt_key(sample) for sample in load_samples(eval_path, image_root=image_root)
    )
