"""OCR reward: how close a transcription is to the gold text, by edit distance."""

from __future__ import annotations

from typing import Any

from rapidfuzz.distance.Levenshtein import distance as edit_distance

from prism_lite.rewards.format import Completion, answer_of


def edit_similarity(predicted: str, gold: str, *, ignore_case: bool = False) -> float:
    """Return 1 - Levenshtein distance / longer length, after white space is collapsed.

    It is 1 for equal texts and 0 for texts with nothing in common or two empty ones.
    """
    predicted, gold = " ".join(predicted.split()), " ".join(gold.split())
    if ignore_case:
        predicted, gold = predicted.casefold(), gold.casefold()
    longer = max(len(predicted), len(gold))
    return 1.0 - edit_distance(predicted, gold) / longer if longer else 0.0


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

    Raises:
        ValueError: `answer` and `completions` differ in length.
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
