"""Alarms about the rewards of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prism_lite.stages.alarms.alarm import Alarm, above_limit

_MAX_FLAT_SHARE = 0.7  # of groups without spread in reward
_SPREAD_TOLERANCE = 1e-8  # a group whose rewards differ by at most this has no spread
_MAX_UNDECIDED_SHARE = 0.01  # of rollouts whose answer the verifier could not compare


def zero_spread_groups(
    rewards: Sequence[float], *, group_size: int, largest: float | None = None, causes: str = ""
) -> Alarm | None:
    """Check for groups whose rollouts all got the same reward: the policy learns nothing from them.

    Args:
        rewards: R rewards, rows of one group adjacent.
        group_size: G.
        largest: the largest reward that is possible, where it is known: tells easy from hard.
        causes: other alarms of the step that explain it, by name.
    """
    assert len(rewards) % group_size == 0
    if not rewards or group_size == 1:
        return None
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    share = sum(max(group) - min(group) <= _SPREAD_TOLERANCE for group in groups) / len(groups)
    if causes:
        why = f"see the alarm {causes}, which explains it"
    else:
        flat = [g[0] for g in groups if max(g) - min(g) <= _SPREAD_TOLERANCE]
        num_best = 0 if largest is None else sum(reward >= 0.99 * largest for reward in flat)
        why = "the prompts are too easy or too hard, or the reward does not distinguish completions"
        if largest is not None and flat:
            easy = num_best / len(flat)
            why = f"{easy:.0%} of them have the largest reward (too easy), the others are equally wrong"
        why += (
            "; repeat with a larger rlvr.group_size, other rows in data.rlvr, or "
            "rlvr.dynamic_sampling=true (with rlvr.game=off)"
        )
    return above_limit(
        "zero_spread_groups",
        share,
        _MAX_FLAT_SHARE,
        f"{share:.0%} of the groups have no spread in reward (limit {_MAX_FLAT_SHARE:.0%}): {why}.",
        {} if causes else {"rlvr.group_size": "*2"},
    )


def unscored_rollouts(rewards: Sequence[float]) -> Alarm | None:
    """Check for rollouts without any reward (NaN): they have advantage 0.

    Args:
        rewards: R rewards; NaN where every reward function returned None.
    """
    if not rewards:
        return None
    share = sum(map(math.isnan, rewards)) / len(rewards)
    return above_limit(
        "unscored_rollouts",
        share,
        0.0,
        f"{share:.0%} of the rollouts have no reward, because every function of rlvr.rewards returned "
        "None for them: the policy learns nothing from them; repeat with a reward that always has a "
        "value, as rlvr.rewards.format.",
        {"rlvr.rewards.format": "0.2"},
    )


def undecided_answers(share: float) -> Alarm | None:
    """Check for answers that the verifier could not compare with the gold answer.

    Args:
        share: of the rollouts, `rewards/accuracy/undecided`.
    """
    return above_limit(
        "undecided_answers",
        share,
        _MAX_UNDECIDED_SHARE,
        f"the verifier could not compare {share:.1%} of the answers with the gold answer (limit "
        f"{_MAX_UNDECIDED_SHARE:.0%}), so that these rollouts have no reward: read them in the "
        "rollouts (they lack rewards.accuracy); drop rows whose gold answers are long expressions, "
        "or, if memory is short, free some.",
    )
