"""Advantages of the rollouts of a group: the public names of `prism_lite.policy.advantages`."""

from prism_lite.policy.advantages import Verified, alignment_advantages, reward_advantages

__all__ = ["Verified", "alignment_advantages", "reward_advantages"]
