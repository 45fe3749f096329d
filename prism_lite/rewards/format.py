"""Format reward, and the text and answer part of a completion in either of TRL's forms."""

from __future__ import annotations

from typing import Any

from prism_lite import parts

Completion = str | list[dict[str, Any]]  # text, or chat messages


def completion_text(completion: Completion) -> str:
    """Return the text of a completion, which is a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            texts.extend(block["text"] for block in content if block.get("type") == "text")
    return "".join(texts)


def answer_of(completion: Completion) -> str | None:
    """Return the answer part of a completion, or None where it is malformed."""
    parsed = parts.parse(completion_text(completion))
    return None if isinstance(parsed, parts.Malformed) else parsed.answer


def format_reward(prompts: list[Any], completions: list[Completion], **columns: Any) -> list[float]:
    """Return 1.0 for caption, think and answer once each, in order, none empty; else 0.0.

    Args:
        prompts: not used; part of TRL's signature.
        completions: R completions, strings or lists of chat messages.

    Returns:
        R rewards.
    """
    return [float(answer_of(completion) is not None) for completion in completions]
