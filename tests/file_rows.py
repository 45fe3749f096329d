"""A few rows in a file of one's own: what the tests of the `files` task train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.micro import micro_recipe

COLUMNS = {name: name for name in ("prompt", "images", "answer", "demonstration", "teacher")}
ONE_STEP = {
    "sft__steps": 1,
    "warmup__steps": 1,
    "align__steps": 1,
    "rlvr__steps": 1,
    "eval__num_samples": 1,
}


def completion(seen: str, answer: str = "no", *, think: str | None = None) -> str:
    think = think or f"first {seen[0]},last {seen[-1]},so {answer}"
    return f"<caption>- digits: {seen}</caption>\n<think>{think}</think>\n<answer>{answer}</answer>"


def make_rows(folder: Path, num: int, question: str = "Is the first digit greater?") -> list[dict]:
    """Rows for every stage, each with a picture of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(num):
        Image.new("RGB", (64, 32), (20 * i % 255, 80, 120)).save(folder / f"{i}.png")
        rows.append(
            {
                "prompt": f"{question} ({i})",
                "images": f"{i}.png",
                "answer": "no",
                "demonstration": completion("3,7"),
                "teacher": completion("2,7"),
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files_recipe(train: Path, heldout: Path | None = None, **overrides: Any):
    """The micro settings on files, one step a stage."""
    return micro_recipe(
        data__task="files",
        data__train=str(train),
        data__heldout=None if heldout is None else str(heldout),
        **({"data__columns": COLUMNS} | ONE_STEP | overrides),
    )
