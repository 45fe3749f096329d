"""The public door to the advantages of a group: `prism_lite.policy.advantages` has the code."""

from prism_lite.policy.advantages import Verified, alignment_advantages, reward_advantages

__all__ = ["Verified", "alignment_advantages", "reward_advantages"]
