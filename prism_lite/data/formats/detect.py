"""Which convention a row follows, by its field names alone. One table, first match wins.

The names are those of the tools that write such rows (TRL, ms-swift, LLaMA-Factory, EasyR1, verl,
Axolotl, LLaVA, R1-V, OpenRLHF, PRISM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUESTION_NAMES = ("query", "question", "problem", "prompt", "instruction", "input")
RESPONSE_NAMES = ("response", "output", "completion", "target", "text", "content")
ANSWER_NAMES = ("solution", "answer", "ground_truth", "label")
# Column names of a column map: what a value of that column becomes.
CANONICAL_NAMES = (
    "prompt", "answer", "images", "system", "demonstration", "teacher", "student", "accepted",
    "choices", "id",
)  # fmt: skip


def detect(row: Mapping[str, Any]) -> str | None:
    """The name of the convention, or None where the fields fit none.

    | name | decided by |
    |---|---|
    | prism_warmup | teacher_caption and student_caption |
    | prism_align | teacher_response |
    | openrlhf | message, a string of JSON |
    | preference | conversations, messages, query or prompt with chosen/rejected |
    | sharegpt | conversations |
    | verl | reward_model |
    | messages | messages |
    | prompt_completion | prompt and completion |
    | prompt | prompt as a list of messages |
    | alpaca | instruction and output |
    | vqa | decoded_image, image_1, choices or options beside question |
    | query | a question name with a response or an answer |
    """
    keys = {name for name, value in row.items() if value is not None}
    if {"teacher_caption", "student_caption"} <= keys:
        return "prism_warmup"
    if "teacher_response" in keys:
        return "prism_align"
    if "message" in keys and isinstance(row["message"], str):
        return "openrlhf"
    pair = {"chosen", "rejected"} <= keys or bool({"rejected_response", "rejected_messages"} & keys)
    if pair or "kto_tag" in keys:
        return "preference"
    if "conversations" in keys:
        return "sharegpt"
    if "reward_model" in keys:
        return "verl"
    if "messages" in keys:
        return "messages"
    if {"prompt", "completion"} <= keys:
        return "prompt_completion"
    if "prompt" in keys and not isinstance(row["prompt"], str):
        return "prompt"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if "question" in keys and {"decoded_image", "image_1", "choices", "options"} & keys:
        return "vqa"
    if keys & set(QUESTION_NAMES) and keys & {*RESPONSE_NAMES, *ANSWER_NAMES}:
        return "query"
    return None
