"""Overlong reward: DAPO's soft penalty of completions that come near the length limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def overlong_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    completion_ids: list[Sequence[int]],
    max_tokens: int,
    buffer_tokens: int,
    **columns: Any,
) -> list[float]:
    """Return 0 up to the buffer, then linearly less, -1 at the length limit.

    Bind `max_tokens` and `buffer_tokens` with functools.partial for TRL.

    Args:
        prompts, completions: not used; part of TRL's signature.
        completion_ids: R token sequences.
        max_tokens: the length limit.
        buffer_tokens: how many tokens before the limit the penalty begins; at least 1.

    Source: equation 13 of arXiv 2503.14476.
    """
    start = max_tokens - buffer_tokens
    return [-min(max((len(ids) - start) / buffer_tokens, 0.0), 1.0) for ids in completion_ids]
