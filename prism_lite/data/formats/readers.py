"""One reader per convention: which field of a row is the prompt, the target, the pictures."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prism_lite import parts
from prism_lite.data.formats.base import RowError, parse_json_cell
from prism_lite.data.formats.detect import ANSWER_NAMES, QUESTION_NAMES, RESPONSE_NAMES
from prism_lite.data.formats.turns import split_target, strip_answer, to_turns

Row = Mapping[str, Any]
_IMAGE_NAMES = ("images", "image", "decoded_image", "image_path", "image_paths", "file_name")


@dataclass(frozen=True)
class Fields:
    """What a convention's reader found; texts and references as written, None where there is
    none.
    """

    messages: Any
    demonstration: str | None = None
    teacher: str | None = None
    student: str | None = None
    answer: Any = None
    choices: Any = None
    references: Any = None
    system: str | None = None


def as_list(value: Any) -> list[Any]:
    """A list of what may be one value or none."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def to_choices(value: Any) -> tuple[str, ...]:
    """Option texts from a list, an object by letter, or either written as text."""
    value = parse_json_cell(value)
    if isinstance(value, str) and value.startswith("['"):  # MMMU writes a Python list
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise RowError(
                "choices_type", f"the options {value[:60]!r} are no list ({error})."
            ) from error
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, str):
        raise RowError("choices_type", f"the options are the text {value[:60]!r}; expected a list.")
    return tuple(str(one) for one in as_list(value))


def _images(row: Row) -> Any:
    numbered = [row[f"image_{i}"] for i in range(1, 8) if row.get(f"image_{i}") is not None]
    if numbered:
        return numbered
    # MathVista has both a path (image) and the picture itself (decoded_image).
    if row.get("decoded_image") is not None:
        return row["decoded_image"]
    return next((row[name] for name in _IMAGE_NAMES if row.get(name) is not None), None)


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError("text_type", f"{name} is a {type(value).__name__}; expected text.")
    return value


def _conversation(row: Row) -> Fields:
    messages = row.get("conversations", row.get("messages"))
    system = row.get("system")
    return Fields(messages, references=_images(row), system=system, choices=row.get("choices"))


def _prompt(row: Row) -> Fields:
    system = row.get("system")
    if row.get("prompt") is None:
        raise RowError("empty_prompt", "the row has no prompt; add the question.")
    return Fields(row["prompt"], references=_images(row), system=system, choices=row.get("choices"))


def _prompt_completion(row: Row) -> Fields:
    completion = _completion_text(row["completion"], "completion")
    return Fields(row["prompt"], demonstration=completion, references=_images(row))


def _completion_text(value: Any, name: str) -> str:
    """A completion given as text, as one message, or as a list that ends with the assistant."""
    value = parse_json_cell(value)
    if isinstance(value, str):
        return value
    messages = [value] if isinstance(value, Mapping) else value
    turns = to_turns(messages, [])
    if turns[-1].role != "assistant":
        raise RowError(
            "pair_incomplete", f"{name} does not end with the assistant; write its answer there."
        )
    return turns[-1].text


def _preference(row: Row) -> Fields:
    if "kto_tag" in row and row.get("chosen") is None:
        fields = _conversation(row)
        _, target = split_target(to_turns(fields.messages, []))
        if target is None:
            raise RowError("pair_incomplete", "a kto_tag row must end with the assistant's answer.")
        side = {"teacher" if row["kto_tag"] else "student": target}
        messages = parse_json_cell(fields.messages)[:-1]
        return Fields(messages, references=fields.references, system=fields.system, **side)
    rejected = _first(row, ("rejected", "rejected_response", "rejected_messages"))
    chosen = row.get("chosen")
    prompt = _first(row, ("conversations", "messages", "prompt", *QUESTION_NAMES))
    if chosen is None:
        prompt, chosen = _split_chosen(row, prompt)
    chosen, rejected = parse_json_cell(chosen), parse_json_cell(rejected)
    if prompt is None:  # TRL: the prompt is the common start of both conversations
        if not isinstance(chosen, list) or len(chosen) < 2:
            raise RowError("pair_incomplete", "chosen holds no prompt; add a prompt column.")
        prompt = chosen[:-1]
    return Fields(
        prompt,
        teacher=_completion_text(chosen, "chosen"),
        student=_completion_text(rejected, "rejected"),
        references=_images(row),
        system=row.get("system"),
    )


