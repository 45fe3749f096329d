"""Verifiable rewards with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`.

`completion_text` lets a function of your own read both of TRL's forms of a completion.
"""

from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.rewards.format import completion_text, format_reward

__all__ = ["accuracy_reward", "completion_text", "format_reward"]
