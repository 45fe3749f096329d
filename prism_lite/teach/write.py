"""Write the rows as they end, and stop where the endpoint answers no row at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prism_lite.teach.ask import Outcome
from prism_lite.teach.journal import Journal
from prism_lite.teach.rows import output_row
from prism_lite.teach.settings import TeachSettings

_MOST_FAILED_IN_A_ROW = 20


def write_outcomes(
    outcomes: Iterable[Outcome], journal: Journal, settings: TeachSettings, folder: Path
) -> None:
    """Store how each row ended.

    Args:
        folder: of the file, from which the pictures' relative paths start.

    Raises:
        RuntimeError: many rows in a row got no reply.
    """
    num_failed = 0
    for outcome in outcomes:
        _finish(outcome, journal, settings, folder)
        num_failed = num_failed + 1 if outcome.failure else 0
        if num_failed == _MOST_FAILED_IN_A_ROW:
            raise RuntimeError(
                f"{num_failed} rows in a row got no reply ({outcome.failure}). Every reply that has come "
                "is stored: give the same command again when the endpoint answers."
            )


def _finish(outcome: Outcome, journal: Journal, settings: TeachSettings, folder: Path) -> None:
    task, progress = outcome.task, outcome.progress
    place, num_requests = task.sample.source, outcome.num_failed_requests
    if outcome.failure:
        journal.finish(
            task.key, "failed", place=place, reason=outcome.failure, num_requests=num_requests
        )
        return
    reason = progress.given_up[-1].reason if progress.given_up else ""
    if not progress.texts:
        end = progress.given_up[-1].kind
        assert end != "kept", "a kept reply is not given up"
        journal.finish(task.key, end, place=place, reason=reason)
        return
    row = output_row(task.sample, progress.texts, settings, folder)
    if reason:
        reason = f"{len(progress.given_up)} of {settings.num} completions given up: {reason}"
    journal.finish(task.key, "taught", place=place, reason=reason, row=row)
