"""Load samples from any supported data file: `load_samples("train.jsonl")`.

The convention is detected from the field names of the first rows; every row must follow it. Files
stream, so their size does not matter. An error names file and row; what is not read is noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, Finding, RawRow, RowError, Source
from prism_lite.data.formats.build import read_row
from prism_lite.data.formats.detect import detect, fits
from prism_lite.data.formats.files import find_source, iter_rows
from prism_lite.data.formats.llama_factory import Entry, find_entry
from prism_lite.data.formats.names import plain_name, split_kind, split_of
from prism_lite.data.formats.pictures import picture_folders
from prism_lite.data.formats.propose import propose_columns
from prism_lite.types import Picture, Sample

# Names that a column map may give to columns of the file.
_CANONICAL_NAMES = (
    "prompt", "answer", "images", "system", "demonstration", "teacher", "student", "accepted",
    "choices", "id",
)  # fmt: skip
# A row without them, as of a held-out file, is for other stages: the column may be missing.
_OF_SOME_ROWS = ("demonstration", "teacher", "student")
_MAX_SHOWN_CHARACTERS = 600
_NUM_PEEKED_ROWS = 20


@dataclass
class Notes:
    """What the user should know of a file although it is not a defect; filled while its rows are read.

    Attributes:
        source: what was chosen of a folder, or "".
        split: the column that names the split of all rows and the split, or None.
        num_unread: rows in which a column holds something that is not read, by column.
        num_repeated_ids: rows whose id an earlier row has; the row's number was added to it.
    """

    source: str = ""
    split: tuple[str, str] | None = None
    num_unread: Counter[str] = field(default_factory=Counter)
    num_repeated_ids: int = 0

    def lines(self) -> list[str]:
        """Return a sentence for each."""
        lines = [self.source] if self.source else []
        if self.split and split_kind(self.split[1]) != "train":
            lines.append(f"all rows are of split {self.split[1]} (column {self.split[0]})")
        if self.num_unread:
            lines.append(f"not used: {', '.join(self.num_unread)}")
        if self.num_repeated_ids:
            lines.append(
                f"{plural_rows(self.num_repeated_ids)} with an id of an earlier row: file and row number "
                "identify a row"
            )
        return lines


@dataclass(frozen=True)
class SampleFile:
    """An opened data file; iterate over it for its samples, as often as needed.

    Attributes:
        convention: the detected format (see `detect`), or "columns".
        source: its files, or its id on the hub.
        folders: where relative picture paths are looked up, in order.
        columns: {ours: theirs}, or None.
        entry: the registry entry that names the file, or None.
        notes: complete after `rows` has been iterated.
    """

    convention: str
    source: Source = field(repr=False)
    folders: tuple[Path, ...] = field(repr=False)
    columns: Mapping[str, str] | None = None
    entry: Entry | None = field(default=None, repr=False)
    notes: Notes = field(default_factory=Notes, repr=False, compare=False)

    def __iter__(self) -> Iterator[Sample]:
        for _, sample in self.rows():
            if isinstance(sample, Finding):
                raise RowError(sample.kind, sample.message)
            yield sample

    def rows(self) -> Iterator[tuple[RawRow, Sample | Finding]]:
        """Yield every row with its sample, or with what is wrong with it.

        Raises:
            FileError: the file is broken from here on, or holds rows of several splits.
        """
        notes = self.notes
        notes.split = None
        notes.num_unread.clear()
        notes.num_repeated_ids = 0
        ids: set[str] = set()
        for row in iter_rows(self.source):
            split = split_of(row.value) if isinstance(row.value, dict) else None
            if self.source.split is not None:
                if split is None or split[1] != self.source.split:
                    continue
            elif split:
                _check_split(split, notes.split, row.place, self.source.name)
                notes.split = split
            try:
                sample, unread = read_row(self._fields(row), self.convention, row, self.folders)
            except RowError as error:
                yield row, Finding(row.file, row.number, error.kind, f"{row.place}: {error}")
                continue
            assert isinstance(row.value, dict)  # only such a row becomes a sample
            names = {plain_name(name): name for name in row.value}
            notes.num_unread.update(names.get(name, name) for name in unread)
            if sample.id != str(row.number):
                if sample.id in ids:
                    notes.num_repeated_ids += 1
                    sample = replace(sample, id=f"{sample.id}#{row.number}")
                ids.add(sample.id)
            yield row, sample

    def _fields(self, row: RawRow) -> Mapping[str, Any]:
        """Return the fields of a row under the names that its convention uses."""
        fields = _stored_fields(row, self.entry)
        if self.columns:
            missing = [
                theirs
                for ours, theirs in self.columns.items()
                if theirs not in fields and ours not in _OF_SOME_ROWS
            ]
            if missing:
                names = ", ".join(map(repr, missing))
                message = f"no column {names}; the row has {_names(fields)}."
                raise RowError("missing_column", message)
            mapped = {ours: fields.get(theirs) for ours, theirs in self.columns.items()}
            others = {n: v for n, v in fields.items() if n not in self.columns.values()}
            return _plain(others) | mapped
        fields = _plain(fields)
        if not fits(fields, self.convention):
            raise RowError(
                "mixed_formats",
                f"looks like {detect(fields) or 'no known format'} in a file of {self.convention} "
                f"rows; split the file or fix the row's fields ({_names(fields)}).",
            )
        return fields


def _check_split(
    split: tuple[str, str], before: tuple[str, str] | None, place: str, source: str
) -> None:
    """Compare the split that a column of a row names with that of the rows before it.

    Raises:
        FileError: they differ.
    """
    column, value = split
    first = before[1] if before else value
    if value != first:
        raise FileError(
            "mixed_splits",
            f"{place}: column {column} says {value}, rows before it {first}: splits are never mixed. Read "
            f"one of them as {source}@{first} or {source}@{value}, or drop the column.",
        )


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields under plain names; where two would get the same one, under their own."""
    counts = Counter(plain_name(name) for name in fields)
    return {
        plain_name(name) if counts[plain_name(name)] == 1 else name: value
        for name, value in fields.items()
    }


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
            system, demonstration, teacher, student, accepted, choices, id. Columns that are not named
            are read where their names are ordinary ones.
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
    return SampleFile(convention, source, folders, columns, entry, Notes(source.note))


