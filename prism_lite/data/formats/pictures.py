"""Pictures as data files refer to them: path, file://, base64, data URI, bytes, PIL image."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from prism_lite.data.formats.base import RowError
from prism_lite.pixels import read_rgb
from prism_lite.types import Picture

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0A")
_MAX_PATH_CHARACTERS = 1024


def picture_folders(files: Sequence[Path], image_root: str | None) -> tuple[Path, ...]:
    """Return where relative paths start: `image_root` (":" joins several), the files' folders, here."""
    roots = [Path(root) for root in image_root.split(":")] if image_root else []
    return (*roots, *dict.fromkeys(path.parent for path in files), Path.cwd())


def to_picture(reference: Any, folders: Sequence[Path]) -> Picture:
    """Return the picture that a reference names; its pixels stay unread.

    Args:
        reference: path, `file://` address, base64, data URI, bytes, PIL image, or a dict with
            `bytes`/`path`/`url`/`base64`/`image`/`image_url` (and Qwen's min_pixels, max_pixels).
        folders: where relative paths are looked up, in order.

    Raises:
        RowError: missing file, a URL, or a reference of another type.
    """
    if isinstance(reference, dict):
        return _from_dict(reference, folders)
    if isinstance(reference, Image.Image):
        image = read_rgb(reference, "in memory")
        return Picture(_hash(image.tobytes() + str(image.size).encode()), image)
    if isinstance(reference, bytes | bytearray):
        return _from_bytes(bytes(reference))
    if isinstance(reference, str | Path):
        return _from_text(str(reference).strip(), folders)
    raise RowError(
        "picture_type",
        f"a picture is a {type(reference).__name__}; expected a path, bytes, base64 or a data URI.",
    )


def is_base64(text: str) -> bool:
    """Return whether a text is an encoded picture: a data URI, or base64 of a known format."""
    if text.startswith("data:image"):
        return True
    is_long = len(text) > 60 and text.startswith(_BASE64_STARTS)
    return is_long and bool(_BASE64.fullmatch(text))


def find_file(text: str, folders: Sequence[Path]) -> Path | None:
    """Return the file that a path names, absolute or in one of these folders, or None."""
    path = Path(text.removeprefix("file://"))
    candidates = [path] if path.is_absolute() else [folder / path for folder in folders]
    # Unlike Path.is_file, os.path.isfile is False for a name that is too long.
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _from_bytes(content: bytes) -> Picture:
    if not content:
        raise RowError("empty_picture", "a picture has no bytes; write the row again with it.")
    return Picture(_hash(content), content)


def _from_dict(reference: dict[str, Any], folders: Sequence[Path]) -> Picture:
    for key in ("bytes", "image", "path", "url", "image_url", "base64"):
        value = reference.get(key)
        if value is None or value == "":
            continue
        if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
            picture = _from_base64(value)
        else:
            picture = to_picture(value, folders)
        limits = {name: reference.get(name) for name in ("min_pixels", "max_pixels")}
        return replace(picture, **limits) if any(limits.values()) else picture
    raise RowError(
        "picture_type",
        f"a picture has the fields {sorted(reference)} but none of bytes, path, url, base64 is "
        "filled.",
    )


def _from_text(text: str, folders: Sequence[Path]) -> Picture:
    if not text:
        raise RowError("empty_picture", "a picture reference is empty; leave the list empty.")
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        if not comma or ";base64" not in head:
            raise RowError("bad_data_uri", "a data URI must read data:image/TYPE;base64,...")
        return _from_base64(body)
    if text.startswith(("http://", "https://")):
        message = f"picture {text[:120]} is a URL; download it beforehand and give its path."
        raise RowError("url_picture", message)
    if text.startswith("file://"):
        text = urllib.parse.unquote(text.removeprefix("file://"))
    elif is_base64(text):
        return _from_base64(text)
    elif len(text) > _MAX_PATH_CHARACTERS:
        if _BASE64.fullmatch(text):
            return _from_base64(text)
        message = f"a picture reference of {len(text)} characters is neither a path nor base64."
        raise RowError("bad_path", message)
    return _from_path(text, folders)


def _from_base64(text: str) -> Picture:
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        message = f"a picture's base64 is broken ({error}); encode it again."
        raise RowError("bad_base64", message) from error
    return _from_bytes(content)


def _from_path(text: str, folders: Sequence[Path]) -> Picture:
    if "\0" in text:
        raise RowError("bad_path", "a picture path holds a zero byte.")
    path = find_file(text, folders)
    if path is not None:
        return Picture(str(path), path)
    places = ", ".join(map(str, folders)) or "nowhere"
    where = "" if Path(text).is_absolute() else f" (looked in {places}); set image_root"
    raise RowError("missing_picture", f"picture {text} does not exist{where}.")
