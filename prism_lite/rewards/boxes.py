"""IoU reward: how well predicted boxes cover the gold boxes.

Unit and form of gold and predicted boxes are settings (`data.boxes`), by default [x1, y1, x2, y2] in
whatever unit the data uses. A prediction may be JSON, a Python-like list or `<box>` text: only the
numbers count, four per box. A gold answer "none" is right where the prediction holds no box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from prism_lite.config import BoxesConfig
from prism_lite.rewards.format import Completion, answer_of

Box = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(
    rf"[\[(]\s*({_NUMBER})[\s,]+({_NUMBER})[\s,)(\]\[]+({_NUMBER})[\s,]+({_NUMBER})\s*[\])]"
)
_BARE = re.compile(rf"\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*")
_MAX_BOXES = 200
_NO_BOX = re.compile(
    r"""\W*(?:none|null|nothing|no(?:t| such)?(?: (?:box(?:es)?|objects?|present|found|visible))?)?\W*""",
    re.IGNORECASE,
)


def says_no_box(text: str) -> bool:
    """Check whether a gold answer states that nothing is to be boxed: "none", "no box", "[]"."""
    return bool(_NO_BOX.fullmatch(text)) and bool(text.strip())


def read_boxes(text: str) -> list[Box]:
    """Return the four numbers of every box of an answer, in order and as written."""
    matches = _FOUR.findall(text[:20_000])
    if not matches:
        bare = _BARE.fullmatch(text)
        matches = [bare.groups()] if bare else []
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in matches[:_MAX_BOXES]]


def parse_boxes(text: str, form: Literal["xyxy", "xywh"] = "xyxy") -> list[Box]:
    """Return all boxes of an answer as (x1, y1, x2, y2); opposite corners may come in any order."""
    return [corners(four, form) for four in read_boxes(text)]


def corners(four: Box, form: Literal["xyxy", "xywh"]) -> Box:
    """Return the top left and the bottom right corner of a box."""
    x1, y1, x2, y2 = four
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def iou(left: Box, right: Box) -> float:
    """Return the intersection over union of two boxes, 0 to 1; 0 where either has no area."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(left) + _area(right) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def boxes_score(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """Return the sum of matched IoU over the larger number of boxes: 1 only for the gold boxes.

    Pairs are matched greedily from the highest IoU down; a superfluous box costs as much as a
    missing one, so that covering the picture with boxes does not pay.
    """
    if not predicted or not gold:
        return 0.0
    pairs = sorted(
        ((iou(p, g), i, j) for i, p in enumerate(predicted) for j, g in enumerate(gold)),
        reverse=True,
    )
    used_predicted: set[int] = set()
    used_gold: set[int] = set()
    total = 0.0
    for overlap, i, j in pairs:
        if i not in used_predicted and j not in used_gold:
            used_predicted.add(i)
            used_gold.add(j)
            total += overlap
    return total / max(len(predicted), len(gold))


_SETTINGS = BoxesConfig()


def iou_reward(
    prompts: list[Any],
    completions: list[Completion],
    *,
    boxes: list[Any] | None = None,
    answer: list[Any] | None = None,
    sizes: list[tuple[int, int] | None] | None = None,
    settings: BoxesConfig = _SETTINGS,
    **columns: Any,
) -> list[float | None]:
    """Return the matched IoU of the boxes in the answer part with the gold ones, 0.0 where malformed.

    Args:
        prompts: not used; part of TRL's signature.
        completions: R completions, strings or lists of chat messages.
        boxes: R gold answers: a list of boxes, one box, or text that holds them or says "none";
            None for a row without a gold answer, whose reward is None.
        answer: the gold answers where the data has no column `boxes`.
        sizes: R widths and heights of the pictures in pixels, where gold and predicted boxes differ
            in unit.
        settings: unit and form of the boxes; bind it with functools.partial for TRL.

    Returns:
        R rewards in 0..1.

    Raises:
        ValueError: there are no gold answers, fewer than completions, one holds no box, or the
            size of a picture that is needed is missing.
    """
    golds = answer if boxes is None else boxes
    if golds is None or len(golds) != len(completions):
        raise ValueError(
            f"boxes has {len(golds or [])} rows and completions {len(completions)}: give one gold "
            "answer per completion."
        )
    rewards: list[float | None] = []
    for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        if gold is None:
            rewards.append(None)
            continue
        text = gold if isinstance(gold, str) else json.dumps(gold)
        gold_boxes = parse_boxes(text, settings.form)
        predicted = answer_of(completion)
        predicted_boxes = parse_boxes(predicted or "", settings.predicted_form or settings.form)
        if says_no_box(text):
            rewards.append(float(predicted is not None and not predicted_boxes))
            continue
        if not gold_boxes:
            raise ValueError(
                f"row {i}: the gold answer {str(gold)[:80]!r} holds no box; expected [x1, y1, x2, "
                "y2], or none."
            )
        if settings.predicted_unit not in (None, settings.unit):
            size = sizes[i] if sizes else None
            gold_boxes = [_in_predicted_unit(box, settings, size, i) for box in gold_boxes]
        rewards.append(boxes_score(predicted_boxes, gold_boxes))
    return rewards


def _in_predicted_unit(
    box: Box, settings: BoxesConfig, size: tuple[int, int] | None, row: int
) -> Box:
    if size is None:
        raise ValueError(
            f"row {row}: gold boxes in {settings.unit} and predicted ones in "
            f"{settings.predicted_unit} need the size of the picture, and the row has not exactly "
            "one: give both in one unit."
        )
    x_scale, y_scale = (1000 / side for side in size)
    if settings.unit == "thousandths":
        x_scale, y_scale = 1 / x_scale, 1 / y_scale
    x1, y1, x2, y2 = box
    return x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale
