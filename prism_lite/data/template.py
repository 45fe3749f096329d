"""A row, explained: which stage reads which field, an example of each, and a file to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TWO_SQUARES = (
    "<caption>- two red squares\n- one blue disc</caption>\n"
    "<think>The squares are red, and there are two.</think>\n<answer>2</answer>"
)
_ONE_SQUARE = (
    "<caption>- one red square\n- one blue disc</caption>\n"
    "<think>I see one square, and it is red.</think>\n<answer>1</answer>"
)
_PROMPT = {"prompt": "How many squares are red?", "images": ["pictures/1.png"]}

# Field, then whether SFT, a recorded warm-up pair, alignment, RLVR and held-out rows have it.
FIELDS = (
    ("prompt", "needed", "needed", "needed", "needed", "needed",
     "the question, or a list of {role, content}; <image>: its place"),
    ("images", "read", "read", "read", "read", "read",
     "paths from the file's folder, or base64; may be missing"),
    ("demonstration", "needed", "-", "-", "-", "-",
     "caption, think, answer that SFT imitates"),
    ("teacher", "-", "needed", "needed", "game", "-",
     "the same by a better model, or a list of several"),
    ("student", "-", "needed", "-", "-", "-",
     "the same by a weaker model; without pairs SFT's is sampled"),
    ("answer", "-", "-", "mode", "needed", "needed",
     "compared with the answer part; a list: any of them is right"),
    ("choices", "-", "-", "-", "read", "read",
     "options from A on, as a list; the prompt gets them"),
    ("id", "read", "read", "read", "read", "read",
     "names the row in rollouts; default: its number"),
)  # fmt: skip
STAGE_NAMES = ("SFT", "warm-up", "alignment", "RLVR", "held-out")
EXAMPLES: dict[str, dict[str, Any]] = {
    "SFT": _PROMPT | {"demonstration": _TWO_SQUARES},
    "warm-up": _PROMPT | {"teacher": _TWO_SQUARES, "student": _ONE_SQUARE},
    "alignment": _PROMPT | {"teacher": _TWO_SQUARES},
    "RLVR": _PROMPT | {"answer": "2"},
    "held-out": {
        "prompt": "What is blue?",
        "images": ["pictures/1.png"],
        "choices": ["a square", "a disc"],
        "answer": "B",
    },
}
# Each picture: its shapes as (kind, colour, left edge), and one row about it.
_Shapes = tuple[tuple[str, str, int], ...]
_PICTURES: tuple[_Shapes, ...] = (
    (("square", "red", 8), ("disc", "blue", 56), ("square", "red", 104)),
    (("disc", "green", 8), ("square", "red", 56)),
    (("disc", "blue", 56), ("disc", "green", 104)),
)
_ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "How many squares are red?", "answer": "2"},
    {"prompt": "What is green?", "choices": ["a square", "a disc"], "answer": "B"},
    {"prompt": "Is there a square?", "answer": "no"},
)
_THINKS = ("two squares are red", "the green shape is round", "both shapes are round")


def explain() -> str:
    """Return the table of fields by stage and an example row of each stage, as text."""
    widths = [13, *(max(6, len(name)) for name in STAGE_NAMES)]
    names = ("field", *STAGE_NAMES, "what it holds")
    lines = [_line(names, widths)]
    lines += [_line(row, widths) for row in FIELDS]
    lines += [
        "game: where rlvr.game keeps the discriminator. mode: where align.mode verifies answers.",
        "A row with all fields serves every stage. Other names and formats are read too: see DATA.md.",
        "",
    ]
    for stage, row in EXAMPLES.items():
        lines += [f"{stage}:", f"  {json.dumps(row)}"]
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    columns = "".join(f"{cell:{width + 1}}" for cell, width in zip(cells, widths, strict=False))
    return f"{columns}{cells[-1]}"


def write_template(path: Path) -> list[Path]:
    """Write a file of three rows that serve every stage, and their pictures.

    Args:
        path: a new .jsonl file; the pictures are written to the folder STEM_pictures beside it.

    Returns:
        The files.

    Raises:
        ValueError: one of them exists, or the file is not a .jsonl.
    """
    folder = path.with_name(f"{path.stem}_pictures")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: a template is a .jsonl file.")
    for existing in (path, folder):
        if existing.exists():
            raise ValueError(f"{existing} exists: name another file.")
    folder.mkdir(parents=True)
    files = [path]
    rows = []
    for number, (shapes, row, think) in enumerate(zip(_PICTURES, _ROWS, _THINKS, strict=True), 1):
        file = folder / f"{number}.png"
        _draw(shapes, file)
        files.append(file)
        caption = "\n".join(f"- a {colour} {kind}" for kind, colour, _ in shapes)
        teachers = [
            _completion(caption, text, row["answer"]) for text in (think, f"I see: {think}")
        ]
        images = {"images": [f"{folder.name}/{file.name}"]}
        texts = {"demonstration": teachers[0], "teacher": teachers if number == 1 else teachers[0]}
        rows.append(row | images | texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _completion(caption: str, think: str, answer: str) -> str:
    return f"<caption>{caption}</caption>\n<think>{think}</think>\n<answer>{answer}</answer>"


def _draw(shapes: _Shapes, file: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (152, 56), "white")
    draw = ImageDraw.Draw(image)
    for kind, colour, left in shapes:
        box = (left, 8, left + 40, 48)
        (draw.rectangle if kind == "square" else draw.ellipse)(box, fill=colour)
    image.save(file)
