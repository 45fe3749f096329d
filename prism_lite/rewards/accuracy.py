"""Accuracy reward: does the answer part say what the gold answer says?

It verifies free-form answers: option letters and texts, yes/no, numbers, units, coordinates,
intervals, sets, lists and expressions. The rules are in `answers/compare.py`; the table that fixes
them is tests/unit/rewards/answers.tsv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prism_lite import parts
from prism_lite.rewards.answers.choices import options_in, parse_choice
from prism_lite.rewards.answers.compare import Verdict, compare_answers
from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE
from prism_lite.rewards.answers.text import clean
from prism_lite.rewards.format import Completion, completion_text

__all__ = ["Verdict", "accuracy_reward", "answers_match", "compare_answers", "judge_completion"]


def answers_match(predicted: str, gold: str | Sequence[str], **options: Any) -> bool:
    """Return whether a short answer matches the gold answer or one of several; see `compare_answers`."""
    return compare_answers(predicted, gold, **options).matches


def judge_completion(
    completion: Completion,
    gold: str | Sequence[str],
    *,
    prompt: Any = "",
    choices: Sequence[str] = (),
    relative_tolerance: float = RELATIVE_TOLERANCE,
) -> Verdict:
    """Return the verdict on a completion; a malformed one has no answer part and does not match.

    Args:
        completion: a string or a list of chat messages.
        gold: the gold answer or all accepted ones.
        prompt: string or chat messages; options are read from it where `choices` is empty and the
            gold answer or the prediction is a letter.
        choices: option texts from A on.
        relative_tolerance: as for `compare_answers`.
    """
    parsed = parts.parse(completion_text(completion))
    if isinstance(parsed, parts.Malformed):
        return Verdict(False, f"malformed={parsed.reason}")
    if not choices and prompt and _has_letter(parsed.answer, gold):
        choices = options_in(completion_text(prompt))
    return compare_answers(
        parsed.answer, gold, choices=choices, relative_tolerance=relative_tolerance
    )


def _has_letter(predicted: str, gold: str | Sequence[str]) -> bool:
    texts = [predicted, gold] if isinstance(gold, str) else [predicted, *gold]
    # A digit first is the common case of small tasks: no parsing for it.
    return any(not text[:1].isdigit() and parse_choice(clean(text)) is not None for text in texts)


def accuracy_reward(
    prompts: list[Any],
    completions: list[Completion],
    *,
    answer: list[str | Sequence[str] | None],
    accepted: list[Sequence[str]] | None = None,
    choices: list[Sequence[str] | None] | None = None,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    **columns: Any,
) -> list[float | None]:
    """Return 1.0 where the answer part matches the gold answer, 0.0 where not, None without a gold one.

    Args:
        prompts: R prompts, strings or lists of chat messages; only read for the options of a
            multiple-choice question.
        completions: R completions, strings or lists of chat messages.
        answer: R gold answers; a sequence holds several accepted ones.
        accepted: R sequences of further accepted answers, where the data has them.
        choices: R lists of option texts, where the data has them.
        relative_tolerance: as for `compare_answers`.

    Returns:
        R rewards; a malformed completion has no answer part and gets 0.0.

    Raises:
        ValueError: `answer` and `completions` differ in length.
    """
    if len(answer) != len(completions):
        raise ValueError(
            f"answer has {len(answer)} rows and completions {len(completions)}: give one gold "
            "answer per completion."
        )
    rewards: list[float | None] = []
    for i, (completion, gold) in enumerate(zip(completions, answer, strict=True)):
        if not gold or (isinstance(gold, str) and not gold.strip()):
            rewards.append(None)
            continue
        further = accepted[i] if accepted else ()
        verdict = judge_completion(
            completion,
            (*([gold] if isinstance(gold, str) else gold), *further) if further else gold,
            prompt=prompts[i] if i < len(prompts) else "",
            choices=(choices[i] or ()) if choices else (),
            relative_tolerance=relative_tolerance,
        )
        rewards.append(float(verdict.matches))
    return rewards
