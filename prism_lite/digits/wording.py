"""The digits task in words: questions, wordings of a caption and a think, slips, exact verifiers.

Each wording is a function of the digits it states, so the verifiers need no grammar: a caption is right if
it is one of the wordings of the true digits; a think is valid if it is one of the wordings of the right
steps for the digits that *its own caption* states. Perception and reasoning are thus verified separately. A
slip is the same wording of wrong digits, or of steps of which one is wrong.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from prism_lite.parts import Parts

QUESTIONS = {
    "sum": "What is the sum of the digits?",
    "largest": "What is the largest digit?",
    "smallest": "What is the smallest digit?",
    "difference": "What is the largest digit minus the smallest?",
    "count": "How many digits are greater than {pivot}?",
    "compare": "Is the first digit greater than the last?",
}
NUM_CAPTION_STYLES = 3
NUM_THINK_STYLES = 2
# Digits that look alike at 8 x 8: a misread digit becomes one of these.
_LOOKALIKES = dict(
    enumerate(("69", "748", "7318", "895", "917", "963", "508", "194", "319", "857"))
)
# The systematic misreading: no count of digits above a pivot of 3 to 6 changes with it.
_MISREADINGS = {0: 2, 1: 3, 7: 9, 8: 7}
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class DigitsFacts:
    """The truth of a picture and its question, which the verifiers compare with."""

    digits: tuple[int, ...]
    kind: str
    pivot: int = 5

    @property
    def question(self) -> str:
        return QUESTIONS[self.kind].format(pivot=self.pivot)


@dataclass(frozen=True)
class PartVerdicts:
    """Whether each part of one well-formed completion is right."""

    caption: bool
    think: bool
    answer: bool


def caption_text(digits: tuple[int, ...], style: int) -> str:
    """Write which digits the picture shows, as bullet points."""
    if style == 0:
        return f"- digits: {','.join(map(str, digits))}"
    if style == 1:
        return (
            f"- {_NUMBER_WORDS[len(digits)]} digits\n- left to right {','.join(map(str, digits))}"
        )
    return f"- the row {'-'.join(map(str, digits))}"


def steps(digits: tuple[int, ...], facts: DigitsFacts) -> list[int]:
    """Compute the numbers of the reasoning, the last of which is the result.

    sum: running totals; largest and smallest: running extreme; difference: largest, smallest, result;
    count: running count of digits above the pivot; compare: first, last, 1 or 0.
    """
    if facts.kind == "difference":
        return [max(digits), min(digits), max(digits) - min(digits)]
    if facts.kind == "compare":
        return [digits[0], digits[-1], int(digits[0] > digits[-1])]
    if facts.kind == "count":
        return list(accumulate(int(digit > facts.pivot) for digit in digits))
    step = {"sum": operator.add, "largest": max, "smallest": min}[facts.kind]
    return list(accumulate(digits, step))


def think_text(digits: tuple[int, ...], facts: DigitsFacts, path: list[int], style: int) -> str:
    """Write the steps `path` for these digits."""
    if facts.kind == "difference":
        largest, smallest, result = path
        if style == 0:
            return f"largest {largest},smallest {smallest},{largest}-{smallest}={result}"
        return f"from {smallest} to {largest} is {result}"
    if facts.kind == "compare":
        first, last, is_greater = path
        if style == 0:
            return f"first {first},last {last},so {'yes' if is_greater else 'no'}"
        return f"{first} is {'greater' if is_greater else 'not greater'} than {last}"
    if facts.kind == "sum":
        if style == 0:
            terms = zip(path, digits[1:], path[1:], strict=False)
            return ",".join(f"{before}+{digit}={after}" for before, digit, after in terms)
        tail = zip(digits[1:], path[1:], strict=True)
        return f"start {path[0]}" + "".join(f",+{digit} is {after}" for digit, after in tail)
    if style == 0:
        return ",".join(f"{digit}:{now}" for digit, now in zip(digits, path, strict=True))
    name = "so far" if facts.kind == "count" else facts.kind
    return f"{name} {','.join(map(str, path))}"


def answer_text(facts: DigitsFacts, path: list[int]) -> str:
    """Return the final answer of these steps."""
    if facts.kind == "compare":
        return "yes" if path[-1] else "no"
    return str(path[-1])


def compose(
    digits: tuple[int, ...],
    facts: DigitsFacts,
    path: list[int],
    caption_style: int,
    think_style: int,
) -> Parts:
    """Write parts that state these digits, right or wrong, and reason along `path`."""
    return Parts(
        caption=caption_text(digits, caption_style),
        think=think_text(digits, facts, path, think_style),
        answer=answer_text(facts, path),
    )


def misread(digits: tuple[int, ...], rng: Random) -> tuple[int, ...]:
    """Replace one of the digits by a look-alike."""
    at = rng.randrange(len(digits))
    wrong = int(rng.choice(_LOOKALIKES[digits[at]]))
    return (*digits[:at], wrong, *digits[at + 1 :])


def misread_all(digits: tuple[int, ...]) -> tuple[int, ...]:
    """Misread every 0, 1, 7 and 8, always alike: the drift of demonstrations (and base model)."""
    return tuple(_MISREADINGS.get(digit, digit) for digit in digits)


def slip(digits: tuple[int, ...], facts: DigitsFacts, path: list[int], rng: Random) -> list[int]:
    """Make one of the steps wrong, and those that follow consistent with it.

    A sum drops its carry or is off by one; an extreme takes another digit; a difference, count or
    comparison comes out wrong at the end.
    """
    path = list(path)
    if facts.kind == "compare":
        path[-1] = 1 - path[-1]
        return path
    if facts.kind == "difference":
        path[-1] = path[-1] + 1 if path[-1] == 0 else path[-1] + rng.choice((-1, 1))
        return path
    at = rng.randrange(1, len(path))
    right = path[at]
    if facts.kind == "sum":
        drops_carry = right >= 10 and rng.random() < 0.5
        change = -10 if drops_carry else rng.choice((-1, 1))
        change = 1 if right == 0 else change
        return [*path[:at], *(step + change for step in path[at:])]
    if facts.kind == "count":
        change = 1 if right == 0 else rng.choice((-1, 1))
        return [*path[:at], *(step + change for step in path[at:])]
    others = sorted(set(digits) - {right}) or [(right + 1) % 10]
    path[at:] = [rng.choice(others)] * (len(path) - at)
    return path


def verify(facts: DigitsFacts, parts: Parts) -> PartVerdicts:
    """Verify each part separately.

    Args:
        facts: the truth of the picture and its question.
        parts: the parts of a well-formed completion.

    Returns:
        caption: whether it states the true digits. think: whether its steps are right for the digits that
        the caption states, and the answer part is their result. answer: whether it is the gold answer.
    """
    stated = stated_digits(parts.caption)
    think = False
    if stated is not None and len(stated) == len(facts.digits):
        path = steps(stated, facts)
        renderings = (think_text(stated, facts, path, style) for style in range(NUM_THINK_STYLES))
        think = parts.think in renderings and parts.answer == answer_text(facts, path)
    return PartVerdicts(
        caption=stated == facts.digits,
        think=think,
        answer=parts.answer == answer_text(facts, steps(facts.digits, facts)),
    )


def stated_digits(caption: str) -> tuple[int, ...] | None:
    """Return the digits that a caption states, or None if it is not one of the wordings."""
    stated = tuple(int(digit) for digit in re.findall(r"\d", caption))
    if not 0 < len(stated) < len(_NUMBER_WORDS):
        return None
    wordings = (caption_text(stated, style) for style in range(NUM_CAPTION_STYLES))
    return stated if caption in wordings else None
