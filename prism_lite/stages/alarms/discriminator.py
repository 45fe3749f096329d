"""Alarms about the discriminator and the scores that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prism_lite.stages.alarms.alarm import Alarm, above_limit

if TYPE_CHECKING:  # it imports torch
    from prism_lite.discriminator.step import GameScores


_MAX_CAPPED_SHARE = 0.5  # of scores above _CAPPED * cap, where their slope is below a tenth
_CAPPED = 0.95
_MAX_PAIR_ACCURACY = 0.98  # of the discriminator on its own batch
_MIN_HELDOUT_ACCURACY = 0.5  # of the discriminator on held-out pairs: below it, noise is reinforced
_MAX_LOST_PANELS = 3  # in a row


def discriminator_saturation(scores: Sequence[float], *, cap: float) -> Alarm | None:
    """Check for discriminator scores at their cap, where their gradient vanishes.

    Args:
        scores: of teachers and students, as logits after the cap.
        cap: c of the smooth cap c * tanh(s / c).
    """
    if not scores:
        return None
    share = sum(abs(score) > _CAPPED * cap for score in scores) / len(scores)
    return above_limit(
        "discriminator_saturation",
        share,
        _MAX_CAPPED_SHARE,
        f"{share:.0%} of the scores are at the cap of {cap:g} (limit {_MAX_CAPPED_SHARE:.0%}), where their "
        "gradient vanishes: repeat with a lower learning rate of the discriminator.",
        {"DISCRIMINATOR.optim.learning_rate": "*0.5"},
    )


def discriminator_too_strong(
    teacher_scores: Sequence[float], student_scores: Sequence[float]
) -> Alarm | None:
    """Check for a teacher that wins nearly every pair: what separates them may be out of reach.

    Args:
        teacher_scores, student_scores: one of each per pair, in the same order.
    """
    if not teacher_scores:
        return None
    pairs = zip(teacher_scores, student_scores, strict=True)
    accuracy = sum(teacher > student for teacher, student in pairs) / len(teacher_scores)
    return above_limit(
        "discriminator_too_strong",
        accuracy,
        _MAX_PAIR_ACCURACY,
        f"the teacher wins {accuracy:.1%} of the pairs (limit {_MAX_PAIR_ACCURACY:.0%}): look for an "
        "artefact that reveals the teacher, or repeat with a lower learning rate of the discriminator. "
        "(Where the gate's untrained probe is near 1, the backbone alone distinguishes them: no rate "
        "changes that.)",
        {"DISCRIMINATOR.optim.learning_rate": "*0.5"},
    )


def losing_discriminator(accuracies: Sequence[tuple[float, float]]) -> Alarm | None:
    """Check for a discriminator that no longer tells the teacher on held-out pairs, on either channel.

    Args:
        accuracies: held-out pair accuracy (perception, reasoning) of each panel so far.
    """
    recent = accuracies[-_MAX_LOST_PANELS:]
    highest = max((max(pair) for pair in recent), default=1.0)
    if len(recent) < _MAX_LOST_PANELS or highest >= _MIN_HELDOUT_ACCURACY:
        return None
    return Alarm(
        "losing_discriminator",
        highest,
        _MIN_HELDOUT_ACCURACY,
        f"the teacher wins at most {highest:.0%} of the held-out pairs on either channel, in "
        f"{_MAX_LOST_PANELS} panels in a row (limit {_MIN_HELDOUT_ACCURACY:.0%}): its scores are noise "
        "by now. Repeat with align.early_stop=true, fewer align.steps or a larger "
        "discriminator.optim.learning_rate.",
        {"align.early_stop": "true"},
    )


def game_alarms(game: GameScores, *, score_cap: float) -> list[Alarm | None]:
    """Check for scores at their cap and for a discriminator that wins every pair that is not a tie."""
    teachers: list[float] = []
    students: list[float] = []
    is_tie: list[bool] = []
    rows = zip(game.teacher_P2, game.students, game.ties, strict=True)
    for teacher_2, student_K2, tie_K2 in rows:
        students += student_K2.flatten().tolist()
        teachers += teacher_2.expand_as(student_K2).flatten().tolist()
        is_tie += tie_K2.flatten().tolist()
    pairs = zip(teachers, students, is_tie, strict=True)
    counted = [(teacher, student) for teacher, student, tie in pairs if not tie]
    return [
        discriminator_saturation([*teachers, *students], cap=score_cap),
        discriminator_too_strong([t for t, _ in counted], [s for _, s in counted]),
    ]


def cut_parts(game: GameScores, *, max_part_tokens: int) -> Alarm | None:
    """Check for parts that the discriminator reads without their end."""
    if not game.student_lengths:
        return None
    # Imports torch, which the demo's page does without.
    from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts

    share, message = about_cuts(game.teacher_lengths, game.student_lengths, max_part_tokens)
    return above_limit("cut_parts", share, CUT_WARNING, message)
