"""`data check --fix OUT`: the clean rows in OUT, the others with their reasons in OUT's rejects
file.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_lite.data.checks.check import examine
from prism_lite.data.checks.rules import CheckRules
from prism_lite.data.formats.base import FileError, RowError
from prism_lite.data.formats.load import SampleFile

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Fixed:
    """What was written.

    Attributes:
        clean, rejects: the two files; rejects are JSON lines of place, kinds, messages and row.
        num_clean, num_rejected: their rows.
        note: what a person must know to use the clean file, or "".
    """

    clean: Path
    rejects: Path
    num_clean: int
    num_rejected: int
    note: str = ""


def write_fixed(
    opened: SampleFile,
    out: str | Path,
    *,
    rules: CheckRules,
    overlap: frozenset[bytes] = frozenset(),
) -> Fixed:
    """Write the clean rows as they were, and the rejected ones with their reasons.

    OUT is .jsonl for any source (embedded pictures become base64), or .parquet for a parquet
    source, whose schema it keeps. Both files appear only when they are whole.

    Raises:
        ValueError: OUT exists or is of another kind; the source breaks off before its end.
    """
    out = Path(out)
    rejects = out.with_name(f"{out.stem}.rejects.jsonl")
    _check_out(opened, out, rejects)
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = _ParquetRows(opened, _part(out)) if out.suffix == ".parquet" else _JsonRows(_part(out))
    num_clean = num_rejected = 0
    has_files = False
    try:
        with writer, _part(rejects).open("w", encoding="utf-8") as rejected:
            for row, sample, found in examine(opened.rows(), rules, overlap=overlap):
                if not found and isinstance(row.value, dict):
                    num_clean += 1
                    writer.write(row.value)
                    has_files |= (
                        any(isinstance(p.source, Path) for p in sample.pictures)
                        if sample
                        else False
                    )
                    continue
                num_rejected += 1
                line = {
                    "place": row.place,
                    "kinds": [finding.kind for finding in found],
                    "messages": [finding.message for finding in found],
                    "row": None if isinstance(row.value, RowError) else _plain(row.value),
                }
                rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
    except FileError as error:
        _part(out).unlink(missing_ok=True)
        _part(rejects).unlink(missing_ok=True)
        raise ValueError(f"nothing was written to {out}: {error}") from error
    os.replace(_part(out), out)
    os.replace(_part(rejects), rejects)
    return Fixed(out, rejects, num_clean, num_rejected, _note(opened, out) if has_files else "")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _check_out(opened: SampleFile, out: Path, rejects: Path) -> None:
    for path in (out, rejects):
        if path.exists():
            raise ValueError(f"{path} exists; choose another --fix file or move it away.")
    kinds = {path.suffix.lower() for path in opened.source.files}
    if out.suffix == ".jsonl" or (out.suffix == ".parquet" and kinds == {".parquet"}):
        return
    raise ValueError(
        f"--fix {out}: write .jsonl, or .parquet where the source is parquet (here "
        f"{' '.join(sorted(kinds)) or 'a hub id'})."
    )


def _note(opened: SampleFile, out: Path) -> str:
    folders = {path.parent.resolve() for path in opened.source.files}
    if folders == {out.parent.resolve()}:
        return ""
    return (
        "Relative picture paths were kept: set image_root to "
        f"{':'.join(sorted(map(str, folders))) or 'their folder'} for the new file."
    )


def _plain(value: Any) -> Any:
    """A stored value as JSON can hold it: bytes become base64 under the name the loader reads."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            rest = {
                name: _plain(one) for name, one in value.items() if name not in ("bytes", "path")
            }
            return {**rest, "base64": base64.b64encode(value["bytes"]).decode()}
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class _JsonRows:
    """Rows as JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _JsonRows:
        self.stream = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, row: dict[str, Any]) -> None:
        self.stream.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")


class _ParquetRows:
    """Rows in batches, with the schema of the first source file."""

    def __init__(self, opened: SampleFile, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.schema = pq.read_schema(opened.source.files[0])
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> _ParquetRows:
        import pyarrow.parquet as pq

        self.writer = pq.ParquetWriter(self.path, self.schema)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.writer.close()

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows.clear()
