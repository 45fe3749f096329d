"""Which columns of a row hold its pictures, and which hold pictures that were not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from prism_lite.data.formats.base import FieldsOfRow, RowError, as_list, is_empty, parse_cell
from prism_lite.data.formats.names import numbered_pictures, picture_name_kind, picture_rank
from prism_lite.data.formats.pictures import find_file, is_base64, to_picture
from prism_lite.types import Picture

_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jfif",
)  # fmt: skip
_STARTS = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6",
)  # fmt: skip
_REFERENCE_KEYS = ("bytes", "path", "url", "base64", "image", "image_url")
_MAX_DEPTH = 4


def listed_pictures(row: FieldsOfRow, first: str = "decoded_image") -> list[Any]:
    """Return references to a row's pictures from its columns, in order; [] where it has none.

    image_1, image_2, ... come in order. Of several columns with the same pictures (a path beside the
    picture itself) the embedded one is read.

    Args:
        first: column that is preferred to all others.
    """
    if is_empty(row.peek(first)):
        numbered = [name for name in numbered_pictures(row) if not is_empty(row.peek(name))]
        if numbered:
            if not numbered[0].endswith(("1", "0")) and not is_empty(row.peek("image")):
                numbered.insert(0, "image")  # image, image_2, image_3
            return [reference for name in numbered for reference in as_list(parse_cell(row[name]))]
    names = [name for name in row if _is_read(name, row.peek(name))]
    if not names:
        return []

    def order(name: str) -> tuple[bool, bool, int]:
        return name != first, not _is_embedded(row.peek(name)), picture_rank(name)

    return as_list(parse_cell(row[min(names, key=order)]))


def _is_read(name: str, value: Any) -> bool:
    kind = picture_name_kind(name)
    if is_empty(value) or not kind:
        return False
    return kind == "always" or any(_references(value, is_named=True))


def _is_embedded(value: Any) -> bool:
    value = parse_cell(value)
    if isinstance(value, list):
        return bool(value) and _is_embedded(value[0])
    if isinstance(value, Mapping):
        return any(not is_empty(value.get(key)) for key in ("bytes", "base64"))
    return isinstance(value, bytes | Image.Image) or (isinstance(value, str) and is_base64(value))


def _references(value: Any, depth: int = 0, *, is_named: bool = False) -> Iterator[Any]:
    """Yield what looks like a picture inside a value: bytes, base64, paths and URLs of pictures.

    Args:
        is_named: the column is named as one of pictures: any URL counts.
    """
    value = parse_cell(value)
    if isinstance(value, bytes | bytearray):
        if bytes(value[:4]).startswith(_STARTS):
            yield bytes(value)
    elif isinstance(value, Image.Image):
        yield value
    elif isinstance(value, str):
        text = value.strip()
        is_url = text.startswith(("http://", "https://"))
        name = text.split("?")[0] if is_url else text
        is_path = name.lower().endswith(_SUFFIXES) and "\n" not in text and len(text) < 1024
        if is_base64(text) or is_path or (is_url and is_named):
            yield text
    elif depth < _MAX_DEPTH and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(item, depth + 1, is_named=is_named or key in _REFERENCE_KEYS)
    elif depth < _MAX_DEPTH and isinstance(value, list | tuple):
        for item in value[:8]:
            yield from _references(item, depth + 1, is_named=is_named)


def holds_picture(name: str, value: Any) -> bool:
    """Return whether a column seems to hold pictures, by its name and value."""
    return any(_references(value, is_named=bool(picture_name_kind(name))))


def check_unread(row: FieldsOfRow, pictures: Sequence[Picture], folders: Sequence[Path]) -> None:
    """Refuse a row whose unread columns hold pictures that it would be trained without.

    A path beside embedded pictures, or to a picture that the row has, may be left out.

    Raises:
        RowError: names the column.
    """
    for name in row.unread():
        for reference in _references(row.peek(name), is_named=bool(picture_name_kind(name))):
            if not pictures:
                problem = "holds a picture that is not read, and the row has none"
            elif _is_another(reference, pictures, folders):
                problem = "holds another picture, which is not read"
            else:
                continue
            raise RowError(
                "unread_picture",
                f"column {name} {problem}: list all pictures of a row in the column images, or name theirs "
                f"with data.columns='{{prompt: ..., images: {name}}}', or drop {name}.",
            )


def _is_another(reference: Any, pictures: Sequence[Picture], folders: Sequence[Path]) -> bool:
    are_files = all(isinstance(picture.source, Path) for picture in pictures)
    is_embedded = not isinstance(reference, str) or is_base64(reference)
    if is_embedded:
        if are_files:
            return False
        try:
            picture = to_picture(reference, folders)
        except RowError:
            return False
        return picture.id not in {known.id for known in pictures}
    path = find_file(reference, folders) if are_files else None
    if path is None:
        return False
    return not any(
        isinstance(known.source, Path)
        and (os.path.samefile(known.source, path) or known.source.read_bytes() == path.read_bytes())
        for known in pictures
    )
