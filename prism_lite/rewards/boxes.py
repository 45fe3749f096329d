"""IoU reward: how well predicted boxes cover the gold boxes.

Boxes are [x1, y1, x2, y2] in whatever unit the data uses (pixels or thousandths of the picture); a
prediction may be JSON, a Python-like list or `<box>` text: only the numbers count, four per box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from prism_lite.rewards.format import Completion, answer_of

Box = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(
    rf"[\[(]\s*({_NUMBER})[\s,]+({_NUMBER})[\s,)(\]\[]+({_NUMBER})[\s,]+({_NUMBER})\s*[\])]"
)
_BARE = re.compile(rf"\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*")
_MAX_BOXES = 200


def parse_boxes(text: str) -> list[Box]:
    """Return all boxes of an answer, in order; opposite corners may come in any order."""
    matches = _FOUR.findall(text[:20_000])
    if not matches:
        bare = _BARE.fullmatch(text)
        matches = [bare.groups()] if bare else []
    return [_sorted_corners([float(number) for number in four]) for four in matches[:_MAX_BOXES]]


def _sorted_corners(four: Sequence[float]) -> Box:
    x1, y1, x2, y2 = four
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


def iou_reward(
    prompts: list[Any],
    completions: list[Completion],
    *,
    boxes: list[Any] | None = None,
    answer: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the matched IoU of the boxes in the answer part with the gold ones, 0.0 where malformed.

    Args:
        prompts: not used; part of TRL's signature.
        completions: R completions, strings or lists of chat messages.
        boxes: R gold answers: a list of boxes, one box, or text that holds them; None where there
            are none, which gives None.
        answer: the gold answers where the data has no column `boxes`.

    Returns:
        R rewards in 0..1.

    Raises:
        ValueError: there are no gold answers, fewer than completions, or one holds no box.
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
        gold_boxes = parse_boxes(gold if isinstance(gold, str) else json.dumps(gold))
        if not gold_boxes:
            raise ValueError(
                f"row {i}: the gold answer {str(gold)[:80]!r} holds no box; expected [x1, y1, x2, "
                "y2]."
            )
        rewards.append(boxes_score(parse_boxes(answer_of(completion) or ""), gold_boxes))
    return rewards
