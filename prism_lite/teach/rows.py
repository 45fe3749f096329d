"""Rows on their way out: as messages to an endpoint, and as lines of the file with teacher text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Picture, Sample, Turn

_MARK = "<image>"
_MAX_PNG_BYTES = 1_500_000  # a larger picture is a photograph, which JPEG shrinks tenfold
_JPEG_QUALITY = 95


def to_messages(sample: Sample, max_pixels: int) -> list[dict[str, Any]]:
    """Return a prompt in OpenAI's form, its pictures as data URIs at their marks.

    Raises:
        ValueError: a picture cannot be read; names it.
    """
    pictures = iter(sample.pictures)
    messages: list[dict[str, Any]] = []
    for turn in sample.turns:
        if _MARK not in turn.text:
            messages.append({"role": turn.role, "content": turn.text})
            continue
        content: list[dict[str, Any]] = []
        for number, text in enumerate(turn.text.split(_MARK)):
            if number:
                url = to_data_uri(next(pictures), max_pixels)
                content.append({"type": "image_url", "image_url": {"url": url}})
            if text.strip():
                content.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": content})
    return messages


def to_data_uri(picture: Picture, max_pixels: int) -> str:
    """Return a picture as the student sees it, scaled down to `max_pixels`, as a data URI.

    Raises:
        ValueError: it cannot be read; names it.
    """
    image = picture.open()
    size = scaled_size(image.size, max_pixels)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    content, kind = _encoded(image, "PNG"), "png"
    if len(content) > _MAX_PNG_BYTES:
        content, kind = _encoded(image, "JPEG"), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def scaled_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return width and height with at most `max_pixels`, in the same proportion."""
    width, height = size
    factor = min(1.0, (max_pixels / (width * height)) ** 0.5)
    return max(1, int(width * factor)), max(1, int(height * factor))


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return stream.getvalue()


def output_row(
    sample: Sample, texts: Sequence[str], settings: TeachSettings, folder: Path
) -> dict[str, Any]:
    """Return a row of our own format with these completions after those that it has.

    Args:
        folder: of the file; pictures below it are written with relative paths.
    """
    teachers = list(dict.fromkeys((*sample.teachers, *texts)))
    demonstration = sample.demonstration
    if settings.field != "teacher":
        demonstration = texts[0]
    if settings.field == "demonstration":
        teachers = list(sample.teachers)
    values = {
        "id": sample.id,
        "prompt": _prompt(sample.turns),
        "images": [_reference(picture, folder) for picture in sample.pictures],
        "answer": sample.answer,
        "accepted": list(sample.accepted),
        "choices": list(sample.choices),
        "demonstration": demonstration,
        "teacher": teachers if len(teachers) > 1 else "".join(teachers),
        "student": sample.student,
    }
    return {name: value for name, value in values.items() if value not in (None, [], "")}


def _prompt(turns: Sequence[Turn]) -> str | list[dict[str, str]]:
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].text
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _reference(picture: Picture, folder: Path) -> Any:
    """Return a picture as the reader of data files takes it."""
    limits = {"min_pixels": picture.min_pixels, "max_pixels": picture.max_pixels}
    limits = {name: value for name, value in limits.items() if value is not None}
    if isinstance(picture.source, Path):
        path, folder = picture.source.resolve(), folder.resolve()
        name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
        return {"path": name, **limits} if limits else name
    source = picture.source
    content = source if isinstance(source, bytes) else _encoded(source, "PNG")
    return {"base64": base64.b64encode(content).decode(), **limits}
