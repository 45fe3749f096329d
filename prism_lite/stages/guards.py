"""Guards: named alarms for the ways in which a reward is exploited or stops carrying information.

Pure functions of the completions, rewards or scores of one step. Each returns an Alarm or None; none
changes a reward. alarms.py logs and prints them.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prism_lite import parts


@dataclass(frozen=True)
class Alarm:
    """A measured quantity that crossed its limit.

    Attributes:
        name: fixed, for the metrics: "length_collapse", "zero_spread_groups", ...
        value: the quantity.
        limit: the threshold.
        message: one sentence with both and what to do.
    """

    name: str
    value: float
    limit: float
    message: str


def above_limit(name: str, value: float, limit: float, message: str) -> Alarm | None:
    """Return an alarm if `value` is above `limit`."""
    return Alarm(name, value, limit, message) if value > limit else None


def length_collapse(
    num_tokens: Sequence[int], *, usual_num_tokens: float, min_share: float = 0.4
) -> Alarm | None:
    """Check for completions far shorter than usual: the policy found that short answers pay.

    Args:
        num_tokens: lengths of this step's completions, in tokens.
        usual_num_tokens: mean length at the start of the stage (or of the teacher).
        min_share: alarm below this share of it.
    """
    if not num_tokens or usual_num_tokens <= 0:
        return None
    share = statistics.fmean(num_tokens) / usual_num_tokens
    if share >= min_share:
        return None
    return Alarm(
        "length_collapse",
        share,
        min_share,
        f"completions are {share:.0%} of their usual length ({usual_num_tokens:.0f} tokens), below "
        f"{min_share:.0%}: read some rollouts; lower the learning rate or increase the weight of the "
        "format reward.",
    )


def zero_spread_groups(
    rewards: Sequence[float], *, group_size: int, max_share: float = 0.7, tolerance: float = 1e-8
) -> Alarm | None:
    """Check for groups whose rollouts all got the same reward: the policy learns nothing from them.

    Args:
        rewards: R rewards, rows of one group adjacent.
        group_size: G.
        max_share: alarm above this share of groups.
        tolerance: spread up to which a group counts as equal.

    Raises:
        ValueError: R is not a multiple of G, or a reward is not finite.
    """
    _require_finite(rewards, "reward")
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards cannot form groups of {group_size}: pass complete groups."
        )
    if not rewards or group_size == 1:
        return None
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    share = sum(max(group) - min(group) <= tolerance for group in groups) / len(groups)
    return above_limit(
        "zero_spread_groups",
        share,
        max_share,
        f"{share:.0%} of the groups have no spread in reward (limit {max_share:.0%}): the prompts "
        "are too easy or too hard, or the reward does not tell completions apart; turn on dynamic "
        "sampling or change the data.",
    )


def unscored_rollouts(rewards: Sequence[float]) -> Alarm | None:
    """Check for rollouts without any reward (NaN): they have advantage 0.

    Args:
        rewards: R rewards; NaN where every reward function returned None.
    """
    share = sum(map(math.isnan, rewards)) / len(rewards)
    return above_limit(
        "unscored_rollouts",
        share,
        0.0,
        f"{share:.0%} of the rollouts have no reward, because every function of rlvr.rewards returned "
        "None for them: the policy learns nothing from them; add a reward that always has a value.",
    )


_WORD = re.compile(r"\w+|[^\w\s]")


def repeated_share(text: str, *, num_words: int = 4) -> float:
    """Return the share of a text's word runs that occurred in it before, near 1 for a loop.

    Runs are `num_words` words or punctuation marks long. A text of fewer than twice that length has
    none.
    """
    words = _WORD.findall(text)
    num_runs = len(words) - num_words + 1
    if num_runs <= num_words:
        return 0.0
    runs = Counter(tuple(words[i : i + num_words]) for i in range(num_runs))
    return 1.0 - len(runs) / num_runs


def repeated_text(
    completions: Sequence[str], *, max_repeated: float = 0.5, max_share: float = 0.1
) -> Alarm | None:
    """Check for completions that repeat themselves.

    Args:
        completions: decoded texts of one step.
        max_repeated: a completion above this `repeated_share` loops.
        max_share: alarm above this share of looping completions.
    """
    if not completions:
        return None
    share = sum(repeated_share(text) > max_repeated for text in completions) / len(completions)
    return above_limit(
        "repeated_text",
        share,
        max_share,
        f"{share:.0%} of the completions repeat themselves (limit {max_share:.0%}): read some; "
        "lower the learning rate or the temperature.",
    )


_ANSWER_CLAIM = re.compile(
    r"<answer>|\\boxed\s*\{|\bfinal answer\s*(?:is|:)|^\s*answer\s*:", re.IGNORECASE | re.MULTILINE
)


def answers_inside_think(completions: Sequence[str], *, max_share: float = 0.2) -> Alarm | None:
    """Check for completions with an answer inside <think>: in tags, a box or as "final answer".

    The verifier reads the answer part alone, so this gains nothing; it shows that the policy drifts
    from the format (or that the teacher's data does this).

    Args:
        completions: decoded texts of one step; the think body is also read in malformed ones.
        max_share: alarm above this share.
    """
    if not completions:
        return None
    share = sum(_claims_in_think(text) for text in completions) / len(completions)
    return above_limit(
        "answer_inside_think",
        share,
        max_share,
        f"{share:.0%} of the completions give their answer inside <think> (limit {max_share:.0%}): "
        "check whether the teacher's completions do the same.",
    )


def _claims_in_think(text: str) -> bool:
    start = text.find(f"<{parts.THINK}>")
    if start < 0:
        return False
    end = text.find(f"</{parts.THINK}>", start)
    return bool(_ANSWER_CLAIM.search(text, start, end if end >= 0 else len(text)))


def discriminator_saturation(
    scores: Sequence[float], *, cap: float, max_share: float = 0.5
) -> Alarm | None:
    """Check for discriminator scores at their cap, where their gradient vanishes.

    Args:
        scores: of teachers and students, as logits after the cap.
        cap: c of the smooth cap c * tanh(s / c); above 0.95 c its slope is below a tenth.
        max_share: alarm if a larger share of the scores is there.

    Raises:
        ValueError: a score is not finite.
    """
    _require_finite(scores, "score")
    if not scores:
        return None
    share = sum(abs(score) > 0.95 * cap for score in scores) / len(scores)
    return above_limit(
        "discriminator_saturation",
        share,
        max_share,
        f"{share:.0%} of the scores are at the cap of {cap:g} (limit {max_share:.0%}), where their "
        "gradient vanishes: lower the discriminator's learning rate.",
    )


def discriminator_too_strong(
    teacher_scores: Sequence[float],
    student_scores: Sequence[float],
    *,
    max_accuracy: float = 0.98,
) -> Alarm | None:
    """Check for a teacher that wins nearly every pair: what separates them may be out of reach.

    Args:
        teacher_scores: one per pair.
        student_scores: one per pair, same order.
        max_accuracy: alarm above this share of pairs won.

    Raises:
        ValueError: lengths differ, or a score is not finite.
    """
    if len(teacher_scores) != len(student_scores):
        raise ValueError(
            f"{len(teacher_scores)} teacher and {len(student_scores)} student scores: give one of "
            "each per pair."
        )
    _require_finite([*teacher_scores, *student_scores], "score")
    if not teacher_scores:
        return None
    pairs = zip(teacher_scores, student_scores, strict=True)
    accuracy = sum(teacher > student for teacher, student in pairs) / len(teacher_scores)
    return above_limit(
        "discriminator_too_strong",
        accuracy,
        max_accuracy,
        f"the teacher wins {accuracy:.1%} of the pairs (limit {max_accuracy:.0%}): look for an "
        "artefact that reveals the teacher, or lower the discriminator's learning rate.",
    )


def _require_finite(values: Sequence[float], name: str) -> None:
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name} {i} is {value}, expected a finite number.")
