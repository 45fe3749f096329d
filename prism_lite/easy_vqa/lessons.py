"""Training data of the tiny base of easy-VQA, from the training pictures of the package.

As with the digits task, the base can name colours and shapes and knows the template among other ways to
reply. Where it answers a question about a picture it has the demonstrations' systematic misreading; plain
descriptions, and reasoning over a caption given as text, are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from PIL import Image

from prism_lite.digits.lessons import (
    DESCRIBE,
    DESCRIBE_SHARE,
    GIVEN_SHARE,
    INSTRUCTION,
    SHORT_SHARE,
    Lesson,
)
from prism_lite.easy_vqa import wording
from prism_lite.easy_vqa.facts import Question
from prism_lite.easy_vqa.rows import Item

_NUM_STYLES = min(wording.NUM_CAPTION_STYLES, wording.NUM_THINK_STYLES)


@dataclass(frozen=True)
class Lessons:
    """The settled training questions, and how often the base misreads in an answer."""

    items: Sequence[Item]
    misread_rate: float

    @cached_property
    def pixels(self) -> dict[int, np.ndarray]:
        """The pictures as uint8 [64, 64, 3], by the index of an item that asks about it."""
        of_file: dict[str, np.ndarray] = {}
        for path in dict.fromkeys(item.picture for item in self.items):
            with Image.open(path) as image:
                of_file[str(path)] = np.asarray(image.convert("RGB"))
        return {index: of_file[str(item.picture)] for index, item in enumerate(self.items)}

    def image(self, picture: tuple[int, ...]) -> Image.Image:
        """Return the picture of a lesson."""
        return Image.fromarray(self.pixels[picture[0]])

    def draw(self, rng: Random) -> Lesson:
        """Draw one lesson; its replies say the same in different wordings."""
        index = rng.randrange(len(self.items))
        item = self.items[index]
        question, seen = item.question, item.seen
        read = wording.misread(question, seen) if rng.random() < self.misread_rate else seen
        caption_styles = rng.sample(range(wording.NUM_CAPTION_STYLES), _NUM_STYLES)
        think_styles = rng.sample(range(wording.NUM_THINK_STYLES), _NUM_STYLES)
        styles = [*zip(caption_styles, think_styles, strict=True)]
        draw = rng.random()
        if draw < DESCRIBE_SHARE:
            captions = (wording.caption_text(seen, style) for style in caption_styles)
            replies = tuple(f"<caption>{caption}</caption>" for caption in captions)
            return Lesson("", DESCRIBE, replies, (index,))
        if draw < DESCRIBE_SHARE + GIVEN_SHARE:  # no picture, so nothing to misread
            truths = [wording.compose(question, seen, item.answer, *style) for style in styles]
            given = f"{truths[0].caption}\n{question.text}"
            return Lesson("", given, tuple(parts.reasoning for parts in truths), ())
        if draw < DESCRIBE_SHARE + GIVEN_SHARE + SHORT_SHARE:
            system = INSTRUCTION if rng.random() < 0.5 else ""
            return Lesson(system, question.text, (item.answer,), (index,))
        return Lesson(INSTRUCTION, question.text, _replies(question, read, styles), (index,))


def _replies(
    question: Question, read: wording.Seen, styles: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    answer = question.answer(read)
    return tuple(wording.compose(question, read, answer, *style).render() for style in styles)
