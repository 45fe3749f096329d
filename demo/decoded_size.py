"""How large an upload becomes when it is decoded: a small file may hold gigabytes."""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

from prism_lite.data.formats.text import COMPRESSED

MAX_DECODED_BYTES = 200 * 2**20
_CHUNK = 1 << 20


def check_decoded_size(path: Path) -> None:
    """Check that a file holds at most MAX_DECODED_BYTES; a broken one is left to the reader.

    Raises:
        ValueError: it holds more.
    """
    if decoded_size(path) > MAX_DECODED_BYTES:
        raise ValueError(
            f"{path.name} holds more than {MAX_DECODED_BYTES >> 20} MiB when it is decoded: check it with "
            "`prism-lite data check PATH`."
        )


def decoded_size(path: Path) -> int:
    """Return the decoded size of a file, or of as much as is over MAX_DECODED_BYTES."""
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is not None:
        size = 0
        try:
            with opener(path, "rb") as stream:
                while size <= MAX_DECODED_BYTES and (chunk := stream.read(_CHUNK)):
                    size += len(chunk)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
            pass  # what is decoded so far counts
        return size
    if path.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            metadata = pyarrow.parquet.read_metadata(path)
        except (OSError, pyarrow.ArrowException):
            return 0
        return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return path.stat().st_size
