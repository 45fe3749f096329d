"""Conversations of any convention as turns with `<image>` marks, and gold answers as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prism_lite.data.formats.base import RowError, parse_cell
from prism_lite.rewards.answers.text import closing_bracket
from prism_lite.types import Turn

_MARK = "<image>"
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
_NUMBERED_MARK = re.compile(r"<\|?(?:image|img)[ _-]?(\d+)\|?>", re.IGNORECASE)
_OTHER_MARKS = re.compile(
    rf"{_NUMBERED_MARK.pattern}|<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image\|>|<ImageHere>"
    r"|<image_?placeholder>",
    re.IGNORECASE,
)
# Pictures that are named inside the text: Qwen-VL's <img>path</img>, HTML, Markdown.
_PICTURE_IN_TEXT = re.compile(
    r"(?:Picture \d+: ?)?<img>\s*([^<>]+?)\s*</img>"
    r"|<img\b[^>]*?\bsrc=[\"']([^\"']+)[\"'][^>]*>|!\[[^\]]*\]\(([^)\s]+)\)"
)
_ANSWER_LINE = re.compile(
    r"(?:^|[\n.;])\s*(?:(?:so|thus|therefore|hence),?\s+)?(?:the |my )?(?:final |correct )?answer"
    r"(?:\s+is\s*:?|\s*[:=])\s*([^\n]+?)\s*$",
    re.IGNORECASE,
)
_LEADING_MARKS = re.compile(rf"\A\s*(?:{_MARK}\s*)+")


def to_turns(messages: Any, references: list[Any]) -> list[Turn]:
    """Convert messages in either naming (role, content or from, value) to turns.

    Args:
        messages: a list, its JSON, or the text of one user turn.
        references: pictures inside the messages are appended here.

    Raises:
        RowError: not a list of messages, an unknown role, or a content part of another type.
    """
    messages = parse_cell(messages)
    if isinstance(messages, str):
        return [Turn("user", _without_pictures(messages, references))]
    if not isinstance(messages, Sequence) or not messages:
        message = "the conversation is empty; write at least one user turn."
        raise RowError("empty_conversation", message)
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
                f"role {name!r} is unknown; expected system, user or assistant (human, gpt).",
            )
        content = message.get("content", message.get("value"))
        text = _content_text(content, references)
        turns.append(Turn(role, _without_pictures(text, references) if role == "user" else text))
    return turns


def _without_pictures(text: str, references: list[Any]) -> str:
    """Replace pictures that the text names by marks; append their references."""

    def mark(match: re.Match[str]) -> str:
        references.append(next(filter(None, match.groups())))
        return _MARK

    return text if _MARK in text else _PICTURE_IN_TEXT.sub(mark, text)


def _content_text(content: Any, references: list[Any]) -> str:
    """Join the parts of a message, with a mark for each picture."""
    if isinstance(content, str):
        return content
    if content is None:
        raise RowError("message_type", "a message has no content; write its text or remove it.")
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        message = f"a message's content is a {type(content).__name__}, not text."
        raise RowError("message_type", message)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        part_type = part.get("type") if isinstance(part, Mapping) else None
        if part_type == "text":
            texts.append(str(part.get("text") or part.get("content") or ""))
        elif part_type in ("image", "image_url", "input_image"):
            texts.append(_MARK)
            if any(part.get(k) for k in ("image", "image_url", "path", "url", "base64", "bytes")):
                references.append(dict(part))
        else:
            message = f"a content part has type {part_type!r}; expected text, image or image_url."
            raise RowError("unknown_part", message)
    return "".join(texts)


def with_marks(turns: Sequence[Turn], references: list[Any]) -> tuple[tuple[Turn, ...], list[Any]]:
    """Return prompt turns with one mark per picture, and the pictures in the order of the marks.

    Prompts without marks get them at the start of the first user turn. White space around leading
    marks is removed, so that every convention gives the same prompt. Numbered marks (`<image 2>`)
    select and order the pictures.

    Raises:
        RowError: the number of marks is not the number of pictures.
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
    marked = []
    for turn in turns:
        text = _OTHER_MARKS.sub(_MARK, turn.text)
        text = _LEADING_MARKS.sub(lambda marks: _MARK * marks[0].count(_MARK), text, count=1)
        marked.append(Turn(turn.role, text))
    num_marks = sum(turn.text.count(_MARK) for turn in marked)
    if num_marks not in (0, len(references)):
        raise RowError(
            "picture_count",
            f"{num_marks} {_MARK} marks for {len(references)} pictures; write one mark per picture, "
            "or none to put all pictures first.",
        )
    if not num_marks and references:
        first = next((i for i, turn in enumerate(marked) if turn.role == "user"), None)
        if first is None:
            message = "the row has pictures but no user turn; write the question."
            raise RowError("no_user_turn", message)
        marked[first] = Turn("user", _MARK * len(references) + marked[first].text.lstrip())
    return tuple(marked), references


def split_target(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """Split off the text of the last assistant turn; None where the conversation ends with the user.

    Raises:
        RowError: no user turn, two turns of one role in a row, a system turn that is not first.
    """
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        raise RowError("no_user_turn", "the conversation has no user turn; write the question.")
    for i in range(1, len(roles)):
        if roles[i] == "system":
            message = f"turn {i + 1} is a system turn; only the first turn may be one."
            raise RowError("turn_order", message)
        if roles[i] == roles[i - 1]:
            message = f"turns {i} and {i + 1} are both {roles[i]}; join them or add the answer."
            raise RowError("turn_order", message)
    if roles[0] == "assistant":
        message = "the conversation starts with the assistant; start with the user."
        raise RowError("turn_order", message)
    return (turns[:-1], turns[-1].text) if roles[-1] == "assistant" else (turns, None)


def strip_answer(value: Any) -> str | None:
    r"""Return a gold answer without `<answer>`, `$..$` and `\boxed{..}`; None where there is none.

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
        message = f"the answer is a {type(value).__name__}; expected text or a number."
        raise RowError("answer_type", message)
    text = value.strip()
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if tagged:
        text = tagged[-1].strip()
    if "####" in text:  # GSM8K: the answer follows its explanation
        text = text.rpartition("####")[2].strip()
    said = _ANSWER_LINE.search(text)
    if said:
        text = said[1].strip()
    for _ in range(4):
        dollars = re.fullmatch(r"\$\$?([^$]+)\$\$?", text)
        if dollars:
            text = dollars[1].strip()
        start = text.rfind(r"\boxed{")
        end = closing_bracket(text, start + 6) if start >= 0 else -1
        if end < 0:
            break
        text = text[start + 7 : end].strip()
    return text


def answer_of_completion(text: str) -> str | None:
    """Return the answer of a demonstration: its answer tag, its box, or a short plain reply."""
    if "<answer>" in text or r"\boxed{" in text:
        return strip_answer(text)
    text = text.strip()
    is_plain = text and len(text) <= 200 and "\n" not in text and "<" not in text
    return text if is_plain else None
