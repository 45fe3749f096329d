"""Which convention a row follows, by its field names alone; the first match wins.

The names are those of the tools that write such rows (TRL, ms-swift, LLaMA-Factory, EasyR1, verl,
Axolotl, LLaVA, R1-V, OpenRLHF, PRISM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUESTION_NAMES = ("query", "question", "problem", "prompt", "instruction", "input")
RESPONSE_NAMES = ("response", "output", "completion", "target", "text", "content")
ANSWER_NAMES = ("solution", "answer", "ground_truth", "label")


def detect(row: Mapping[str, Any]) -> str | None:
    """Return the name of the row's convention, or None where its fields fit none."""
    keys = {name for name, value in row.items() if value is not None}
    if {"teacher_caption", "student_caption"} <= keys:
        return "prism_warmup"
    if "teacher_response" in keys:
        return "prism_align"
    if "message" in keys and isinstance(row["message"], str):
        return "openrlhf"
    one_side = {"rejected_response", "rejected_messages", "kto_tag"}
    if {"chosen", "rejected"} <= keys or keys & one_side:
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
