"""Verifiable rewards, TRL-compatible: `f(prompts, completions, **columns) -> list[float |
None]`.
"""

from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.rewards.format import format_reward

__all__ = ["accuracy_reward", "format_reward"]
