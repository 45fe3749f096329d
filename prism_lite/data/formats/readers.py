"""One reader per convention: which field of a row is the prompt and which are its completions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prism_lite.data.formats.base import Row, RowError, as_list, first_value, parse_json_cell
from prism_lite.data.formats.detect import ANSWER_NAMES, QUESTION_NAMES, RESPONSE_NAMES
from prism_lite.data.formats.turns import strip_answer, to_turns


@dataclass(frozen=True)
class Fields:
    """Prompt, completions and answer of a row as written; None where there is none.

    Attributes:
        messages: the prompt, or a conversation whose last answer is the demonstration.
        answer: the gold answer where it is not in one of the usual columns (`build` reads these).
        choices: options where they are not in the column `choices`.
    """

    messages: Any
    demonstration: str | None = None
    teacher: str | None = None
    student: str | None = None
    answer: Any = None
    choices: Any = None


def to_choices(value: Any) -> tuple[str, ...]:
    """Return the option texts of a list, an object by letter, or either written as text."""
    value = parse_json_cell(value)
    if isinstance(value, str) and value.startswith("['"):  # MMMU writes a Python list
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            message = f"the options {value[:60]!r} are not a list ({error})."
            raise RowError("choices_type", message) from error
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, str):
        raise RowError("choices_type", f"the options are the text {value[:60]!r}; expected a list.")
    return tuple(str(option) for option in as_list(value))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError("text_type", f"{name} is a {type(value).__name__}; expected text.")
    return value


def _conversation(row: Row) -> Fields:
    return Fields(first_value(row, ("conversations", "messages")))


def _prompt(row: Row) -> Fields:
    return Fields(row.get("prompt"))


def _prompt_completion(row: Row) -> Fields:
    return Fields(row["prompt"], _completion_text(row["completion"], "completion"))


def _completion_text(value: Any, name: str) -> str:
    """Return the text of a completion: text, one message, or a list that ends with the assistant."""
    value = parse_json_cell(value)
    if isinstance(value, str):
        return value
    last_turn = to_turns([value] if isinstance(value, Mapping) else value, [])[-1]
    if last_turn.role != "assistant":
        message = f"{name} does not end with the assistant; write its answer there."
        raise RowError("pair_incomplete", message)
    return last_turn.text


def _preference(row: Row) -> Fields:
    prompt = first_value(row, ("conversations", "messages", "prompt", *QUESTION_NAMES))
    if "kto_tag" in row and row.get("chosen") is None:
        prompt, answer = _split_last(prompt, "the kto_tag row has no question with an answer")
        completion = _completion_text(answer, "the conversation")
        return Fields(prompt, **{"teacher" if row["kto_tag"] else "student": completion})
    chosen = first_value(row, ("chosen", *RESPONSE_NAMES))
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
    messages = parse_json_cell(messages)
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowError("pair_incomplete", f"{problem}; add it.")
    return messages[:-1], messages[-1:]


def _openrlhf(row: Row) -> Fields:
    messages = parse_json_cell(row["message"])
    if isinstance(messages, str):
        message = "message holds broken JSON; it must be a JSON list of messages."
        raise RowError("broken_json", message)
    return Fields(messages)


def _alpaca(row: Row) -> Fields:
    question = _text(row["instruction"], "instruction")
    if row.get("input"):
        question += "\n" + _text(row["input"], "input")
    messages: list[dict[str, Any]] = []
    for exchange in as_list(parse_json_cell(row.get("history"))):
        if not isinstance(exchange, Sequence) or isinstance(exchange, str) or len(exchange) != 2:
            raise RowError("message_type", "history must be a list of [question, answer] pairs.")
        messages.append({"role": "user", "content": exchange[0]})
        messages.append({"role": "assistant", "content": exchange[1]})
    messages.append({"role": "user", "content": question})
    return Fields(messages, _text(row["output"], "output"))


def _vqa(row: Row) -> Fields:
    question = _text(row["question"], "question")
    choices = to_choices(first_value(row, ("choices", "options")))
    if choices and not any(choice in question for choice in choices):
        letters = (f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))
        question = "\n".join([question, *letters])
    return Fields(question, answer=row.get("answer"), choices=choices)


def _query(row: Row) -> Fields:
    question = first_value(row, QUESTION_NAMES)
    response = first_value(row, [n for n in RESPONSE_NAMES if row.get(n) is not question])
    return Fields(
        [{"role": "user", "content": _text(question, "the question")}],
        None if response is None else _text(response, "the response"),
        answer=first_value(row, ANSWER_NAMES),
    )


def _prism(row: Row) -> Fields:
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


def _columns(row: Row) -> Fields:
    names = ("demonstration", "teacher", "student", "answer")
    return Fields(row.get("prompt"), **{name: row.get(name) for name in names})


READERS: dict[str, Callable[[Row], Fields]] = {
    "prism_warmup": _prism,
    "prism_align": _prism,
    "openrlhf": _openrlhf,
    "preference": _preference,
    "sharegpt": _conversation,
    "verl": _prompt,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "prompt": _prompt,
    "alpaca": _alpaca,
    "vqa": _vqa,
    "query": _query,
    "columns": _columns,
}
