"""Keys of rows: equal where rows are the same, or ask the same of the same pictures."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from PIL import Image

from prism_lite.rewards.answers.text import word_form
from prism_lite.types import Sample


def row_key(sample: Sample) -> bytes:
    """Return a key that is equal for rows of equal prompt, pictures, answer and completions."""
    texts = [
        *(f"{turn.role}:{turn.text}" for turn in sample.turns),
        *(picture.id for picture in sample.pictures),
        *(
            repr(getattr(sample, name))
            for name in ("answer", "demonstration", "teachers", "student")
        ),
    ]
    return _hash("\0".join(texts).encode("utf-8", "surrogatepass"))


def conversation_key(sample: Sample) -> str:
    """Return a key that is equal for equal prompts with all their turns, whatever the pictures' paths."""
    texts = "\0".join(f"{turn.role}:{turn.text}" for turn in sample.turns)
    keys = (_content_key(picture.source) for picture in sample.pictures)
    return _hash(texts.encode("utf-8", "surrogatepass") + b"".join(keys)).hex()


def prompt_key(sample: Sample) -> bytes:
    """Return a key that is equal for equal questions on equal pictures, whatever their paths."""
    question = word_form(" ".join(sample.question.replace("<image>", " ").split()))
    keys = (_content_key(picture.source) for picture in sample.pictures)
    return _hash(question.encode("utf-8", "surrogatepass") + b"".join(keys))


def _content_key(source: Path | bytes | Image.Image) -> bytes:
    if isinstance(source, Path):
        return _file_key(source)
    return _hash(source if isinstance(source, bytes) else source.tobytes())


@lru_cache(maxsize=65536)
def _file_key(path: Path) -> bytes:
    return _hash(path.read_bytes() if path.is_file() else str(path).encode())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).digest()
