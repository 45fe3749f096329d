"""A visitor's own drawing or picture with a question, as a sample that the stages can be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from demo.models import drawing
from prism_lite.config import DataConfig
from prism_lite.digits import wording
from prism_lite.types import Picture, Sample, Turn

MAX_QUESTION_CHARACTERS = 2_000
PIVOT = 5
KIND_OF = {text.format(pivot=PIVOT): kind for kind, text in wording.QUESTIONS.items()}


def own_sample(
    data: DataConfig, picture: Image.Image, question: str, digits_text: str
) -> tuple[Sample, Image.Image]:
    """A sample of a visitor's picture, and the picture as the model gets it.

    Args:
        data: of the run that is asked.
        digits_text: which digits the visitor says they are; "" leaves the answers unverified.

    Raises:
        ValueError: the picture, the question or the named digits are not what the model has learned.
    """
    if data.task != "digits":
        return sample_for(question, picture), picture
    least, most = data.digits.min_digits, data.digits.max_digits
    strip, num_digits = drawing.strip_of(picture, min_digits=least, max_digits=most)
    if question not in KIND_OF:
        raise ValueError(
            "choose one of the listed questions: the tiny model has learned no others."
        )
    digits = [int(character) for character in digits_text if character.isdigit()]
    if digits and len(digits) != num_digits:
        raise ValueError(
            f"you name {len(digits)} digits, the drawing has {num_digits}: name each one once, left to "
            "right, or leave the field empty."
        )
    sample = sample_for(question, strip, digits=digits, kind=KIND_OF[question])
    return sample, strip


def drawn_picture(drawn: Any) -> Image.Image:
    """What was drawn on the pad, on white paper.

    Raises:
        ValueError: nothing was.
    """
    composite = (drawn or {}).get("composite")
    if composite is None:
        raise ValueError("nothing is drawn yet: write digits on the pad.")
    sheet = Image.new("RGB", composite.size, "white")
    layer = composite.convert("RGBA")
    sheet.paste(layer, mask=layer.getchannel("A"))
    return sheet


def uploaded_picture(path: str | None) -> Image.Image:
    """An uploaded picture, within its limits.

    Raises:
        ValueError: none was uploaded, or see `drawing.open_upload`.
    """
    if not path:
        raise ValueError("no picture yet: upload a PNG or JPEG.")
    return drawing.open_upload(path)


def pad_hint(data: Mapping[str, Any]) -> str:
    """What the models of a run can make of a drawing.

    Args:
        data: the data settings of the run.
    """
    if data["task"] != "digits":
        return "Draw what you like: the model sees it as a picture, black on white."
    least, most = data["digits"]["min_digits"], data["digits"]["max_digits"]
    count = f"{least} to {most}" if least < most else f"{least}"
    return (
        f"Write {count} digits side by side with clear gaps: this model has learned no others. Without "
        "a mouse or pen: choose Own picture and upload one."
    )


def sample_for(
    question: str, picture: Image.Image, *, digits: Sequence[int] = (), kind: str = ""
) -> Sample:
    """A Sample of a person's own question.

    Args:
        question: at most MAX_QUESTION_CHARACTERS.
        picture: RGB.
        digits: what the person says the picture shows; with `kind` it makes the answer verifiable.

    Raises:
        ValueError: the question is empty or too long.
    """
    question = question.strip()
    if not 0 < len(question) <= MAX_QUESTION_CHARACTERS:
        raise ValueError(
            f"the question has {len(question)} characters: expected 1 to {MAX_QUESTION_CHARACTERS}."
        )
    digest = hashlib.sha256(picture.tobytes() + str(picture.size).encode()).hexdigest()[:24]
    facts = answer = None
    if digits and kind:
        facts = wording.DigitsFacts(tuple(digits), kind, PIVOT)
        answer = wording.answer_text(facts, wording.steps(facts.digits, facts))
    return Sample(
        id=f"{digest}-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        turns=(Turn("user", question),),
        pictures=(Picture(digest, picture),),
        answer=answer,
        facts=facts,
        source="a visitor's question",
    )
