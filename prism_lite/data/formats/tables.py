"""Rows of tables: parquet, arrow, data sets of the hub. Heavy imports stay inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, RawRow, Source, checked_row

_BATCH_ROWS = 64  # rows with embedded pictures are large


def arrow_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    for value in batch.to_pylist():
                        number += 1
                        yield RawRow(f"{path.name}, row {number}", number, value)
            return
        with pa.memory_map(str(path)) as mapped:
            for batch in _arrow_batches(mapped):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    for value in batch.slice(start, _BATCH_ROWS).to_pylist():
                        number += 1
                        yield RawRow(f"{path.name}, row {number}", number, value)
    except (pa.ArrowException, OSError) as error:
        raise FileError(
            "broken_table",
            f"{path}, after row {number}: cannot be read ({str(error).splitlines()[0]}); write or "
            "download it again.",
        ) from error


def _arrow_batches(mapped: Any) -> Iterator[Any]:
    """Record batches of an arrow file, in the stream form (as `datasets` saves) or the file
    form.
    """
    import pyarrow as pa

    if bytes(mapped.read(6)) == b"ARROW1":
        reader = pa.ipc.open_file(mapped)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
        return
    mapped.seek(0)
    yield from pa.ipc.open_stream(mapped)


def hub_rows(source: Source) -> Iterator[RawRow]:
    import datasets

    assert source.hub is not None
    hub = source.hub
    split = hub["split"] or "train"
    try:
        table: Any = datasets.load_dataset(
            hub["id"] or "", hub["subset"], split=split, data_files=hub["file"], streaming=True
        )
    except (
        OSError,
        ValueError,
    ) as error:  # what `datasets` raises for ids, subsets, splits, network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FileError(
            "hub",
            f"{source.name} cannot be loaded from the hub ({reason}); check the id, its subset and "
            "split, and the connection, or download the file and give its path.",
        ) from error
    for name, feature in (table.features or {}).items():
        # Bytes travel on: a picture is decoded when it is needed.
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    for number, value in enumerate(table, start=1):
        yield checked_row(f"{source.name}, row {number}", number, value)
