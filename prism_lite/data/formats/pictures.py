"""Pictures as data files refer to them: path, file://, URL, base64, data URI, bytes, PIL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from prism_lite.data.formats.base import RowError
from prism_lite.types import Picture

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0A")
_MAX_PATH_CHARACTERS = 1024
_URL_TIMEOUT_S = 30


@dataclass(frozen=True)
class PictureRules:
    """How references are resolved.

    Attributes:
        roots: folders that relative paths are looked up in, in order.
        allow_urls: fetch http(s) references; off unless asked for.
        must_exist: refuse paths that name no file.
    """

    roots: tuple[Path, ...] = ()
    allow_urls: bool = False
    must_exist: bool = True


def to_picture(reference: Any, rules: PictureRules) -> Picture:
    """The picture that a reference names; its pixels stay unread.

    Args:
        reference: path, `file://` address, URL, base64, data URI, bytes, PIL image, or a dict with
            `bytes`/`path`/`url`/`base64`/`image`/`image_url` (and Qwen's min_pixels, max_pixels).
        rules: where to look.

    Raises:
        RowError: missing file, URL without permission, or a reference of no known kind.
    """
    if isinstance(reference, dict):
        return _from_dict(reference, rules)
    if isinstance(reference, Image.Image):
        pixels = reference.convert("RGB").tobytes()
        return Picture(_hash(pixels + str(reference.size).encode()), reference)
    if isinstance(reference, bytes | bytearray):
        return _from_bytes(bytes(reference))
    if isinstance(reference, Path):
        return _from_path(str(reference), rules)
    if isinstance(reference, str):
        return _from_text(reference.strip(), rules)
    raise RowError(
        "picture_type",
        f"a picture is a {type(reference).__name__}; expected a path, bytes, base64 or a data URI.",
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _from_bytes(content: bytes) -> Picture:
    if not content:
        raise RowError(
            "empty_picture", "a picture has no bytes; write the row again with its picture."
        )
    return Picture(_hash(content), content)


def _from_dict(reference: dict[str, Any], rules: PictureRules) -> Picture:
    for key in ("bytes", "image", "path", "url", "image_url", "base64"):
        value = reference.get(key)
        if value is None or value == "":
            continue
        if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
            picture = _from_base64(value)
        else:
            picture = to_picture(value, rules)
        limits = {name: reference.get(name) for name in ("min_pixels", "max_pixels")}
        if any(limits.values()):
            return Picture(picture.id, picture.source, **limits)
        return picture
    raise RowError(
        "picture_type",
        f"a picture has the fields {sorted(reference)} but none of bytes, path, url, base64 is "
        "filled.",
    )


def _from_text(text: str, rules: PictureRules) -> Picture:
    if not text:
        raise RowError(
            "empty_picture", "a picture reference is empty; leave the list empty instead."
        )
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        if not comma or ";base64" not in head:
            raise RowError("bad_data_uri", "a data URI must read data:image/TYPE;base64,...")
        return _from_base64(body)
    if text.startswith(("http://", "https://")):
        return _from_url(text, rules)
    if text.startswith("file://"):
        return _from_path(urllib.parse.unquote(text.removeprefix("file://")), rules)
    if text.startswith(_BASE64_STARTS) and len(text) > 60 and _BASE64.fullmatch(text):
        return _from_base64(text)
    if len(text) > _MAX_PATH_CHARACTERS:
        if _BASE64.fullmatch(text):
            return _from_base64(text)
        raise RowError(
            "bad_path", f"a picture reference of {len(text)} characters is no path or base64."
        )
    return _from_path(text, rules)


def _from_base64(text: str) -> Picture:
    try:
        return _from_bytes(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise RowError(
            "bad_base64", f"a picture's base64 is broken ({error}); encode it again."
        ) from error


def _from_url(url: str, rules: PictureRules) -> Picture:
    if not rules.allow_urls:
        raise RowError(
            "url_picture",
            f"picture {url[:120]} is a URL; download it beforehand and give its path.",
        )
    try:
        with urllib.request.urlopen(url, timeout=_URL_TIMEOUT_S) as reply:
            return _from_bytes(reply.read())
    except OSError as error:
        raise RowError("url_picture", f"picture {url[:120]} cannot be fetched: {error}.") from error


def _from_path(text: str, rules: PictureRules) -> Picture:
    if "\0" in text:
        raise RowError("bad_path", "a picture path holds a zero byte.")
    path = Path(text)
    candidates = [path] if path.is_absolute() else [root / path for root in rules.roots]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        if rules.must_exist:
            places = ", ".join(str(root) for root in rules.roots) or "nowhere"
            where = "" if path.is_absolute() else f" (looked in {places}); set image_root"
            raise RowError("missing_picture", f"picture {text} does not exist{where}.")
        found = candidates[0] if candidates else path
    return Picture(str(found), found)


def roots_for(files: Sequence[Path], image_root: str | None) -> tuple[Path, ...]:
    """Folders for relative paths: the given ones (":" joins several), then the files' own, then
    here.
    """
    given = [Path(part) for part in image_root.split(":")] if image_root else []
    own = dict.fromkeys(path.parent for path in files)
    return (*given, *own, Path.cwd())
