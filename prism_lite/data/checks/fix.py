"""`data check --fix OUT`: the clean rows in OUT, the others with reasons in OUT's rejects file."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from prism_lite.data.checks.check import check_row
from prism_lite.data.checks.rules import CheckRules
from prism_lite.data.formats.base import FileError, RowError
from prism_lite.data.formats.load import SampleFile
from prism_lite.types import Sample

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Fixed:
    """Files that were written.

    Attributes:
        clean, rejects: their paths; rejects are JSON lines of place, kinds, messages and row.
        num_clean, num_rejected: numbers of their rows.
        note: what the user must know to use the clean file, or "".
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
    source, whose schema it keeps. Both files appear only when they are complete.

    Raises:
        ValueError: OUT exists or has another suffix; the source is broken before its end.
    """
    out = Path(out)
    rejects = out.with_name(f"{out.stem}.rejects.jsonl")
    _check_out(opened, out, rejects)
    out.parent.mkdir(parents=True, exist_ok=True)
    clean_part, rejects_part = (path.with_name(path.name + ".part") for path in (out, rejects))
    counts: Counter[str] = Counter()
    try:
        with rejects_part.open("w", encoding="utf-8") as stream:
            rows = _clean_rows(opened, stream, counts, rules, overlap)
            if out.suffix == ".parquet":
                _write_parquet(rows, clean_part, opened.source.files[0])
            else:
                with clean_part.open("w", encoding="utf-8") as lines:
                    lines.writelines(_json_line(row) for row in rows)
    except FileError as error:
        clean_part.unlink(missing_ok=True)
        rejects_part.unlink(missing_ok=True)
        raise ValueError(f"nothing was written to {out}: {error}") from error
    os.replace(clean_part, out)
    os.replace(rejects_part, rejects)
    note = _note(opened, out) if counts["with_path"] else ""
    return Fixed(out, rejects, counts["clean"], counts["rejected"], note)


def _clean_rows(
    opened: SampleFile,
    rejects: TextIO,
    counts: Counter[str],
    rules: CheckRules,
    overlap: frozenset[bytes],
) -> Iterator[dict[str, Any]]:
    """Yield the clean rows as stored; write the others to `rejects`, and count both."""
    first_places: dict[bytes, str] = {}
    for row, sample in opened.rows():
        findings = check_row(sample, rules, first_places, overlap=overlap)
        if isinstance(sample, Sample) and isinstance(row.value, dict) and not findings:
            counts["clean"] += 1
            counts["with_path"] += any(isinstance(p.source, Path) for p in sample.pictures)
            yield row.value
            continue
        counts["rejected"] += 1
        line = {
            "place": row.place,
            "kinds": [finding.kind for finding in findings],
            "messages": [finding.message for finding in findings],
            "row": None if isinstance(row.value, RowError) else row.value,
        }
        rejects.write(_json_line(line))


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path, source: Path) -> None:
    """Write rows in batches, with the schema of a source file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(source)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _check_out(opened: SampleFile, out: Path, rejects: Path) -> None:
    for path in (out, rejects):
        if path.exists():
            raise ValueError(f"{path} exists; choose another --fix file or move it away.")
    suffixes = {path.suffix.lower() for path in opened.source.files}
    if out.suffix != ".jsonl" and (out.suffix != ".parquet" or suffixes != {".parquet"}):
        raise ValueError(
            f"--fix {out}: write .jsonl, or .parquet where the source is parquet (here "
            f"{' '.join(sorted(suffixes)) or 'a hub id'})."
        )


def _note(opened: SampleFile, out: Path) -> str:
    folders = {path.parent.resolve() for path in opened.source.files}
    if folders == {out.parent.resolve()}:
        return ""
    return (
        "Relative picture paths were kept: set image_root to "
        f"{':'.join(sorted(map(str, folders))) or 'their folder'} for the new file."
    )


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(_to_json(row), ensure_ascii=False) + "\n"


def _to_json(value: Any) -> Any:
    """Convert a stored value: bytes become base64, a picture's under the name the loader reads."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            value = {"base64" if name == "bytes" else name: item for name, item in value.items()}
            value.pop("path", None)
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
