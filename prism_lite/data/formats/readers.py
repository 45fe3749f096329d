"""One reader per convention: which field of a row is the prompt and which are its completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prism_lite.data.formats.base import (
    FieldsOfRow,
    RowError,
    as_list,
    first_value,
    parse_cell,
)
from prism_lite.data.formats.detect import COMPLETION_NAMES
from prism_lite.data.formats.names import (
    QUESTION_NAMES,
    RESPONSE_NAMES,
    WEAK_RESPONSE_NAMES,
)
from prism_lite.data.formats.turns import strip_answer, to_turns


@dataclass(frozen=True)
class Fields:
    """Prompt, completions and answer of a row as written; None where there is none.

    Attributes:
        messages: the prompt, or a conversation whose last answer is the demonstration.
        teacher: a text, or a list of several.
        answer: the gold answer where it is not in one of the usual columns (`gold` reads these).
    """

    messages: Any
    demonstration: str | None = None
    teacher: str | list[Any] | None = None
    student: str | None = None
    answer: Any = None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError("text_type", f"{name} is a {type(value).__name__}; expected text.")
    return value


def _conversation(row: FieldsOfRow) -> Fields:
    return Fields(first_value(row, ("conversations", "messages")))


def _prompt(row: FieldsOfRow) -> Fields:
    return Fields(row.get("prompt"))


def _prompt_completion(row: FieldsOfRow) -> Fields:
    return Fields(row["prompt"], _completion_text(row["completion"], "completion"))


def _completion_text(value: Any, name: str) -> str:
    """Return the text of a completion: text, one message, or a list that ends with the assistant."""
    value = parse_cell(value)
    if isinstance(value, str):
        return value
    last_turn = to_turns([value] if isinstance(value, Mapping) else value, [])[-1]
    if last_turn.role != "assistant":
        message = f"{name} does not end with the assistant; write its answer there."
        raise RowError("pair_incomplete", message)
    return last_turn.text


def _preference(row: FieldsOfRow) -> Fields:
    prompt = first_value(row, ("conversations", "messages", "prompt", *QUESTION_NAMES))
    if "kto_tag" in row and row.get("chosen") is None:
        prompt, answer = _split_last(prompt, "the kto_tag row has no question with an answer")
        completion = _completion_text(answer, "the conversation")
        return Fields(prompt, **{"teacher" if row["kto_tag"] else "student": completion})
    chosen = first_value(row, ("chosen", *RESPONSE_NAMES, *WEAK_RESPONSE_NAMES))
    if chosen is None:
        prompt, chosen = _split_last(prompt, "the row has a rejected answer but no chosen one")
    elif prompt is None:  # TRL: both conversations start with the prompt
        prompt, chosen = _split_last(chosen, "chosen holds no prompt and there is no prompt column")
    rejected = first_value(row, ("rejected", "rejected_response", "rejected_messages"))
    return Fields(
        prompt,
        teacher=_completion_text(chosen, "chosen"),
        student=_completion_text(rejected, "rejected"),
    )


def _split_last(messages: Any, problem: str) -> tuple[list[Any], list[Any]]:
    """Split a conversation into its prompt and its last message, the answer."""
    messages = parse_cell(messages)
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowError("pair_incomplete", f"{problem}; add it.")
    return messages[:-1], messages[-1:]


def _openrlhf(row: FieldsOfRow) -> Fields:
    messages = parse_cell(row["message"])
    if isinstance(messages, str):
        message = "message holds broken JSON; it must be a JSON list of messages."
        raise RowError("broken_json", message)
    return Fields(messages)


def _alpaca(row: FieldsOfRow) -> Fields:
    question = _text(row["instruction"], "instruction")
    if row.get("input"):
        question += "\n" + _text(row["input"], "input")
    messages: list[dict[str, Any]] = []
    for exchange in as_list(parse_cell(row.get("history"))):
        if not isinstance(exchange, Sequence) or isinstance(exchange, str) or len(exchange) != 2:
            raise RowError("message_type", "history must be a list of [question, answer] pairs.")
        messages.append({"role": "user", "content": exchange[0]})
        messages.append({"role": "assistant", "content": exchange[1]})
    messages.append({"role": "user", "content": question})
    return Fields(messages, _text(row["output"], "output"))


def _query(row: FieldsOfRow) -> Fields:
    question = first_value(row, QUESTION_NAMES)
    weak = [name for name in WEAK_RESPONSE_NAMES if "<answer>" in str(row.peek(name))]
    response = first_value(row, (*RESPONSE_NAMES, *weak))
    own = {name: row.get(name) for name in COMPLETION_NAMES}
    if own["demonstration"] is None and response is not None:
        own["demonstration"] = _text(response, "the response")
    return Fields(
        question if isinstance(question, list) else _text(question, "the question"), **own
    )


def _prism(row: FieldsOfRow) -> Fields:
    answer = strip_answer(first_value(row, ("solution", "answer", "ground_truth")))
    completions = {}
    for side in ("teacher", "student"):
        text, caption = row.get(f"{side}_response"), row.get(f"{side}_caption")
        if text is None and caption is not None:
            gold = answer if side == "teacher" else None
            text = _join_parts(caption, row.get(f"{side}_cot"), gold)
        completions[side] = None if text is None else _text(text, f"{side}_response")
    return Fields(first_value(row, ("prompt", "question")), **completions)


def _join_parts(caption: Any, think: Any, answer: str | None) -> str:
    """Join the columns of PRISM's files, whose texts have their tags or not, to a completion."""
    caption, think = _text(caption, "the caption"), _text(think, "the reasoning")
    texts = [
        caption if "<caption>" in caption else f"<caption>{caption.strip()}</caption>",
        think if "<think>" in think else f"<think>{think.strip()}</think>",
    ]
    if answer and "<answer>" not in think:
        texts.append(f"<answer>{answer}</answer>")
    return "\n".join(text.strip() for text in texts)


def _columns(row: FieldsOfRow) -> Fields:
    return replace(_query(row), answer=row.get("answer"))


READERS: dict[str, Callable[[FieldsOfRow], Fields]] = {
    "prism_warmup": _prism,
    "prism_align": _prism,
    "openrlhf": _openrlhf,
    "preference": _preference,
    "sharegpt": _conversation,
    "verl": _prompt,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "prompt": _query,
    "alpaca": _alpaca,
    "query": _query,
    "columns": _columns,
}
