"""Training data of the tiny base model: general skills before the pipeline starts.

Like a real instruct model it can read digits and do small sums, and it knows the three-part template among
other ways to reply. With `drift: shared` it has the demonstrations' systematic misreading wherever it
answers a question about a picture; plain descriptions, and reasoning over digits given as text, are right.
Pictures are those of the training writers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from prism_lite.config import DigitsConfig, Kind
from prism_lite.digits import wording
from prism_lite.digits.task import HELDOUT_FROM, digit_images
from prism_lite.digits.wording import NUM_CAPTION_STYLES, NUM_THINK_STYLES, DigitsFacts

INSTRUCTION = "Reply with caption, think and answer."
DESCRIBE = "Describe the picture."
# Shares of the lessons: describe the picture, reason over digits given as text, answer only; the rest
# uses the template.
DESCRIBE_SHARE, GIVEN_SHARE, SHORT_SHARE = 0.15, 0.15, 0.1


@dataclass(frozen=True)
class Lesson:
    """One training prompt of a base with several replies, and its picture.

    Attributes:
        picture: names it in the task's own way: the indices of a strip's digits, the index of a picture;
            () for none.
    """

    system: str
    question: str
    replies: tuple[str, ...]
    picture: tuple[int, ...]


def lesson_kinds(config: DigitsConfig) -> tuple[Kind, ...]:
    """Return the questions that the base learns to answer: all that any stage or evaluation asks."""
    return tuple(dict.fromkeys((*config.sft_kinds, *config.kinds, *config.transfer_kinds)))


def make_lesson(config: DigitsConfig, rng: Random) -> Lesson:
    """Draw one lesson; its replies say the same in different wordings."""
    _, labels = digit_images()
    num_digits = rng.randint(config.min_digits, config.max_digits)
    picture = tuple(rng.randrange(HELDOUT_FROM) for _ in range(num_digits))
    digits = tuple(int(labels[i]) for i in picture)
    facts = DigitsFacts(digits, rng.choice(lesson_kinds(config)), pivot=rng.randint(3, 6))
    misreads = config.drift == "shared" and rng.random() < config.demonstration_misread_rate
    read = wording.misread_all(digits) if misreads else digits
    caption_styles = rng.sample(range(NUM_CAPTION_STYLES), NUM_CAPTION_STYLES)
    think_styles = rng.sample(range(NUM_THINK_STYLES), NUM_THINK_STYLES)
    styles = [*zip(caption_styles, think_styles, strict=False)]
    truths = [wording.compose(digits, facts, wording.steps(digits, facts), *s) for s in styles]
    replies = [wording.compose(read, facts, wording.steps(read, facts), *s) for s in styles]
    draw = rng.random()
    if draw < DESCRIBE_SHARE:
        captions = (wording.caption_text(digits, style) for style in caption_styles)
        return Lesson("", DESCRIBE, tuple(f"<caption>{c}</caption>" for c in captions), picture)
    if draw < DESCRIBE_SHARE + GIVEN_SHARE:  # no picture, so nothing to misread
        question = f"{truths[0].caption}\n{facts.question}"
        return Lesson("", question, tuple(parts.reasoning for parts in truths), ())
    if draw < DESCRIBE_SHARE + GIVEN_SHARE + SHORT_SHARE:
        system = INSTRUCTION if rng.random() < 0.5 else ""
        return Lesson(system, facts.question, (replies[0].answer,), picture)
    return Lesson(INSTRUCTION, facts.question, tuple(parts.render() for parts in replies), picture)
