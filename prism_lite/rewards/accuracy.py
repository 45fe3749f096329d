"""Accuracy reward: does the answer part say what the gold answer says?

It verifies free-form answers: option letters and texts, yes/no, numbers, units, coordinates,
intervals, sets, lists and expressions. The rules are in `answers/compare.py`; the table that fixes
them is tests/unit/rewards/answers.tsv.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prism_lite import parts
from prism_lite.rewards.answers.choices import options_in, parse_choice
from prism_lite.rewards.answers.compare import Verdict, compare_answers
from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE
from prism_lite.rewards.answers.text import boxed_contents, clean
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
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    accepted: list[Sequence[str]] | None = None,
    choices: list[Sequence[str] | None] | None = None,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    **columns: Any,
) -> list[float | None]:
    """Return 1.0 where the answer part matches the gold answer, 0.0 where not, None where neither is known.

    Args:
        prompts: R prompts, strings or lists of chat messages; only read for the options of a
            multiple-choice question.
        completions: R completions, strings or lists of chat messages.
        answer: R gold answers: text, number or truth value; a sequence holds several accepted ones.
        solution: R texts that end in the gold answer, read where `answer` has none: the last
            `\\boxed{..}` or `<answer>..</answer>`, else the text itself.
        accepted: R sequences of further accepted answers, where the data has them.
        choices: R lists of option texts, where the data has them.
        relative_tolerance: as for `compare_answers`.

    Returns:
        R rewards; a malformed completion has no answer part and gets 0.0. None where there is no
        gold answer, and where the comparison is undecided (see `Verdict`).

    Raises:
        ValueError: there is neither `answer` nor `solution`, one differs from `completions` in
            length, or a gold answer is neither text, number, truth value nor a sequence of these.
    """
    golds = gold_columns(len(completions), answer, solution)
    rewards: list[float | None] = []
    for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        if not gold:
            rewards.append(None)
            continue
        further = gold_answers(accepted[i]) if accepted else ()
        verdict = judge_completion(
            completion,
            (*gold, *further),
            prompt=prompts[i] if i < len(prompts) else "",
            choices=(choices[i] or ()) if choices else (),
            relative_tolerance=relative_tolerance,
        )
        rewards.append(None if verdict.undecided else float(verdict.matches))
    return rewards


def gold_columns(
    num_rows: int, answer: Sequence[Any] | None, solution: Sequence[Any] | None
) -> list[tuple[str, ...]]:
    """Return the accepted answers of every row from the columns that TRL passes; () where none is.

    Raises:
        ValueError: see `accuracy_reward`.
    """
    if answer is None and solution is None:
        raise ValueError(
            "there is neither a column answer nor solution: give one with gold answers."
        )
    for name, column in (("answer", answer), ("solution", solution)):
        if column is not None and len(column) != num_rows:
            raise ValueError(
                f"{name} has {len(column)} rows and completions {num_rows}: give one gold answer "
                "per completion."
            )
    golds = [gold_answers(value) for value in answer] if answer is not None else [()] * num_rows
    if solution is None:
        return golds
    return [
        gold or tuple(map(_end_of_solution, gold_answers(text)))
        for gold, text in zip(golds, solution, strict=True)
    ]


def gold_answers(value: Any) -> tuple[str, ...]:
    """Return a gold answer as the texts that are accepted: 5 as "5", False as "False", None as ().

    Raises:
        ValueError: it is neither text, number, truth value nor a sequence of these.
    """
    if hasattr(value, "tolist"):  # of NumPy and PyTorch: numbers and lists
        value = value.tolist()
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return tuple(text for entry in value for text in gold_answers(entry))
    if isinstance(value, Mapping | bytes | bytearray):
        raise ValueError(
            f"the gold answer {str(value)[:80]!r} is a {type(value).__name__}: expected text, a "
            "number, true or false, or a list of these; convert the column."
        )
    return (str(value),)


_ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def _end_of_solution(text: str) -> str:
    answers = boxed_contents(text) or _ANSWER_TAGS.findall(text)
    return answers[-1] if answers else text
