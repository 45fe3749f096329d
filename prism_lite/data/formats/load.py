"""Load samples from any supported data file: `load_samples("train.jsonl")`.

The convention is detected from the field names of the first readable row; every row must follow it.
Files stream, so their size does not matter. An error names file and row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, Finding, RawRow, RowError, Source
from prism_lite.data.formats.build import to_sample
from prism_lite.data.formats.detect import detect
from prism_lite.data.formats.files import find_source, iter_rows
from prism_lite.data.formats.llama_factory import Entry, find_entry
from prism_lite.data.formats.pictures import picture_folders
from prism_lite.types import Sample

# Names that a column map may give to columns of the file.
_CANONICAL_NAMES = (
    "prompt", "answer", "images", "system", "demonstration", "teacher", "student", "accepted",
    "choices", "id",
)  # fmt: skip
_MAX_SHOWN_CHARACTERS = 600


@dataclass(frozen=True)
class SampleFile:
    """An opened data file; iterate over it for its samples, as often as needed.

    Attributes:
        convention: the detected format (see `detect`), or "columns".
        source: its files, or its id on the hub.
        folders: where relative picture paths are looked up, in order.
        columns: {ours: theirs}, or None.
        entry: the registry entry that names the file, or None.
    """

    convention: str
    source: Source = field(repr=False)
    folders: tuple[Path, ...] = field(repr=False)
    columns: Mapping[str, str] | None = None
    entry: Entry | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Sample]:
        for _, sample in self.rows():
            if isinstance(sample, Finding):
                raise RowError(sample.kind, sample.message)
            yield sample

    def rows(self) -> Iterator[tuple[RawRow, Sample | Finding]]:
        """Yield every row with its sample, or with what is wrong with it; raise FileError only."""
        for row in iter_rows(self.source):
            try:
                yield row, to_sample(self._fields(row), self.convention, row, self.folders)
            except RowError as error:
                yield row, Finding(row.file, row.number, error.kind, f"{row.place}: {error}")

    def _fields(self, row: RawRow) -> Mapping[str, Any]:
        """Return the fields of a row under the names that its convention uses."""
        fields = _stored_fields(row, self.entry)
        if self.columns:
            missing = [theirs for theirs in self.columns.values() if theirs not in fields]
            if missing:
                names = ", ".join(map(repr, missing))
                message = f"no column {names}; the row has {_names(fields)}."
                raise RowError("missing_column", message)
            return {ours: fields[theirs] for ours, theirs in self.columns.items()}
        convention = detect(fields)
        if convention != self.convention:
            raise RowError(
                "mixed_formats",
                f"looks like {convention or 'no known format'} in a file of {self.convention} "
                f"rows; split the file or fix the row's fields ({_names(fields)}).",
            )
        return fields


def load_samples(
    path_or_id: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    limit: int | None = None,
) -> SampleFile:
    """Open a data file, a folder, a registry entry or a hub id.

    Args:
        path_or_id: .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder of them,
            `dataset_info.json:NAME`, or `owner/name[/file]:subset@split#N` of the Hugging Face hub.
        columns: {ours: theirs} for files of no known format; ours are prompt, answer, images,
            system, demonstration, teacher, student, accepted, choices, id.
        image_root: folder of relative picture paths; several joined by ":".
        limit: number of rows to read at most.

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
        limit = limit if source.limit is None else min(limit, source.limit)
        source = replace(source, limit=limit)
    folders = picture_folders(source.files, image_root)
    if entry:
        folders = (entry.folder, *folders)
    convention = "columns" if columns else _convention(source, entry)
    return SampleFile(convention, source, folders, columns, entry)


def _check_columns(columns: Mapping[str, str]) -> None:
    unknown = sorted(set(columns) - set(_CANONICAL_NAMES))
    if unknown or "prompt" not in columns:
        problem = f"unknown names {unknown}" if unknown else "it does not name the prompt column"
        raise ValueError(
            f"column map {dict(columns)}: {problem}; map some of {', '.join(_CANONICAL_NAMES)} to "
            "column names of the file."
        )


def _convention(source: Source, entry: Entry | None) -> str:
    """Return the format of the first readable row."""
    first_error = ""
    for row in iter_rows(source):
        try:
            fields = _stored_fields(row, entry)
        except RowError as error:
            first_error = first_error or f"{row.place}: {error}"
            continue
        convention = detect(fields)
        if convention is None:
            raise FileError(
                "unknown_format",
                f"{row.place}: no known format has the fields {_names(fields)}; give a column map "
                "such as columns: {prompt: question, answer: label, images: picture}.",
            )
        return convention
    if first_error:
        message = f"{source.name} has no readable row; the first: {first_error}"
        raise FileError("no_readable_row", message)
    raise FileError("empty_file", f"{source.name} holds no rows; check how it was written.")


def _stored_fields(row: RawRow, entry: Entry | None) -> Mapping[str, Any]:
    if isinstance(row.value, RowError):
        raise row.value
    return entry.rename(row.value) if entry else row.value


def _names(fields: Mapping[str, Any]) -> str:
    names = [str(name) for name, value in list(fields.items())[:20] if value is not None]
    return ", ".join(names) or "none"


def render_sample(sample: Sample) -> str:
    """Render a sample as text: turns, pictures and whatever is known of its completion."""
    texts: list[tuple[str, str | None]] = [(turn.role, turn.text) for turn in sample.turns]
    texts += [(f"picture {i}", picture.id) for i, picture in enumerate(sample.pictures, start=1)]
    for name in ("demonstration", "teacher", "student", "answer"):
        texts.append((name, getattr(sample, name)))
    texts.append(("choices", " | ".join(sample.choices) or None))
    return "\n".join(f"[{name}] {_short(text)}" for name, text in texts if text is not None)


def _short(text: str) -> str:
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]} ... ({len(text)} characters)"
