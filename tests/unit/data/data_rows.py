"""Rows and pictures that the tests of formats and checks share."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from prism_lite.data.formats.load import load_samples
from prism_lite.types import Sample

TRIPLE = "<caption>- a red bar</caption>\n<think>It is 3.</think>\n<answer>3</answer>"
STUDENT = "<caption>- a blue bar</caption>\n<think>It is 4.</think>\n<answer>4</answer>"
QUESTION = "How high is the bar?"
CHAT = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
ROW = {"prompt": CHAT, "images": ["a.png"], "answer": "3"}


def png(size=(40, 30), colour=(200, 30, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


GOOD = {"prompt": user(f"<image>{QUESTION}"), "images": ["a.png"], "answer": "3"}
TEXT = {"prompt": user("What is 1 + 2?"), "answer": "3"}


def one(path: Path, **options: Any) -> Sample:
    """Return the only sample of a file."""
    (sample,) = load_samples(path, **options)
    return sample
