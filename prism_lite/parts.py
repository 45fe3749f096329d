"""Caption, think, answer: the three parts of a completion. The only module that knows the tags.

A well-formed completion is `<caption>..</caption><think>..</think><answer>..</answer>`: each part once,
in this order, no body empty, nothing but white space outside. Anything else is malformed and says why;
a malformed completion is data (reward 0, counted in the metrics), never an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CAPTION, THINK, ANSWER = "caption", "think", "answer"
PART_NAMES = (CAPTION, THINK, ANSWER)
TAGS = tuple(tag for name in PART_NAMES for tag in (f"<{name}>", f"</{name}>"))

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))

SYSTEM_PROMPT = (
    "Answer in three parts. First describe what matters in the picture as bullet points inside "
    "<caption> </caption>. Then reason step by step inside <think> </think>. Then give the final "
    "answer only inside <answer> </answer>."
)


@dataclass(frozen=True)
class Parts:
    """The bodies of a well-formed completion, outer white space removed."""

    caption: str
    think: str
    answer: str

    def render(self) -> str:
        """The canonical text of these parts: what demonstrations and teacher completions look like."""
        return f"{self.perception}\n{self.reasoning}"

    @property
    def perception(self) -> str:
        """What the perception channel of the discriminator judges: the caption with its tags."""
        return f"<caption>{self.caption}</caption>"

    @property
    def reasoning(self) -> str:
        """What the reasoning channel judges: think and answer with their tags."""
        return f"<think>{self.think}</think>\n<answer>{self.answer}</answer>"


@dataclass(frozen=True)
class Malformed:
    """Why a completion is not three parts, in a few words ("missing </think>")."""

    reason: str


def num_bullets(caption: str) -> int:
    """Bullet points of a caption: its lines that begin with a bullet, or all lines where none does."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()]
    return sum(line.startswith(("-", "*", "\u2022")) for line in lines) or len(lines)


def num_steps(think: str) -> int:
    """Steps of a think, roughly: pieces between line ends, sentence ends, commas and semicolons."""
    return sum(bool(piece.strip()) for piece in re.split(r"[\n,;]|[.!?](?:\s|$)", think))


def parse(text: str) -> Parts | Malformed:
    """Split a completion into its parts, or say what is wrong with it.

    Args:
        text: the completion, decoded without the end token.

    Returns:
        Parts if `text` is the strict triple, else Malformed with the first fault found.
    """
    matches = list(_TAG.finditer(text))
    found = [match.group() for match in matches]
    if tuple(found) != TAGS:
        return Malformed(_first_fault(found))
    edges = [0, *(edge for match in matches for edge in match.span()), len(text)]
    # edges: 0 | <caption> span | </caption> span | ... | end; even gaps lie outside, odd ones are bodies.
    gaps = [text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
    outside = (gaps[0], gaps[2], gaps[4], gaps[6])
    bodies = [gap.strip() for gap in (gaps[1], gaps[3], gaps[5])]
    for name, body in zip(PART_NAMES, bodies, strict=True):
        if not body:
            return Malformed(f"empty {name}")
    if any(gap.strip() for gap in outside):
        return Malformed("text outside the parts")
    return Parts(*bodies)


def _first_fault(found: list[str]) -> str:
    for tag in TAGS:
        count = found.count(tag)
        if count == 0:
            return f"missing {tag}"
        if count > 1:
            return f"{tag} {count} times"
    return "parts out of order"
