"""Conversations of any convention as turns with `<image>` marks, and gold answers as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prism_lite.data.formats.base import RowError, parse_json_cell
from prism_lite.rewards.answers.text import closing_bracket
from prism_lite.types import Turn

MARK = "<image>"
Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_NUMBERED_MARK = re.compile(r"<image[ _](\d+)>")
_OTHER_MARKS = re.compile(r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image\|>")
_LEADING_MARKS = re.compile(rf"\s*((?:{MARK}\s*)+)")
_UNSUPPORTED_MEDIA = ("videos", "video", "audios", "audio")


def refuse_other_media(row: Mapping[str, Any]) -> None:
    """Raise RowError where a row needs videos, audio or tool calls."""
    for name in _UNSUPPORTED_MEDIA:
        if row.get(name):
            raise RowError(
                "unsupported_media", f"the row has {name}; only pictures are read: drop it."
            )


def to_turns(messages: Any, references: list[Any]) -> list[Turn]:
    """Turns of a list of messages in either naming; pictures inside parts are added to
    `references`.

    Raises:
        RowError: not a list of messages, an unknown role, a part of an unknown kind.
    """
    messages = parse_json_cell(messages)
    if isinstance(messages, str):
        return [Turn("user", messages)]
    if not isinstance(messages, Sequence) or not messages:
        raise RowError(
            "empty_conversation", "the conversation is empty; write at least one user turn."
        )
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RowError(
                "message_type",
                f"a message is a {type(message).__name__}; expected an object with role and "
                "content.",
            )
        name = message.get("role") or message.get("from")
        role = _ROLES.get(str(name).lower())
        if role is None:
            raise RowError(
                "unknown_role",
                f"role {name!r} is not understood; expected system, user or assistant (human, "
                "gpt).",
            )
        content = message.get("content", message.get("value"))
        turns.append(Turn(role, _content_text(content, references)))
    return turns


def _content_text(content: Any, references: list[Any]) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise RowError("message_type", "a message has no content; write its text or remove it.")
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise RowError(
            "message_type", f"a message's content is a {type(content).__name__}, not text."
        )
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(str(part.get("text") or part.get("content") or ""))
        elif kind in ("image", "image_url", "input_image"):
            texts.append(MARK)
            if any(part.get(k) for k in ("image", "image_url", "path", "url", "base64", "bytes")):
                references.append(dict(part))
        else:
            raise RowError(
                "unknown_part",
                f"a content part has type {kind!r}; expected text, image or image_url.",
            )
    return "".join(texts)


def with_marks(turns: Sequence[Turn], references: list[Any]) -> tuple[tuple[Turn, ...], list[Any]]:
    """Prompt turns whose marks stand one for one for the pictures, and the pictures in that order.

    Text without marks gets them before the first user turn's text; white space around leading marks
    goes, so that every convention gives the same prompt. Numbered marks (`<image 2>`) choose and
    order the pictures.

    Raises:
        RowError: marks and pictures differ in number.
    """
    numbers = [int(n) for turn in turns for n in _NUMBERED_MARK.findall(turn.text)]
    if numbers:
        if set(numbers) != set(range(1, len(references) + 1)):
            raise RowError(
                "picture_count",
                f"the prompt names pictures {sorted(set(numbers))} but the row has "
                f"{len(references)}; name each of them.",
            )
        references = [references[number - 1] for number in numbers]
    clean = []
    for turn in turns:
        text = _OTHER_MARKS.sub(MARK, _NUMBERED_MARK.sub(MARK, turn.text))
        lead = _LEADING_MARKS.match(text)
        if lead:
            text = MARK * lead.group(1).count(MARK) + text[lead.end() :]
        clean.append(Turn(turn.role, text))
    num_marks = sum(turn.text.count(MARK) for turn in clean)
    if num_marks == len(references):
        return tuple(clean), references
    if num_marks:
        raise RowError(
            "picture_count",
            f"{num_marks} {MARK} marks for {len(references)} pictures; write one mark per picture, "
            "or none to put all pictures first.",
        )
    first = next((i for i, turn in enumerate(clean) if turn.role == "user"), None)
    if first is None:
        raise RowError("no_user_turn", "the row has pictures but no user turn; write the question.")
    clean[first] = Turn("user", MARK * len(references) + clean[first].text.lstrip())
    return tuple(clean), references


def split_target(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """The prompt and the last assistant turn, None where the conversation ends with the user.

    Raises:
        RowError: no user turn, two turns of one role in a row, a system turn that is not first.
    """
    if not any(turn.role == "user" for turn in turns):
        raise RowError("no_user_turn", "the conversation has no user turn; write the question.")
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise RowError("turn_order", f"turn {i + 1} is a system turn; it may only stand first.")
        if i > 0 and turn.role == turns[i - 1].role:
            raise RowError(
                "turn_order",
                f"turns {i} and {i + 1} are both {turn.role}; join them or add the answer.",
            )
    if turns[0].role == "assistant":
        raise RowError(
            "turn_order", "the conversation starts with the assistant; start with the user."
        )
    if turns[-1].role == "assistant":
        return turns[:-1], turns[-1].text
    return turns, None


def strip_answer(value: Any) -> str | None:
    r"""A gold answer without `<answer>`, `$..$` and `\boxed{..}`; None where there is none.

    Raises:
        RowError: neither text nor number nor truth value.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        raise RowError(
            "answer_type", f"the answer is a {type(value).__name__}; expected text or a number."
        )
    text = value.strip()
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if tagged:
        text = tagged[-1].strip()
    for _ in range(4):
        dollars = re.fullmatch(r"\$\$?([^$]+)\$\$?", text)
        if dollars and text.endswith("$"):
            text = dollars.group(1).strip()
        start = text.rfind(r"\boxed{")
        end = closing_bracket(text, start + 6) if start >= 0 else -1
        if end < 0:
            break
        text = text[start + 7 : end].strip()
    return text


def answer_of_completion(text: str) -> str | None:
    """The answer that a demonstration ends with: its answer tag, its box, or a short plain
    reply.
    """
    if "<answer>" in text or r"\boxed{" in text:
        return strip_answer(text)
    stripped = text.strip()
    is_plain = stripped and len(stripped) <= 200 and "\n" not in stripped and "<" not in stripped
    return stripped if is_plain else None
