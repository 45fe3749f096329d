"""OCR reward: how close a transcription is to the gold text, by edit distance."""

from __future__ import annotations

from typing import Any

from prism_lite.rewards.format import Completion, answer_of

MAX_CHARACTERS = 4000  # quadratic work beyond this would stall a step


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements, each 1.

    Two rows of the table of Wagner and Fischer (1974), after the common ends are cut off.
    """
    while left and right and left[0] == right[0]:
        start = next(
            (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
            min(len(left), len(right)),
        )
        left, right = left[start:], right[start:]
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    if len(left) < len(right):
        left, right = right, left
    if not right:
        return len(left)
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def edit_similarity(predicted: str, gold: str, *, ignore_case: bool = False) -> float:
    """1 - distance / longer length, after white space is collapsed: 1 for equal texts, 0 for none
    alike.

    Texts beyond MAX_CHARACTERS are compared by their first characters; the missing rest counts as
    wrong, so cutting never raises the similarity of unequal lengths.
    """
    predicted, gold = " ".join(predicted.split()), " ".join(gold.split())
    if ignore_case:
        predicted, gold = predicted.casefold(), gold.casefold()
    if predicted == gold:
        return float(bool(gold))
    longer = max(len(predicted), len(gold))
    distance = edit_distance(predicted[:MAX_CHARACTERS], gold[:MAX_CHARACTERS])
    rest = max(longer - MAX_CHARACTERS, 0)
    return max(0.0, 1.0 - (distance + rest) / longer)


def ocr_reward(
    prompts: list[Any],
    completions: list[Completion],
    *,
    answer: list[str | None],
    **columns: Any,
) -> list[float | None]:
    """Return the edit similarity of the answer part with the gold text, 0.0 where malformed.

    Args:
        prompts: not used; part of TRL's signature.
        completions: R completions, strings or lists of chat messages.
        answer: R gold texts; None or empty gives None.

    Returns:
        R rewards in 0..1.
    """
    if len(answer) != len(completions):
        raise ValueError(
            f"answer has {len(answer)} rows and completions {len(completions)}: give one gold text "
            "per completion."
        )
    return [
        edit_similarity(answer_of(completion) or "", gold) if gold else None
        for completion, gold in zip(completions, answer, strict=True)
    ]
