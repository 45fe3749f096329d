"""Build a sample from a visitor's picture and question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image

from demo.models import drawing
from prism_lite.config import DataConfig
from prism_lite.digits import wording
from prism_lite.pixels import to_rgb
from prism_lite.types import Picture, Sample, Turn

_MAX_QUESTION_CHARACTERS = 2_000
_PIVOT = 5
KIND_OF = {text.format(pivot=_PIVOT): kind for kind, text in wording.QUESTIONS.items()}


def questions_of(data: Mapping[str, Any]) -> list[str]:
    """Return the questions that the tiny model of a run with these data settings has learned.

    A model that was trained on files answers any question: [].
    """
    if data["task"] != "digits":
        return []
    digits = data["digits"]
    kinds = {kind for name in ("sft_kinds", "kinds", "transfer_kinds") for kind in digits[name]}
    return [question for question, kind in KIND_OF.items() if kind in kinds]


def visitor_sample(
    data: DataConfig, image: Image.Image, question: str, digits_text: str
) -> tuple[Sample, Image.Image]:
    """Return a sample of a visitor's picture, and the picture as the model sees it.

    Args:
        data: data settings of the run that is asked.
        image: RGB.
        digits_text: the digits in the picture, as the visitor read them; "" if the completions cannot
            be checked.

    Raises:
        ValueError: the tiny model was not trained on this question or number of digits, or the question
            is empty or too long.
    """
    facts = answer = None
    if data.task == "digits":
        if question not in questions_of(asdict(data)):
            raise ValueError(
                "the tiny model was trained on the listed questions: choose one of them."
            )
        image, num_digits = drawing.strip_of(
            image, min_digits=data.digits.min_digits, max_digits=data.digits.max_digits
        )
        digits = tuple(int(character) for character in digits_text if character.isdigit())
        if digits and len(digits) != num_digits:
            raise ValueError(
                f"you named {len(digits)} digits, but the drawing has {num_digits}: name each digit "
                "once, from left to right, or leave the field empty."
            )
        if digits:
            facts = wording.DigitsFacts(digits, KIND_OF[question], _PIVOT)
            answer = wording.answer_text(facts, wording.steps(facts.digits, facts))
    question = question.strip()
    if not 0 < len(question) <= _MAX_QUESTION_CHARACTERS:
        raise ValueError(
            f"the question has {len(question)} characters: expected 1 to {_MAX_QUESTION_CHARACTERS}."
        )
    digest = hashlib.sha256(image.tobytes() + str(image.size).encode()).hexdigest()[:24]
    sample = Sample(
        id=f"{digest}-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        turns=(Turn("user", question),),
        pictures=(Picture(digest, image),),
        answer=answer,
        facts=facts,
        source="a visitor's question",
    )
    return sample, image


def drawn_picture(sketch: Any) -> Image.Image:
    """Return the drawing on the sketchpad, on white paper."""
    composite = (sketch or {}).get("composite")
    if composite is None:
        raise ValueError("nothing is drawn yet: write digits on the pad.")
    return to_rgb(composite)


def pad_hint(data: Mapping[str, Any]) -> str:
    """Return what to draw for the models of a run with these data settings."""
    if data["task"] != "digits":
        return "Draw what you like: the model sees it as a picture, black on white."
    least, most = data["digits"]["min_digits"], data["digits"]["max_digits"]
    count = f"{least} to {most}" if least < most else f"{least}"
    return (
        f"Write {count} digits side by side with clear gaps: this model was trained on nothing else. "
        "If you have no mouse or pen, choose Own picture and upload one."
    )
