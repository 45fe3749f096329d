"""Find what is wrong in a completion about digits, to underline it: misread digits and wrong steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Malformed, Parts, parse
from prism_lite.types import Sample

NOTHING_WRONG = "nothing wrong that can be checked"


@dataclass(frozen=True)
class Span:
    """A piece of a part's text; `error` says what is wrong with it, "" if nothing is."""

    text: str
    error: str = ""


def caption_errors(facts: DigitsFacts, caption: str) -> list[Span]:
    """Split a caption so that each digit that is not in the picture is a span of its own.

    A caption with another number of digits, or in none of the task's wordings, is one span.
    """
    stated = wording.stated_digits(caption)
    if stated is None:
        return [Span(caption, "not one of the task's wordings")]
    if len(stated) != len(facts.digits):
        return [Span(caption, f"{len(stated)} digits, are {len(facts.digits)}")]
    spans: list[Span] = []
    end = 0
    for match, digit in zip(re.finditer(r"\d", caption), facts.digits, strict=True):
        spans.append(Span(caption[end : match.start()]))
        is_right = match.group() == str(digit)
        spans.append(Span(match.group(), "" if is_right else f"read {match.group()}, is {digit}"))
        end = match.end()
    return [span for span in [*spans, Span(caption[end:])] if span.text]


def think_errors(facts: DigitsFacts, parts: Parts) -> list[Span]:
    """Split a think so that its first step that does not follow from its own caption is a span of its own.

    The steps are compared with the task's wording of the right steps that is closest to the text. Steps
    after a wrong one usually continue from it.
    """
    stated = wording.stated_digits(parts.caption)
    if stated is None or len(stated) != len(facts.digits):
        return [Span(parts.think)]  # nothing to follow from
    path = wording.steps(stated, facts)
    written = parts.think.split(",")
    candidates = [
        wording.think_text(stated, facts, path, style).split(",")
        for style in range(wording.NUM_THINK_STYLES)
    ]
    expected = max(candidates, key=lambda steps: _num_equal(written, steps))
    if len(expected) != len(written) or not _num_equal(written, expected):
        return [Span(parts.think, f"expected “{','.join(expected)}”")]
    wrong_at = next((i for i, step in enumerate(written) if step != expected[i]), None)
    if wrong_at is None:
        return [Span(parts.think)]
    step = written[wrong_at]
    spans = [
        Span("".join(f"{text}," for text in written[:wrong_at])),
        Span(step, f"step “{step}”, expected “{expected[wrong_at]}”"),
        Span("".join(f",{text}" for text in written[wrong_at + 1 :])),
    ]
    return [span for span in spans if span.text]


def answer_errors(facts: DigitsFacts, answer: str) -> list[Span]:
    """Return the answer as one span, which names the gold answer if it is wrong."""
    gold = wording.answer_text(facts, wording.steps(facts.digits, facts))
    return [Span(answer, "" if answer == gold else f"{answer}, gold answer {gold}")]


def _num_equal(written: list[str], expected: list[str]) -> int:
    return sum(a == b for a, b in zip(written, expected, strict=False))


def wrong_step(sample: Sample | None, completion: str) -> str:
    """Return what is wrong in a think about digits, "" if nothing is or it cannot be checked."""
    parts = parse(completion)
    if isinstance(parts, Malformed) or sample is None or not isinstance(sample.facts, DigitsFacts):
        return ""
    return next((span.error for span in think_errors(sample.facts, parts) if span.error), "")


def reasons(sample: Sample | None, completion: str, finish_reason: str) -> list[str]:
    """Return what is wrong before the answer: the format, each misread digit, the first wrong step."""
    parts = parse(completion)
    if isinstance(parts, Malformed):
        return [f"malformed: {parts.reason}"]
    if finish_reason != "end":
        return ["malformed: cut at the length limit"]
    if sample is None or not isinstance(sample.facts, DigitsFacts):
        return []
    spans = [*caption_errors(sample.facts, parts.caption), *think_errors(sample.facts, parts)]
    return list(dict.fromkeys(span.error for span in spans if span.error))
