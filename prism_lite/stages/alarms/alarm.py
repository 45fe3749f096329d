"""One alarm: a measured quantity that crossed its limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Alarm:
    """A measured quantity that crossed its limit.

    Attributes:
        name: fixed, for the metrics: "length_collapse", "zero_spread_groups", ...
        value: the quantity.
        limit: the threshold.
        message: one sentence with both and what to do.
        changes: what to change, as `retry_command` takes it; in it "STAGE." is the stage that
            the alarm is of, "DISCRIMINATOR." the section with its optimizer.
    """

    name: str
    value: float
    limit: float
    message: str
    changes: Mapping[str, str] = field(default_factory=dict)


def above_limit(
    name: str, value: float, limit: float, message: str, changes: Mapping[str, str] | None = None
) -> Alarm | None:
    """Return an alarm if `value` is above `limit`."""
    return Alarm(name, value, limit, message, changes or {}) if value > limit else None
