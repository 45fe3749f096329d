"""What the public questions and answers of easy-VQA say about a picture.

easy-VQA (Victor Zhou, 2019, MIT; PyPI package `easy-vqa`): pictures of 64 x 64 pixels with one coloured
shape, and questions with 13 answers. Its package has no description of a picture beside them, so colour and
shape are derived from the answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
Attribute = Literal["color", "shape"]
VALUES: dict[Attribute, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES}


class Seen(NamedTuple):
    """A colour and a shape: those of a picture, or those that a completion states."""

    color: str
    shape: str

    def value(self, attribute: Attribute) -> str:
        return self.color if attribute == "color" else self.shape


@dataclass(frozen=True)
class Question:
    """A question as read.

    Attributes:
        text: as the package has it.
        asks: the attribute whose value the answer depends on.
        names: the colours and shapes that the question names.
        is_negated: a yes/no question whether something is not there.
    """

    text: str
    asks: Attribute
    names: tuple[str, ...]
    is_negated: bool = False

    @property
    def is_yes_no(self) -> bool:
        return not self.text.startswith("what ")

    def answer(self, seen: Seen) -> str:
        """Return the answer that follows from a colour and a shape."""
        value = seen.value(self.asks)
        if not self.is_yes_no:
            return value
        return "yes" if (value in self.names) != self.is_negated else "no"


def read_question(text: str) -> Question:
    """Find out what a question of the package asks.

    Raises:
        ValueError: its form is not one of easy-VQA's.
    """
    words = re.findall(r"[a-z]+", text)
    names = tuple(word for word in words if word in COLORS or word in SHAPES)
    if words[:1] == ["what"] and len(names) <= 1:
        asks: Attribute = "color" if "color" in words else "shape"
        return Question(text, asks, names)
    if words[:1] in (["is"], ["does"]) and len(names) == 1:
        asks = "color" if names[0] in COLORS else "shape"
        return Question(text, asks, names, is_negated="no" in words or "not" in words)
    raise ValueError(
        f"easy-VQA question {text!r} has an unknown form: expected 'what ...', 'is ...' or 'does ...' with "
        "one color or shape. Install version 1.0 of the package: pip install easy-vqa==1.0."
    )


def seen_in(pairs: Iterable[tuple[Question, str]]) -> Seen | None:
    """Return what the questions and answers about one picture say of it.

    A colour or shape counts if an answer or the question itself ("what color is the circle?") states
    it, or if the answers rule out all others of the 8 colours or 3 shapes.

    Returns:
        None where colour or shape is not settled, or two answers contradict each other.
    """
    possible = {attribute: set(values) for attribute, values in VALUES.items()}
    for question, answer in pairs:
        if question.is_yes_no:
            is_there = (answer == "yes") != question.is_negated
            name = {question.names[0]}
            possible[question.asks] &= name if is_there else set(VALUES[question.asks]) - name
            continue
        for value in (answer, *question.names):
            for attribute, values in VALUES.items():
                if value in values:
                    possible[attribute] &= {value}
    if any(len(values) != 1 for values in possible.values()):
        return None
    return Seen(possible["color"].pop(), possible["shape"].pop())
