"""Load samples from any supported data file: `load_samples("train.jsonl")`.

The convention is found from the first row's field names and printed with one rendered sample; every
row must follow it. Files stream, so their size does not matter. A bad row is an error that names
file and row, or is skipped and counted where the caller says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prism_lite.data.formats.base import FileError, RawRow, RowError, Source
from prism_lite.data.formats.build import to_sample
from prism_lite.data.formats.detect import CANONICAL_NAMES, detect
from prism_lite.data.formats.files import find_source, iter_rows
from prism_lite.data.formats.llama_factory import Entry, find_entry
from prism_lite.data.formats.pictures import PictureRules, roots_for
from prism_lite.types import Sample

__all__ = ["FileError", "RowError", "SampleFile", "load_samples", "render_sample"]

_MAX_SHOWN_CHARACTERS = 600


@dataclass(frozen=True)
class SampleFile:
    """An opened data file; iterate it for its samples, as often as wanted.

    Attributes:
        name: the path or id as given.
        convention: the detected format (see `formats_detect.detect`), or "columns".
        on_bad_row: "error" raises at the first bad row, "skip" counts it in `skipped`.
        skipped: bad rows of the latest iteration, by kind.
        skipped_messages: the first hundred of their messages.
    """

    name: str
    convention: str
    source: Source = field(repr=False)
    rules: PictureRules = field(repr=False)
    columns: Mapping[str, str] | None = None
    entry: Entry | None = field(default=None, repr=False)
    on_bad_row: Literal["error", "skip"] = "error"
    skipped: Counter[str] = field(default_factory=Counter, compare=False)
    skipped_messages: list[str] = field(default_factory=list, compare=False)

    def __iter__(self) -> Iterator[Sample]:
        self.skipped.clear()
        self.skipped_messages.clear()
        for _, sample in self.rows():
            if isinstance(sample, Sample):
                yield sample
                continue
            if self.on_bad_row == "error":
                raise sample
            self.skipped[sample.kind] += 1
            if len(self.skipped_messages) < 100:
                self.skipped_messages.append(str(sample))

    def rows(self) -> Iterator[tuple[RawRow, Sample | RowError]]:
        """Every row with its sample or its error; raises FileError only."""
        for row in iter_rows(self.source):
            try:
                yield row, self._sample(row)
            except RowError as error:
                yield row, error

    def describe(self) -> str:
        """The guess and one rendered sample, to be printed before anything is trained on it."""
        head = f"{self.name}: {self.convention} format"
        for _, sample in self.rows():
            if isinstance(sample, Sample):
                return f"{head}, first sample:\n{render_sample(sample)}"
        return f"{head}, no readable sample"

    def _sample(self, row: RawRow) -> Sample:
        stored = row.value
        if isinstance(stored, RowError):
            raise stored
        value: Mapping[str, Any] = stored
        if self.entry:
            value = self.entry.rename(value)
        if self.columns:
            value = _mapped(value, self.columns, row.place)
        else:
            convention = detect(value)
            if convention != self.convention:
                raise RowError(
                    "mixed_formats",
                    f"{row.place}: looks like {convention or 'no known format'} in a file of "
                    f"{self.convention} rows; split the file or mend the row's fields "
                    f"({_names(value)}).",
                )
        return to_sample(value, self.convention, stored_as=row, rules=self.rules)


def load_samples(
    path_or_id: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    limit: int | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    allow_urls: bool = False,
) -> SampleFile:
    """Open a data file, a folder, a registry entry or a hub id.

    Args:
        path_or_id: .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder of them,
            `dataset_info.json:NAME`, or `owner/name[/file]:subset@split#N` of the Hugging Face hub.
        columns: {ours: theirs} for files of no known format; ours are prompt, answer, images,
            system, demonstration, teacher, student, accepted, choices, id.
        image_root: folder of relative picture paths; several joined by ":".
        limit: rows to take at most.
        on_bad_row: raise at a bad row, or skip and count it.
        allow_urls: fetch pictures that are URLs.

    Returns:
        The opened file; its rows are read when it is iterated.

    Raises:
        ValueError: the file is missing, empty, refused (pickle), broken, or its format is unknown.
    """
    name = str(path_or_id)
    if columns:
        _check_columns(columns)
    entry = find_entry(name)
    source = find_source(entry.path_or_id if entry else name)
    if limit is not None:
        least = limit if source.limit is None else min(limit, source.limit)
        source = replace(source, limit=least)
    roots = roots_for(source.files, image_root)
    if entry:
        roots = (entry.folder, *roots)
    rules = PictureRules(roots, allow_urls=allow_urls)
    convention = "columns" if columns else _convention(source, entry)
    return SampleFile(name, convention, source, rules, columns, entry, on_bad_row)


def _check_columns(columns: Mapping[str, str]) -> None:
    unknown = sorted(set(columns) - set(CANONICAL_NAMES))
    if unknown or "prompt" not in columns:
        raise ValueError(
            f"column map {dict(columns)}: "
            + (f"unknown names {unknown}" if unknown else "it does not name the prompt column")
            + f"; map some of {', '.join(CANONICAL_NAMES)} to column names of the file."
        )


def _convention(source: Source, entry: Entry | None) -> str:
    """The format of the first readable row."""
    first_error: RowError | None = None
    for row in iter_rows(source):
        if isinstance(row.value, RowError):
            first_error = first_error or row.value
            continue
        value = entry.rename(row.value) if entry else row.value
        found = detect(value)
        if found is None:
            raise FileError(
                "unknown_format",
                f"{row.place}: no known format has the fields {_names(value)}; give a column map "
                "such as columns: {prompt: question, answer: label, images: picture}.",
            )
        return found
    if first_error:
        raise FileError(
            "no_readable_row", f"{source.name} has no readable row; the first: {first_error}"
        )
    raise FileError("empty_file", f"{source.name} holds no rows; check how it was written.")


def _mapped(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise RowError(
            "missing_column",
            f"{place}: no column {', '.join(map(repr, missing))}; the row has {_names(row)}.",
        )
    return {ours: row[theirs] for ours, theirs in columns.items()}


def _names(row: Mapping[str, Any]) -> str:
    return (
        ", ".join(str(name) for name, value in list(row.items())[:20] if value is not None)
        or "none"
    )


def render_sample(sample: Sample) -> str:
    """A sample as text: turns, pictures and whatever is known of its completion."""
    lines = [f"[{turn.role}] {_short(turn.text)}" for turn in sample.turns]
    lines += [f"[picture {i}] {_short(picture.id)}" for i, picture in enumerate(sample.pictures, 1)]
    for name in ("demonstration", "teacher", "student", "answer"):
        text = getattr(sample, name)
        if text is not None:
            lines.append(f"[{name}] {_short(text)}")
    if sample.choices:
        lines.append(f"[choices] {_short(' | '.join(sample.choices))}")
    return "\n".join(lines)


def _short(text: str) -> str:
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]} ... ({len(text)} characters)"
