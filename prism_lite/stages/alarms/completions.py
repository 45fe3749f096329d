"""Alarms about the completions of one step: their lengths, form and text."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from prism_lite import parts
from prism_lite.parts import Malformed
from prism_lite.stages.alarms.alarm import Alarm, above_limit
from prism_lite.types import Rollout

_MIN_LENGTH_SHARE = 0.4  # of the usual completion length
_RUN_WORDS = 4  # words or punctuation marks of a run that may repeat
_MAX_REPEATED = 0.5  # a completion with a larger share of repeated runs loops
_MAX_LOOPING_SHARE = 0.1  # of completions that loop
_MAX_CLAIMING_SHARE = 0.2  # of completions with an answer inside think
_MAX_TRUNCATED_SHARE = 0.2  # of completions that are cut at the length limit
_MAX_MALFORMED_SHARE = 0.5  # of completions, beside those that are cut
_WORD = re.compile(r"\w+|[^\w\s]")
_ANSWER_CLAIM = re.compile(
    r"<answer>|\\boxed\s*\{|\bfinal answer\s*(?:is|:)|^\s*answer\s*:", re.IGNORECASE | re.MULTILINE
)


def length_collapse(num_tokens: Sequence[int], *, usual_num_tokens: float) -> Alarm | None:
    """Check for completions far shorter than usual: the policy found that short answers pay.

    Args:
        num_tokens: lengths of this step's completions, in tokens.
        usual_num_tokens: mean length at the start of the stage (or of the teacher).
    """
    if not num_tokens or usual_num_tokens <= 0:
        return None
    share = statistics.fmean(num_tokens) / usual_num_tokens
    if share >= _MIN_LENGTH_SHARE:
        return None
    return Alarm(
        "length_collapse",
        share,
        _MIN_LENGTH_SHARE,
        f"completions are {share:.0%} of their usual length ({usual_num_tokens:.0f} tokens), below "
        f"{_MIN_LENGTH_SHARE:.0%}: read some rollouts; repeat with a lower learning rate, or a larger "
        "rlvr.rewards.format.",
        {"STAGE.optim.learning_rate": "*0.5"},
    )


def truncated_completions(is_truncated: Sequence[bool], *, limit: int) -> Alarm | None:
    """Check for completions that are cut at the length limit: they have no answer to reward.

    Args:
        is_truncated: of each completion.
        limit: `sampling.max_completion_tokens`.
    """
    if not is_truncated:
        return None
    share = sum(is_truncated) / len(is_truncated)
    return above_limit(
        "truncated_completions",
        share,
        _MAX_TRUNCATED_SHARE,
        f"{share:.0%} of the completions are cut at sampling.max_completion_tokens = {limit} (limit "
        f"{_MAX_TRUNCATED_SHARE:.0%}) and have no answer: repeat with a larger limit; if they repeat "
        "themselves, see repeated_text.",
        {"sampling.max_completion_tokens": "*2"},
    )


def malformed_completions(rollouts: Sequence[Rollout]) -> Alarm | None:
    """Check for completions that end by themselves and lack the parts."""
    ended = [rollout for rollout in rollouts if rollout.finish == "end" and not rollout.is_teacher]
    if not ended:
        return None
    malformed = [r.parts.reason for r in ended if isinstance(r.parts, Malformed)]
    share = len(malformed) / len(ended)
    if share <= _MAX_MALFORMED_SHARE:
        return None
    reason = statistics.mode(malformed)
    return Alarm(
        "malformed_completions",
        share,
        _MAX_MALFORMED_SHARE,
        f"{share:.0%} of the completions are malformed (limit {_MAX_MALFORMED_SHARE:.0%}), most often: "
        f"{reason}. The policy does not know the format yet: repeat with more SFT (sft.steps), on "
        "demonstrations with <caption>, <think> and <answer>.",
        {"sft.steps": "*2"},
    )


def repeated_share(text: str) -> float:
    """Return the share of a text's word runs that occurred in it before, near 1 for a loop.

    A text of fewer than two runs' length has none.
    """
    words = _WORD.findall(text)
    num_runs = len(words) - _RUN_WORDS + 1
    if num_runs <= _RUN_WORDS:
        return 0.0
    return 1.0 - len({tuple(words[i : i + _RUN_WORDS]) for i in range(num_runs)}) / num_runs


def repeated_text(completions: Sequence[str]) -> Alarm | None:
    """Check a step's completions for texts that repeat themselves."""
    if not completions:
        return None
    share = sum(repeated_share(text) > _MAX_REPEATED for text in completions) / len(completions)
    return above_limit(
        "repeated_text",
        share,
        _MAX_LOOPING_SHARE,
        f"{share:.0%} of the completions repeat themselves (limit {_MAX_LOOPING_SHARE:.0%}): read some, "
        "and repeat with a lower learning rate or sampling.temperature.",
        {"STAGE.optim.learning_rate": "*0.5"},
    )


def answers_inside_think(completions: Sequence[str]) -> Alarm | None:
    """Check a step's completions for an answer inside <think>: in tags, a box or as "final answer".

    The verifier reads the answer part alone, so this gains nothing; it shows that the policy drifts
    from the format (or that the teacher's data does this). Malformed completions are read too.
    """
    if not completions:
        return None
    share = sum(_claims_in_think(text) for text in completions) / len(completions)
    return above_limit(
        "answer_inside_think",
        share,
        _MAX_CLAIMING_SHARE,
        f"{share:.0%} of the completions give their answer inside <think> (limit "
        f"{_MAX_CLAIMING_SHARE:.0%}): "
        "check whether the teacher's completions do the same.",
    )


def _claims_in_think(text: str) -> bool:
    start = text.find(f"<{parts.THINK}>")
    if start < 0:
        return False
    end = text.find(f"</{parts.THINK}>", start)
    return bool(_ANSWER_CLAIM.search(text, start, end if end >= 0 else len(text)))
