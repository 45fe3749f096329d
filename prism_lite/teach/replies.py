"""What the replies so far mean for a row: kept texts, what is given up, what is asked next.

The state of a row is a function of its replies alone, so a row that was interrupted continues from the
stored ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prism_lite import parts
from prism_lite.data.checks.rules import CheckRules, find_defects
from prism_lite.parts import Malformed
from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Sample, Turn

_AGAIN = (
    "That reply cannot be used: {reason}. Reply again, in full: one <caption>, one <think>, one <answer>, "
    "in this order, and nothing outside them."
)
_CUT_OFF = "it was cut off at the length limit; be shorter"


@dataclass(frozen=True)
class Reply:
    """One reply of the teacher and its verdict.

    Attributes:
        text: of a kept one the three parts as they are written to the file, else as received.
        kind: kept; malformed; wrong (well-formed, refused by the verifier under `keep_right`).
        reason: why it is not kept, or that a kept one answers wrongly; else "".
        prompt_tokens, completion_tokens: as the endpoint counted them; None where it did not.
        num_requests: requests that it took, with those that failed.
    """

    text: str
    kind: Literal["kept", "malformed", "wrong"]
    reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    num_requests: int = 1


class RefusedError(ValueError):
    """No row would get a reply; the text says what to change."""


class NoReplyError(RuntimeError):
    """One row gets no reply; the text is the reason.

    Attributes:
        num_requests: that were sent.
    """

    def __init__(self, message: str, num_requests: int) -> None:
        super().__init__(message)
        self.num_requests = num_requests


@dataclass(frozen=True)
class Received:
    """A reply before it is checked.

    Attributes:
        is_cut: it ended at the length limit.
    """

    text: str
    is_cut: bool
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    num_requests: int = 1


@dataclass(frozen=True)
class Progress:
    """Where a row is.

    Attributes:
        texts: completions to keep.
        given_up: the last reply of each completion that was not obtained in `tries` replies.
        again: a malformed last reply that is asked again with its reason, or None.
        num_left: completions that are neither kept nor given up.
    """

    texts: tuple[str, ...]
    given_up: tuple[Reply, ...]
    again: Reply | None
    num_left: int


def progress_of(replies: Sequence[Reply], settings: TeachSettings) -> Progress:
    """Return where a row is after these replies, in order."""
    texts: list[str] = []
    given_up: list[Reply] = []
    num_tries = 0
    for reply in replies:
        num_tries += 1
        if reply.kind == "kept":
            texts.append(reply.text)
        elif num_tries == settings.tries:
            given_up.append(reply)
        else:
            continue
        num_tries = 0
    last = replies[-1] if replies and num_tries else None
    again = last if last is not None and last.kind == "malformed" else None
    num_left = max(0, settings.num - len(texts) - len(given_up))
    return Progress(tuple(texts), tuple(given_up), again, num_left)


def first_prompt(sample: Sample, instruction: str) -> Sample:
    """Return the row as it is asked: without completions, the instruction in its system turn."""
    turns, own = sample.turns, ""
    if turns[0].role == "system":
        own, turns = f"{turns[0].text}\n\n", turns[1:]
    return dataclasses.replace(
        sample,
        turns=(Turn("system", own + instruction), *turns),
        demonstration=None,
        teacher=None,
        other_teachers=(),
        student=None,
    )


def next_prompt(prompt: Sample, again: Reply | None) -> Sample:
    """Return what is asked next: the prompt, or a malformed reply to it with what is wrong."""
    if again is None:
        return prompt
    asked = Turn("user", _AGAIN.format(reason=again.reason))
    # an empty assistant turn is refused by some endpoints
    turns = (*prompt.turns, Turn("assistant", again.text or "(nothing)"), asked)
    return dataclasses.replace(prompt, turns=turns)


def checked(sample: Sample, received: Received, *, keep_right: bool) -> Reply:
    """Return a reply with its verdict: what `data check` would say of a row with this teacher text."""
    text, kind, reason = _verdict(sample, received, keep_right=keep_right)
    return Reply(
        text,
        kind,
        reason,
        received.prompt_tokens,
        received.completion_tokens,
        received.num_requests,
    )


def _verdict(
    sample: Sample, received: Received, *, keep_right: bool
) -> tuple[str, Literal["kept", "malformed", "wrong"], str]:
    if received.is_cut:
        return received.text, "malformed", _CUT_OFF
    parsed = parts.parse(_inside(received.text))
    if isinstance(parsed, Malformed):
        return received.text, "malformed", parsed.reason
    text = parsed.render()
    asked = dataclasses.replace(sample, turns=(), teacher=text, other_teachers=(), student=None)
    defects = list(find_defects(asked, CheckRules(stage="align", check_pictures=False)))
    for kind, message in defects:
        if kind != "wrong_teacher":
            return received.text, "malformed", message.rstrip(".")
    if not defects:
        return text, "kept", ""
    reason = defects[0][1].rstrip(".")
    return (received.text, "wrong", reason) if keep_right else (text, "kept", reason)


def _inside(text: str) -> str:
    """Return the text from the caption's tag to the answer's end: models add greetings and code fences."""
    text = parts.with_own_tags(text.strip()) or ""
    start, end = text.find("<caption>"), text.rfind("</answer>")
    return text[start : end + len("</answer>")] if 0 <= start < end else text
