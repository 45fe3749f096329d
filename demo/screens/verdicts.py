"""What can be verified about one completion: its form, its answer and, on digits, its parts."""

from __future__ import annotations

from dataclasses import dataclass

from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Malformed, parse
from prism_lite.rewards.accuracy import judge_completion
from prism_lite.types import Sample


@dataclass(frozen=True)
class Marks:
    """Verdicts; None where there is nothing to compare with.

    Attributes:
        is_well_formed: three parts, and the completion ended by itself.
        reason: why not, "" otherwise.
    """

    is_well_formed: bool
    reason: str
    caption: bool | None = None
    think: bool | None = None
    answer: bool | None = None


def mark(text: str, finish_reason: str, sample: Sample | None) -> Marks:
    """Judge a completion of a sample, or of a prompt of which nothing is known (None)."""
    parts = parse(text)
    if isinstance(parts, Malformed):
        return Marks(False, parts.reason, answer=False if _has_gold(sample) else None)
    if finish_reason != "end":
        return Marks(False, "cut at the length limit", answer=False if _has_gold(sample) else None)
    if sample is None or sample.answer is None:
        return Marks(True, "")
    gold = (sample.answer, *sample.accepted)
    answer = judge_completion(text, gold, prompt=sample.question, choices=sample.choices).matches
    if not isinstance(sample.facts, DigitsFacts):
        return Marks(True, "", answer=answer)
    verdict = wording.verify(sample.facts, parts)
    return Marks(True, "", caption=verdict.caption, think=verdict.think, answer=answer)


def _has_gold(sample: Sample | None) -> bool:
    return sample is not None and sample.answer is not None
