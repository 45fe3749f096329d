"""One alarm: a measured quantity that crossed its limit."""

from __future__ import annotations

from dataclasses import dataclass


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
