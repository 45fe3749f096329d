"""easy-VQA in three parts: captions and thinks from a colour and a shape, slips, verdicts.

Everything that a completion says of a picture is its colour and its shape. Verdicts read the words of a
caption and a think, not a wording, so that they are of use for any model.
"""

from __future__ import annotations

import re
from random import Random

from prism_lite.digits.wording import PartVerdicts
from prism_lite.easy_vqa.facts import COLORS, SHAPES, VALUES, Attribute, Question, Seen
from prism_lite.parts import Parts

NUM_CAPTION_STYLES = 3
NUM_THINK_STYLES = 2
# The systematic misreading of the demonstrations. Other colours and circles are read rightly.
MISREADINGS = {"triangle": "rectangle", "teal": "green", "gray": "black", "brown": "red"}
_WORD = re.compile("[a-z]+")


def caption_text(seen: Seen, style: int) -> str:
    """Write which colour and shape the picture shows, as bullet points."""
    if style == 0:
        return f"- a {seen.color} {seen.shape}"
    if style == 1:
        return f"- shape: {seen.shape}\n- color: {seen.color}"
    return f"- one {seen.shape}\n- it is {seen.color}"


def think_text(question: Question, seen: Seen, answer: str, style: int) -> str:
    """Write how the answer follows from what is seen; a wrong answer is the last, wrong step."""
    asks, value = question.asks, seen.value(question.asks)
    if not question.is_yes_no:
        if style == 0:
            return f"the question asks for the {asks}, it is {answer}"
        return f"the {seen.shape} is {seen.color}, so the {asks} is {answer}"
    asked = question.names[0]
    is_there = "is there" if value == asked else "is not there"
    if style == 0:
        wanted = f"no {asked}" if question.is_negated else asked
        return f"asked for {wanted}, the {asks} is {value}, so {answer}"
    negated = ", the question says not" if question.is_negated else ""
    return f"the {asks} is {value}, {asked} {is_there}{negated}, so {answer}"


def compose(
    question: Question, seen: Seen, answer: str, caption_style: int, think_style: int
) -> Parts:
    """Write parts that state a colour and a shape, right or wrong, and conclude `answer`."""
    return Parts(
        caption=caption_text(seen, caption_style),
        think=think_text(question, seen, answer, think_style),
        answer=answer,
    )


def misread(question: Question, seen: Seen) -> Seen:
    """Misread what the question neither asks about nor names, always alike.

    The answer is the same for the right and for the wrong reading: no answer key corrects it.
    """
    for attribute, values in VALUES.items():
        value = seen.value(attribute)
        if attribute != question.asks and not set(question.names) & set(values):
            seen = seen._replace(**{attribute: MISREADINGS.get(value, value)})
    return seen


def slip(question: Question, answer: str, rng: Random) -> str:
    """Return a wrong answer: the wrong conclusion of the last step."""
    if question.is_yes_no:
        return "no" if answer == "yes" else "yes"
    return rng.choice([value for value in VALUES[question.asks] if value != answer])


def corrupt(question: Question, parts: Parts, rng: Random) -> Parts | None:
    """Misread the caption's color or shape, and slip in the conclusion, in the same wording.

    Returns:
        None where the caption does not state one color and one shape, or the think does not end with the
        answer, one of the known ones.
    """
    read = stated(parts.caption)
    known = ("yes", "no") if question.is_yes_no else VALUES[question.asks]
    if read is None or parts.answer not in known or not parts.think.endswith(parts.answer):
        return None
    attributes: tuple[Attribute, ...] = ("color", "shape")
    attribute = rng.choice(attributes)
    value = read.value(attribute)
    other = rng.choice([v for v in VALUES[attribute] if v != value])
    wrong = slip(question, parts.answer, rng)
    return Parts(
        caption=re.sub(rf"\b{value}\b", other, parts.caption, flags=re.IGNORECASE),
        think=parts.think.removesuffix(parts.answer) + wrong,
        answer=wrong,
    )


def stated(text: str) -> Seen | None:
    """Return the colour and shape that a text states; None unless it is exactly one of each."""
    words = set(_WORD.findall(text.lower()))
    colors, shapes = words & set(COLORS), words & set(SHAPES)
    if len(colors) != 1 or len(shapes) != 1:
        return None
    return Seen(colors.pop(), shapes.pop())


def verify(question: Question, seen: Seen, parts: Parts) -> PartVerdicts:
    """Verify each part separately.

    Args:
        seen: what the public answers say of the picture.
        parts: the parts of a well-formed completion.

    Returns:
        caption: whether it states the true colour and shape and no others. think: whether it names the
        value that its caption states of what is asked, no others but those of the caption and the
        question, and the answer part follows from the caption. answer: whether it is the true one.
    """
    read = stated(parts.caption)
    answer = parts.answer.lower().rstrip(".")
    think = False
    if read is not None:
        words = set(_WORD.findall(parts.think.lower())) & {*COLORS, *SHAPES}
        is_consistent = read.value(question.asks) in words <= {*read, *question.names}
        think = is_consistent and answer == question.answer(read)
    return PartVerdicts(caption=read == seen, think=think, answer=answer == question.answer(seen))
