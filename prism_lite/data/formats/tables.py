"""Values of tables, numbered from 1: parquet, arrow, data sets of the hub. Heavy imports are local."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_lite.data.formats.base import FileError, Source

_BATCH_ROWS = 64  # rows with embedded pictures are large


def table_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a parquet or arrow file.

    Raises:
        FileError: the file is broken from here on.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(path):
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(
            "broken_table",
            f"{path}, after row {number}: cannot be read ({reason}); write or download it again.",
        ) from error


def _batches(path: Path) -> Iterator[Any]:
    """Yield record batches of at most _BATCH_ROWS rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS)
        return
    with pa.memory_map(str(path)) as mapped:
        if bytes(mapped.read(6)) == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:  # the stream form, in which `datasets` saves
            mapped.seek(0)
            batches = pa.ipc.open_stream(mapped)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


def hub_values(source: Source) -> Iterator[tuple[int, Any]]:
    """Stream the rows of a hub data set; pictures stay encoded.

    Raises:
        FileError: no such id, subset or split, or no connection.
    """
    import datasets

    assert source.hub is not None
    hub, split = source.hub, source.hub["split"] or "train"
    try:
        table: Any = datasets.load_dataset(
            hub["id"] or "", hub["subset"], split=split, data_files=hub["file"], streaming=True
        )
    except (OSError, ValueError) as error:  # what `datasets` raises for all of these
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FileError(
            "hub",
            f"{source.name} cannot be loaded from the hub ({reason}); check the id, its subset and "
            "split, and the connection, or download the file and give its path.",
        ) from error
    encoded = datasets.Image(decode=False)  # a picture is decoded when it is needed
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, encoded)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(encoded))
    yield from enumerate(table, start=1)