def _split_chosen(row: Row, prompt: Any) -> tuple[Any, Any]:
    response = _first(row, RESPONSE_NAMES)
    if response is not None:
        return prompt, response
    messages = parse_json_cell(prompt)
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowError(
            "pair_incomplete", "the row has a rejected answer but no chosen one; add it."
        )
    return messages[:-1], messages[-1:]


def _openrlhf(row: Row) -> Fields:
    messages = parse_json_cell(row["message"])
    if isinstance(messages, str):
        raise RowError(
            "broken_json", "message holds broken JSON; it must be a JSON list of messages."
        )
    return Fields(messages, references=_images(row))


def _alpaca(row: Row) -> Fields:
    question = _text(row["instruction"], "instruction")
    if row.get("input"):
        question += "\n" + _text(row["input"], "input")
    messages: list[dict[str, str]] = []
    history = parse_json_cell(row.get("history")) or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError("message_type", "history must be a list of [question, answer] pairs.")
        messages += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    messages.append({"role": "user", "content": question})
    return Fields(
        messages,
        demonstration=_text(row["output"], "output"),
        references=_images(row),
        system=row.get("system"),
    )


def _vqa(row: Row) -> Fields:
    question = _text(row["question"], "question")
    choices = to_choices(row.get("choices", row.get("options")))
    if choices and not any(choice in question for choice in choices):
        letters = (f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))
        question = "\n".join([question, *letters])
    return Fields(question, references=_images(row), answer=row.get("answer"), choices=choices)


def _query(row: Row) -> Fields:
    question = _first(row, QUESTION_NAMES)
    response = _first(row, [name for name in RESPONSE_NAMES if row.get(name) is not question])
    messages: list[Any] = [{"role": "user", "content": _text(question, "the question")}]
    return Fields(
        messages,
        demonstration=None if response is None else _text(response, "the response"),
        answer=_first(row, ANSWER_NAMES),
        references=_images(row),
        system=row.get("system"),
        choices=row.get("choices"),
    )


def _joined(caption: Any, think: Any, answer: str | None) -> str:
    """A completion from the parts of PRISM's files, whose bodies may or may not carry their
    tags.
    """
    caption, think = _text(caption, "the caption"), _text(think, "the reasoning")
    texts = [
        caption if f"<{parts.CAPTION}>" in caption else f"<caption>{caption.strip()}</caption>"
    ]
    texts.append(think if f"<{parts.THINK}>" in think else f"<think>{think.strip()}</think>")
    if answer and f"<{parts.ANSWER}>" not in think:
        texts.append(f"<answer>{answer}</answer>")
    return "\n".join(text.strip() for text in texts)


def _prism(row: Row) -> Fields:
    answer = strip_answer(_first(row, ("solution", "answer", "ground_truth")))
    sides = {}
    for side in ("teacher", "student"):
        text = row.get(f"{side}_response")
        caption, think = row.get(f"{side}_caption"), row.get(f"{side}_cot")
        if text is None and caption is not None:
            text = _joined(caption, think, answer if side == "teacher" else None)
        sides[side] = None if text is None else _text(text, f"{side}_response")
    prompt = row.get("prompt") if row.get("prompt") is not None else row.get("question")
    if prompt is None:
        raise RowError("empty_prompt", "the row has neither prompt nor question; add one.")
    return Fields(prompt, references=_images(row), **sides)


def _columns(row: Row) -> Fields:
    if row.get("prompt") is None:
        raise RowError("empty_prompt", "the mapped prompt column is empty; check the column map.")
    return Fields(
        row["prompt"],
        demonstration=row.get("demonstration"),
        teacher=row.get("teacher"),
        student=row.get("student"),
        answer=row.get("answer"),
        choices=row.get("choices"),
        references=row.get("images"),
        system=row.get("system"),
    )


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
