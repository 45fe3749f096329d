"""Alarms about a supervised loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from prism_lite.stages.alarms.alarm import Alarm, above_limit

_FEWEST_STEPS_JUDGED, _MOST_STEPS_JUDGED = 5, 10  # the last ones
_NUM_ERRORS = 3.0  # standard errors: batches of rows differ in their loss
_SFT_WORSE = 1.1  # of the loss at the start
_NEAR_CHANCE = 0.02  # of ln V
_ZERO_GRADIENT = 1e-6


def diverged_sft(
    losses: Sequence[float], grad_norm: float, *, vocab_size: int, optim: str
) -> Alarm | None:
    """Check for a supervised loss above its start, or at that of a guess with a gradient of zero.

    Args:
        losses: of the stage's steps so far.
        grad_norm: of the last step.
        vocab_size: V; ln V is the loss of a uniform guess.
        optim: the setting of the learning rate, for the message.
    """
    if not losses:
        return None
    chance, last = math.log(vocab_size), losses[-1]
    again = (
        f"repeat with a lower {optim}, or look at the demonstrations with `prism-lite data check`"
    )
    if not math.isfinite(last) or (
        abs(last - chance) < _NEAR_CHANCE * chance and grad_norm < _ZERO_GRADIENT
    ):
        return Alarm(
            "sft_at_chance",
            last,
            chance,
            f"the loss is {last:.2f}, that of a guess among {vocab_size} tokens is {chance:.2f}, and the "
            f"gradient is {grad_norm:.1g}: the policy is destroyed and learns nothing more; {again}.",
            {optim: "*0.1"},
        )
    recent = losses[1:][-_MOST_STEPS_JUDGED:]
    if len(recent) < _FEWEST_STEPS_JUDGED:
        return None
    start, now = losses[0], statistics.fmean(recent)  # (the first one is before any update)
    error = statistics.stdev(recent) * math.sqrt(1 + 1 / len(recent))
    return above_limit(
        "sft_diverges",
        now,
        max(_SFT_WORSE * start, start + _NUM_ERRORS * error),
        f"the mean loss of the last {len(recent)} steps is {now:.2f}, above that of the first one, "
        f"{start:.2f}: training diverges; {again}.",
        {optim: "*0.1"},
    )
