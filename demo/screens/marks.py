"""Check what can be verified about a completion: its format, its answer and, on digits, its parts."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Malformed, parse
from prism_lite.rewards.accuracy import judge_completion
from prism_lite.types import Sample

_EXPLANATIONS = {
    "caption": "does the caption state what the picture shows",
    "think": "do the steps follow from what the caption states",
    "answer": "is the answer part the gold answer",
}


@dataclass(frozen=True)
class Marks:
    """What is right about a completion; None where it cannot be checked.

    Attributes:
        is_well_formed: three parts, and the completion was not cut off.
        reason: why it is malformed, else "".
        misread: where the caption states wrong digits, which ones.
    """

    is_well_formed: bool
    reason: str
    caption: bool | None = None
    think: bool | None = None
    answer: bool | None = None
    misread: str = ""


def mark(text: str, finish_reason: str, sample: Sample | None) -> Marks:
    """Check a completion of a sample; only its format if the sample is None."""
    parts = parse(text)
    has_gold = sample is not None and sample.answer is not None
    if isinstance(parts, Malformed):
        return Marks(False, parts.reason, answer=False if has_gold else None)
    if finish_reason != "end":
        return Marks(False, "cut at the length limit", answer=False if has_gold else None)
    if sample is None or sample.answer is None:
        return Marks(True, "")
    gold = (sample.answer, *sample.accepted)
    answer = judge_completion(text, gold, prompt=sample.question, choices=sample.choices).matches
    if not isinstance(sample.facts, DigitsFacts):
        return Marks(True, "", answer=answer)
    checked = wording.verify(sample.facts, parts)
    misread = _misread(sample.facts.digits, wording.stated_digits(parts.caption))
    return Marks(True, "", checked.caption, checked.think, answer, misread)


def _misread(digits: tuple[int, ...], stated: tuple[int, ...] | None) -> str:
    """Name the digits that a caption states wrongly, as "read 9, is 7"; "" if there are none."""
    if stated is None or stated == digits:
        return ""
    if len(stated) != len(digits):
        return f"read {len(stated)} digits, are {len(digits)}"
    pairs = zip(stated, digits, strict=True)
    return "; ".join(f"read {wrong}, is {right}" for wrong, right in pairs if wrong != right)


def marks_line(
    marks: Marks | None,
    *,
    num_tokens: int,
    seconds: float | None = None,
    note: str = "",
    wrong_step: str = "",
) -> str:
    """Return HTML with the marks of a completion, in words as well as symbols, and its cost.

    Args:
        wrong_step: what is wrong in the think, said in place of "wrong".
    """
    cells = []
    if marks is not None:
        word = "well-formed" if marks.is_well_formed else marks.reason
        cells.append(_mark("format", marks.is_well_formed, word, "caption, think, answer"))
        for name, explanation in _EXPLANATIONS.items():
            is_right = getattr(marks, name)
            if is_right is not None:
                word = "right" if is_right else "wrong"
                if name == "caption" and marks.misread:
                    word = marks.misread
                if name == "think" and not is_right and wrong_step:
                    word = wrong_step
                cells.append(_mark(name, is_right, word, explanation))
    costs = [f"{num_tokens} tokens", f"{seconds:.2f} s" if seconds is not None else "", note]
    cells += [f"<span>{escape(text)}</span>" for text in costs if text]
    return f'<div class="marks">{"".join(cells)}</div>'


def _mark(name: str, is_right: bool, word: str, explanation: str) -> str:
    symbol, css_class = ("✓", "yes") if is_right else ("✗", "no")
    return (
        f'<span class="mark {css_class}" tabindex="0" title="{escape(explanation)}">'
        f"{symbol} {name}: {escape(word)}</span>"
    )
