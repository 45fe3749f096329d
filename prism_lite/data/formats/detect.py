"""Which convention a row follows, by its field names alone; the first match wins.

The names are those of the tools that write such rows (TRL, ms-swift, LLaMA-Factory, EasyR1, verl,
Axolotl, LLaVA, R1-V, OpenRLHF, PRISM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prism_lite.data.formats.names import (
    ANSWER_NAMES,
    OPTION_NAMES,
    QUESTION_NAMES,
    RESPONSE_NAMES,
    WEAK_RESPONSE_NAMES,
    is_index_name,
)

COMPLETION_NAMES = ("demonstration", "teacher", "student")
_PROMPT_NAMES = ("message", "messages", "conversations", *QUESTION_NAMES)
_QUERY_NAMES = {
    *RESPONSE_NAMES, *WEAK_RESPONSE_NAMES, *ANSWER_NAMES, *OPTION_NAMES, "decoded_image", "image_1",
}  # fmt: skip


# What a user reads of each convention.
MEANINGS = {
    "prism_warmup": "PRISM's warm-up pairs",
    "prism_align": "PRISM's alignment rows",
    "openrlhf": "OpenRLHF's messages",
    "preference": "preference pairs",
    "sharegpt": "conversations, as ShareGPT, LLaVA and LLaMA-Factory store them",
    "verl": "verl's and EasyR1's rows",
    "messages": "chat messages",
    "prompt_completion": "TRL's prompt and completion",
    "prompt": "TRL's chat prompts",
    "alpaca": "instruction and output",
    "query": "a question in each row",
    "columns": "the columns of data.columns",
}


def detect(row: Mapping[str, Any]) -> str | None:
    """Return the name of the row's convention, or None where its fields fit none."""
    keys = {name for name, value in row.items() if value is not None}
    if keys & set(QUESTION_NAMES) and keys & set(COMPLETION_NAMES):  # our own names
        return "query"
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
    if keys & set(QUESTION_NAMES) and (keys & _QUERY_NAMES or any(map(is_index_name, keys))):
        return "query"
    return None


def fits(row: Mapping[str, Any], convention: str) -> bool:
    """Return whether a row can be read by a convention: its own, or that of its missing values."""
    detected = detect(row)
    if {detected, convention} <= {"prompt", "query"}:  # read alike
        return True
    if detected == convention or detect(dict.fromkeys(row, "")) == convention:
        return True
    has_prompt = any(row.get(name) is not None for name in _PROMPT_NAMES)
    return detected is None and has_prompt
