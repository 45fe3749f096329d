"""Checks of gold boxes: do they fit their pictures, and is a file of one unit and form?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from prism_lite.config import BoxesConfig
from prism_lite.rewards.boxes import Box, corners, read_boxes
from prism_lite.types import Sample

_ASKS = re.compile(
    r"bbox|\b(?:box(?:es)?|bounding|locate|detect|grounding|region)\b", re.IGNORECASE
)
_COLUMN = re.compile(r"b?box(?:es)?(?:_2d)?|bboxs|\w*_b?box(?:es)?", re.IGNORECASE)
_NUM_LOOKED_AT = 200  # rows that decide whether a file is about boxes
_SLACK = 1.0  # pixel or thousandth by which rounding may exceed the picture
SYSTEMS = tuple(
    BoxesConfig(unit=unit, form=form)
    for unit in ("pixels", "thousandths")
    for form in ("xyxy", "xywh")
)
System = tuple[str, str]  # unit and form


def ask_for_boxes(rows: Iterable[object]) -> bool:
    """Check whether one of the first rows has a box as answer and asks for it, or names a box column."""
    return any(
        isinstance(row, Sample)
        and bool(read_boxes(row.answer or ""))
        and (bool(_ASKS.search(row.question)) or any(map(_COLUMN.fullmatch, row.columns)))
        for row in islice(rows, _NUM_LOOKED_AT)
    )


def box_defects(sample: Sample, boxes: BoxesConfig) -> Iterator[tuple[str, str]]:
    """Yield why the gold boxes of a row do not fit the unit and form, as kind and message.

    Where the unit is not known nothing is checked.
    """
    if boxes.unit is None:
        return
    size = _size(sample)
    for four in read_boxes(sample.answer or ""):
        problem = _problem(four, boxes, size)
        if problem:
            fitting = sorted(_fitting(four, size))
            hint = " or ".join(f"--boxes {unit},{form}" for unit, form in fitting)
            remedy = (
                f"correct it, or check with {hint} and set data.boxes.unit and data.boxes.form alike"
                if hint
                else "correct it"
            )
            kind, what = problem
            yield kind, f"the box {_text(four)} {what}: {remedy}."
            return


def fitting_systems(sample: Sample) -> frozenset[System]:
    """Return each unit and form that all gold boxes of a row fit; all of them for a row without."""
    size = _size(sample)
    fitting = frozenset((str(system.unit), system.form) for system in SYSTEMS)
    for four in read_boxes(sample.answer or ""):
        fitting &= _fitting(four, size)
    return fitting


def _fitting(four: Box, size: tuple[int, int] | None) -> frozenset[System]:
    fits = (system for system in SYSTEMS if not _problem(four, system, size))
    return frozenset((str(system.unit), system.form) for system in fits)


def _problem(
    four: Box, system: BoxesConfig, size: tuple[int, int] | None
) -> tuple[str, str] | None:
    """Return kind and description of what is wrong with a box in a unit and form, or None."""
    if system.form == "xyxy" and (four[2] < four[0] or four[3] < four[1]):
        return "box_corners", "has x2 < x1 or y2 < y1, as [x, y, width, height] would"
    if min(four) < -_SLACK:
        return "box_outside_picture", "has a negative number"
    if max(four) <= 1 and any(number % 1 for number in four):
        return "box_outside_picture", "is in fractions of the picture, which must be thousandths"
    _, _, x2, y2 = corners(four, system.form)
    width, height = (1000, 1000) if system.unit == "thousandths" else size or (x2, y2)
    if x2 > width + _SLACK or y2 > height + _SLACK:
        limit = f"{width} x {height} {system.unit}"
        return "box_outside_picture", f"is larger than its picture ({limit})"
    return None


def _size(sample: Sample) -> tuple[int, int] | None:
    """Return the size of the row's first picture; None without one, or where it cannot be read."""
    try:
        return sample.pictures[0].size if sample.pictures else None
    except ValueError:
        return None  # a defect of its own


def _text(four: Box) -> str:
    return "[" + ", ".join(f"{number:g}" for number in four) + "]"
