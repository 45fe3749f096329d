"""Public import path of the advantage functions, which are in `prism_lite.policy.advantages`."""

from prism_lite.policy.advantages import Verified, alignment_advantages, reward_advantages

__all__ = ["Verified", "alignment_advantages", "reward_advantages"]
