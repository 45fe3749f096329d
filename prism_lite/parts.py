"""Caption, think, answer: the three parts of a completion. The only module that knows the tags.

A well-formed completion is `<caption>..</caption><think>..</think><answer>..</answer>`: each part once,
in this order, no body empty, only white space outside. Any other completion is malformed, with a reason;
it is data (reward 0, counted in the metrics), not an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CAPTION, THINK, ANSWER = "caption", "think", "answer"
PART_NAMES = (CAPTION, THINK, ANSWER)
TAGS = tuple(tag for name in PART_NAMES for tag in (f"<{name}>", f"</{name}>"))

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))

# Tags of other data sets that say the same as ours. A summary (LLaVA-CoT) is a plan: it begins the think.
_OWN_NAME = {
    "caption": CAPTION, "description": CAPTION, "perception": CAPTION, "observation": CAPTION,
    "summary": THINK, "think": THINK, "thinking": THINK, "reasoning": THINK, "rationale": THINK,
    "answer": ANSWER, "conclusion": ANSWER,
}  # fmt: skip
_FOREIGN_PART = re.compile(rf"\s*<({'|'.join(_OWN_NAME)})>(.*?)</\1>\s*", re.DOTALL | re.IGNORECASE)

SYSTEM_PROMPT = (
    "Answer in three parts. First describe what matters in the picture as bullet points inside "
    "<caption> </caption>. Then reason step by step inside <think> </think>. Then give the final "
    "answer only inside <answer> </answer>."
)


@dataclass(frozen=True)
class Parts:
    """The bodies of a well-formed completion without outer white space."""

    caption: str
    think: str
    answer: str

    def render(self) -> str:
        """Return the canonical text of these parts, as demonstrations and teacher completions have it."""
        return f"{self.perception}\n{self.reasoning}"

    @property
    def perception(self) -> str:
        """The text that the discriminator's perception score is of: the caption with its tags."""
        return f"<caption>{self.caption}</caption>"

    @property
    def reasoning(self) -> str:
        """The text that the reasoning score is of: think and answer with their tags."""
        return f"<think>{self.think}</think>\n<answer>{self.answer}</answer>"


@dataclass(frozen=True)
class Malformed:
    """A completion that does not have the three parts, and why ("missing </think>")."""

    reason: str


def num_bullets(caption: str) -> int:
    """Count the bullet points of a caption: lines that begin with a bullet, or all if none does."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()]
    return sum(line.startswith(("-", "*", "\u2022")) for line in lines) or len(lines)


def num_steps(think: str) -> int:
    """Count the steps of a think, roughly: text between line ends, sentence ends, commas, semicolons."""
    return sum(bool(piece.strip()) for piece in re.split(r"[\n,;]|[.!?](?:\s|$)", think))


def parse(text: str) -> Parts | Malformed:
    """Split a completion into its parts, or find what is wrong with it.

    Args:
        text: the completion, decoded without the end token.

    Returns:
        Parts if the completion is well-formed, otherwise Malformed with the first fault.
    """
    tags = _TAG.findall(text)
    if tuple(tags) != TAGS:
        return Malformed(_first_fault(tags))
    # The six tags separate seven pieces: the odd ones are bodies, the even ones are outside the parts.
    pieces = [piece.strip() for piece in _TAG.split(text)]
    for name, body in zip(PART_NAMES, pieces[1::2], strict=True):
        if not body:
            return Malformed(f"empty {name}")
    if any(pieces[0::2]):
        return Malformed("text outside the parts")
    return Parts(*pieces[1::2])


def with_own_tags(text: str | None) -> str | None:
    """Rewrite a completion with the tags of another data set (LLaVA-CoT) to ours, where it has all parts.

    Any other text is returned as it is: a caption that is missing is not made up.
    """
    if text is None or "</" not in text or isinstance(parse(text), Parts):
        return text
    matches = list(_FOREIGN_PART.finditer(text))
    bodies: dict[str, list[str]] = {name: [] for name in PART_NAMES}
    for match in matches:
        bodies[_OWN_NAME[match[1].lower()]].append(match[2].strip())
    has_foreign = any(match[1] not in PART_NAMES for match in matches)
    is_complete = has_foreign and "".join(match[0] for match in matches) == text
    if (
        not is_complete
        or len(bodies[CAPTION]) != 1
        or len(bodies[ANSWER]) != 1
        or not bodies[THINK]
    ):
        return text
    (caption,), (answer,) = bodies[CAPTION], bodies[ANSWER]
    return Parts(caption, "\n".join(bodies[THINK]), answer).render()


def _first_fault(tags: list[str]) -> str:
    for tag in TAGS:
        count = tags.count(tag)
        if count == 0:
            return f"missing {tag}"
        if count > 1:
            return f"{tag} {count} times"
    return "parts out of order"