def _check_columns(columns: Mapping[str, str]) -> None:
    unknown = sorted(set(columns) - set(_CANONICAL_NAMES))
    if unknown or "prompt" not in columns:
        problem = f"unknown names {unknown}" if unknown else "it does not name the prompt column"
        raise ValueError(
            f"column map {dict(columns)}: {problem}; map some of {', '.join(_CANONICAL_NAMES)} to "
            "column names of the file."
        )


def _convention(source: Source, entry: Entry | None) -> str:
    """Return the format of the first row that has one."""
    first_error, unknown = "", None
    for row in islice(iter_rows(source), _NUM_PEEKED_ROWS):
        try:
            fields = _plain(_stored_fields(row, entry))
        except RowError as error:
            first_error = first_error or f"{row.place}: {error}"
            continue
        convention = detect(fields) or detect(dict.fromkeys(fields, ""))
        if convention:
            return convention
        unknown = unknown or (row.place, fields)
    if unknown:
        place, fields = unknown
        raise FileError(
            "unknown_format",
            f"{place}: no known format has the fields {_names(fields)}; give a column map "
            f"such as data.columns='{propose_columns(fields)}'.",
        )
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


def plural_rows(num: int) -> str:
    """Return "1 row" or "2 rows"."""
    return f"{num:,} row{'s' * (num != 1)}"


def render_sample(sample: Sample) -> str:
    """Render a sample as text: turns with options, picture sizes, all accepted answers, completions."""
    texts: list[tuple[str, str | None]] = [(turn.role, turn.text) for turn in sample.turns]
    texts += [(f"picture {i}", _described(picture)) for i, picture in enumerate(sample.pictures, 1)]
    texts += [
        (name, getattr(sample, name)) for name in ("demonstration", "teacher", "student", "answer")
    ]
    texts += [(f"teacher {i}", text) for i, text in enumerate(sample.other_teachers, start=2)]
    texts += [("also accepted", text) for text in sample.accepted]
    texts.append(("choices", " | ".join(sample.choices) or None))
    return "\n".join(f"[{name}] {_short(text)}" for name, text in texts if text is not None)


def _described(picture: Picture) -> str:
    """Return a picture's name and size, or what is wrong with it."""
    try:
        width, height = picture.size
    except ValueError as error:
        return str(error)
    name = picture.id if isinstance(picture.source, Path) else "embedded"
    return f"{name}, {width} x {height} pixels"


def _short(text: str) -> str:
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]} ... ({len(text)} characters)"
