"""Accuracy reward: does the answer part say what the gold answer says?"""

from __future__ import annotations

from typing import Any

from prism_lite import parts
from prism_lite.rewards.format import completion_text


def answers_match(predicted: str, gold: str) -> bool:
    """Whether two short answers are the same text, white space and case aside."""
    return " ".join(predicted.split()).casefold() == " ".join(gold.split()).casefold()


def accuracy_reward(
    prompts: list[Any],
    completions: list[str | list[dict[str, Any]]],
    *,
    answer: list[str | None],
    **columns: Any,
) -> list[float | None]:
    """1.0 where the answer part equals the gold answer, 0.0 where not, None where there is no gold.

    Args:
        prompts: not used; there for TRL's signature.
        completions: R completions, strings or lists of chat messages.
        answer: R gold answers.

    Returns:
        R rewards; a malformed completion has no answer part and gets 0.0.
    """
    if len(answer) != len(completions):
        raise ValueError(
            f"answer has {len(answer)} rows and completions {len(completions)}: give one gold answer "
            "per completion."
        )
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        found = parts.parse(completion_text(completion))
        if gold is None:
            rewards.append(None)
        elif isinstance(found, parts.Malformed):
            rewards.append(0.0)
        else:
            rewards.append(float(answers_match(found.answer, gold)))
    return rewards
