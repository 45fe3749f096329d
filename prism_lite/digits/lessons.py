"""Training data of the tiny base model: general skills before the pipeline starts.

Like a real instruct model it can read digits and do small sums, and it knows the three-part template among
other ways to reply. Pictures are those of the training writers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from prism_lite.config import DigitsConfig
from prism_lite.digits import wording
from prism_lite.digits.task import HELDOUT_FROM, digit_images
from prism_lite.digits.wording import NUM_CAPTION_STYLES, NUM_THINK_STYLES, DigitsFacts

INSTRUCTION = "Reply with caption, think and answer."
_DESCRIBE = "Describe the picture."
# Shares of the lessons: describe the picture, reason over digits given as text, answer only; the rest
# uses the template.
DESCRIBE_SHARE, GIVEN_SHARE, SHORT_SHARE = 0.15, 0.15, 0.1


@dataclass(frozen=True)
class Lesson:
    """One training prompt of the base with several right replies, and the picture's digit indices."""

    system: str
    question: str
    replies: tuple[str, ...]
    picture: tuple[int, ...]


def make_lesson(config: DigitsConfig, rng: Random) -> Lesson:
    """Draw one lesson; its replies say the same in different wordings."""
    _, labels = digit_images()
    num_digits = rng.randint(config.min_digits, config.max_digits)
    picture = tuple(rng.randrange(HELDOUT_FROM) for _ in range(num_digits))
    digits = tuple(int(labels[i]) for i in picture)
    facts = DigitsFacts(digits, rng.choice(config.kinds), pivot=rng.randint(3, 6))
    path = wording.steps(digits, facts)
    caption_styles = rng.sample(range(NUM_CAPTION_STYLES), NUM_CAPTION_STYLES)
    think_styles = rng.sample(range(NUM_THINK_STYLES), NUM_THINK_STYLES)
    replies = [
        wording.compose(digits, facts, path, *style)
        for style in zip(caption_styles, think_styles, strict=False)
    ]
    draw = rng.random()
    if draw < DESCRIBE_SHARE:
        captions = (wording.caption_text(digits, style) for style in caption_styles)
        return Lesson("", _DESCRIBE, tuple(f"<caption>{c}</caption>" for c in captions), picture)
    if draw < DESCRIBE_SHARE + GIVEN_SHARE:
        question = f"{replies[0].caption}\n{facts.question}"
        return Lesson("", question, tuple(parts.reasoning for parts in replies), ())
    if draw < DESCRIBE_SHARE + GIVEN_SHARE + SHORT_SHARE:
        system = INSTRUCTION if rng.random() < 0.5 else ""
        return Lesson(system, facts.question, (replies[0].answer,), picture)
    return Lesson(INSTRUCTION, facts.question, tuple(parts.render() for parts in replies), picture)
