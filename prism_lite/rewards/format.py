"""Format reward: 1 for the strict caption, think, answer triple, else 0."""

from __future__ import annotations

from typing import Any

from prism_lite import parts


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion in either TRL form: a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    text = []
    for message in completion:
        content = message["content"]
        if isinstance(content, str):
            text.append(content)
        else:
            text.extend(block["text"] for block in content if block.get("type") == "text")
    return "".join(text)


def format_reward(
    prompts: list[Any], completions: list[str | list[dict[str, Any]]], **columns: Any
) -> list[float]:
    """1.0 where the completion is caption, think and answer once each, in order, none empty.

    Args:
        prompts: not used; there for TRL's signature.
        completions: R completions, strings or lists of chat messages.

    Returns:
        R rewards, each 0.0 or 1.0.
    """
    return [
        float(isinstance(parts.parse(completion_text(completion)), parts.Parts))
        for completion in completions
    ]
