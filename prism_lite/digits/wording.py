"""The digits task in words: questions, ways to say a caption and a think, slips, exact verifiers.

Every wording is rendered by one function from the digits it states, so a verifier needs no grammar: a
caption is right when it is one of the wordings of the true digits; a think is valid when it is one of
the wordings of the right steps for the digits that *its own caption* states. Perception and reasoning
are thus verified apart. A slip is the same rendering from wrong digits or with one wrong step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
# Digits that look alike at 8 x 8: where a reader slips, it slips to one of these.
LOOKALIKES = dict(enumerate(("69", "748", "7318", "895", "917", "963", "508", "194", "319", "857")))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class DigitsFacts:
    """What is true of a picture and its question; the verifiers compare with this."""

    digits: tuple[int, ...]
    kind: str
    pivot: int = 5

    @property
    def question(self) -> str:
        return QUESTIONS[self.kind].format(pivot=self.pivot)


@dataclass(frozen=True)
class Verdict:
    """What the task's verifiers say of one well-formed completion."""

    caption: bool
    think: bool
    answer: bool


def caption_text(digits: tuple[int, ...], style: int) -> str:
    """One way of saying which digits the picture shows, as bullet points."""
    if style == 0:
        return f"- digits: {','.join(map(str, digits))}"
    if style == 1:
        return (
            f"- {_NUMBER_WORDS[len(digits)]} digits\n- left to right {','.join(map(str, digits))}"
        )
    return f"- the row {'-'.join(map(str, digits))}"


def steps(digits: tuple[int, ...], facts: DigitsFacts) -> list[int]:
    """The numbers that the reasoning passes through, the last one being the result.

    sum: running totals; largest and smallest: running extreme; difference: largest, smallest, result;
    count: running count of digits above the pivot; compare: first, last, 1 or 0.
    """
    if facts.kind == "difference":
        return [max(digits), min(digits), max(digits) - min(digits)]
    if facts.kind == "compare":
        return [digits[0], digits[-1], int(digits[0] > digits[-1])]
    running: list[int] = []
    for i, digit in enumerate(digits):
        before = running[-1] if running else 0
        if facts.kind == "sum":
            running.append(before + digit)
        elif facts.kind == "count":
            running.append(before + (digit > facts.pivot))
        elif facts.kind == "largest":
            running.append(max(digits[: i + 1]))
        else:
            running.append(min(digits[: i + 1]))
    return running


def think_text(digits: tuple[int, ...], facts: DigitsFacts, path: list[int], style: int) -> str:
    """One way of writing down the steps `path` for these digits."""
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
    """The final answer that these steps lead to."""
    if facts.kind == "compare":
        return "yes" if path[-1] else "no"
    return str(path[-1])


def compose(
    seen: tuple[int, ...], facts: DigitsFacts, path: list[int], caption_style: int, think_style: int
) -> Parts:
    """Parts that state the digits `seen` and reason along `path`."""
    return Parts(
        caption=caption_text(seen, caption_style),
        think=think_text(seen, facts, path, think_style),
        answer=answer_text(facts, path),
    )


def misread(digits: tuple[int, ...], rng: Random) -> tuple[int, ...]:
    """The digits with one of them read as a look-alike."""
    at = rng.randrange(len(digits))
    wrong = int(rng.choice(LOOKALIKES[digits[at]]))
    return (*digits[:at], wrong, *digits[at + 1 :])


def slip(digits: tuple[int, ...], facts: DigitsFacts, path: list[int], rng: Random) -> list[int]:
    """The steps with one of them wrong, and what follows from it carried on honestly.

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


def verify(facts: DigitsFacts, parts: Parts) -> Verdict:
    """Judge each part on its own.

    Args:
        facts: the truth of the picture and its question.
        parts: the parts of a well-formed completion.

    Returns:
        caption: states the true digits. think: right steps for the digits that the caption states, and
        the answer part is their result. answer: equals the gold answer.
    """
    stated = _stated_digits(parts.caption)
    think = False
    if stated is not None and len(stated) == len(facts.digits):
        path = steps(stated, facts)
        renderings = (think_text(stated, facts, path, style) for style in range(NUM_THINK_STYLES))
        think = parts.think in renderings and parts.answer == answer_text(facts, path)
    return Verdict(
        caption=stated == facts.digits,
        think=think,
        answer=parts.answer == answer_text(facts, steps(facts.digits, facts)),
    )


def _stated_digits(caption: str) -> tuple[int, ...] | None:
    """The digits that a caption states, or None if it is none of the wordings."""
    stated = tuple(int(digit) for digit in re.findall(r"\d", caption))
    if not 0 < len(stated) < len(_NUMBER_WORDS):
        return None
    wordings = (caption_text(stated, style) for style in range(NUM_CAPTION_STYLES))
    return stated if caption in wordings else None
