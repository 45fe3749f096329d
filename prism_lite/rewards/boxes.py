"""IoU reward: how well predicted boxes cover the gold boxes.

Boxes are [x1, y1, x2, y2] in whatever unit the data uses (pixels or thousandths of the picture); a
prediction may be JSON, a Python-like list or `<box>` text: the numbers count, four per box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from prism_lite import parts
from prism_lite.rewards.format import completion_text

Box = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(
    rf"[\[(]\s*({_NUMBER})[\s,]+({_NUMBER})[\s,)(\]\[]+({_NUMBER})[\s,]+({_NUMBER})\s*[\])]"
)
_BARE = re.compile(rf"\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*")
MAX_BOXES = 200


def parse_boxes(text: str) -> list[Box]:
    """All boxes in an answer, in order; empty where there are none. Corners may come in any
    order.
    """
    found = _FOUR.findall(text[:20_000])
    if not found:
        bare = _BARE.fullmatch(text)
        found = [bare.groups()] if bare else []
    return [_sorted_corners([float(number) for number in four]) for four in found[:MAX_BOXES]]


def _sorted_corners(four: Sequence[float]) -> Box:
    x1, y1, x2, y2 = four
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def iou(left: Box, right: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where either has no area."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(left) + _area(right) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def boxes_score(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """Sum of matched IoU over the larger number of boxes: 1 only for exactly the gold boxes.

    Pairs are matched greedily from the highest IoU down; a box too many costs as much as one
    missing, so that printing boxes all over the picture does not pay.
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
    completions: list[str | list[dict[str, Any]]],
    *,
    boxes: list[Any],
    **columns: Any,
) -> list[float | None]:
    """Matched IoU of the boxes in the answer part with the gold boxes; 0.0 for a malformed
    completion.

    Args:
        prompts: not used; there for TRL's signature.
        completions: R completions, strings or lists of chat messages.
        boxes: R gold answers: a list of boxes, one box, or text that holds them; None where there
            are none, which gives None.

    Returns:
        R rewards in 0..1.

    Raises:
        ValueError: a gold answer holds no box.
    """
    if len(boxes) != len(completions):
        raise ValueError(
            f"boxes has {len(boxes)} rows and completions {len(completions)}: give one gold answer "
            "per completion."
        )
    rewards: list[float | None] = []
    for i, (completion, gold) in enumerate(zip(completions, boxes, strict=True)):
        if gold is None:
            rewards.append(None)
            continue
        gold_boxes = parse_boxes(gold if isinstance(gold, str) else json.dumps(gold))
        if not gold_boxes:
            raise ValueError(
                f"row {i}: the gold answer {str(gold)[:80]!r} holds no box; expected [x1, y1, x2, "
                "y2]."
            )
        found = parts.parse(completion_text(completion))
        if isinstance(found, parts.Malformed):
            rewards.append(0.0)
        else:
            rewards.append(boxes_score(parse_boxes(found.answer), gold_boxes))
    return rewards
