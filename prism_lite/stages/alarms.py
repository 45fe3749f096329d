"""The guards of guards.py in a training stage: what is checked at a step, logged and printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts
from prism_lite.discriminator.step import GameScores
from prism_lite.runs.folder import RunFolder
from prism_lite.stages import guards
from prism_lite.stages.guards import Alarm
from prism_lite.types import Group


class Alarms:
    """The alarms of one stage: logged at every step that raises them, printed the first time.

    Attributes:
        usual_num_tokens: mean completion length at the stage's first step, None before it.
    """

    def __init__(self, run: RunFolder, stage: str) -> None:
        self._console = run.console
        self._stage = stage
        self._printed: set[str] = set()
        lengths = (line.get("completions/mean_length") for line in run.metrics(stage))
        self.usual_num_tokens = next((length for length in lengths if length is not None), None)

    def report(self, alarms: Iterable[Alarm | None], step: int) -> dict[str, float]:
        """Print new alarms; return `alarms/NAME`, the value that crossed its limit, of all of them."""
        metrics = {}
        for alarm in filter(None, alarms):
            metrics[f"alarms/{alarm.name}"] = alarm.value
            if alarm.name not in self._printed:
                self._printed.add(alarm.name)
                self._console.print(
                    f"[bold red]alarm {alarm.name} in {self._stage} step {step}:[/] "
                    f"{alarm.message} (shown once; metrics: alarms/{alarm.name})",
                    highlight=False,
                )
        return metrics

    def of_rollouts(self, groups: Sequence[Group]) -> list[Alarm | None]:
        """Check for length collapse, loops, and answers inside think."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        texts = [rollout.text for rollout in rollouts]
        if self.usual_num_tokens is None:
            self.usual_num_tokens = sum(lengths) / len(lengths)
        return [
            guards.length_collapse(lengths, usual_num_tokens=self.usual_num_tokens),
            guards.repeated_text(texts),
            guards.answers_inside_think(texts),
        ]


def game_alarms(game: GameScores, *, score_cap: float) -> list[Alarm | None]:
    """Check for scores at their cap and for a discriminator that wins every pair."""
    teachers: list[float] = []
    students: list[float] = []
    for teacher_2, student_K2 in zip(game.teacher_P2, game.students, strict=True):
        students += student_K2.flatten().tolist()
        teachers += teacher_2.expand_as(student_K2).flatten().tolist()
    return [
        guards.discriminator_saturation([*teachers, *students], cap=score_cap),
        guards.discriminator_too_strong(teachers, students),
    ]


def cut_alarm(game: GameScores, *, max_part_tokens: int) -> Alarm | None:
    """Check for parts that the discriminator reads without their end."""
    if not game.student_lengths:
        return None
    share, message = about_cuts(game.teacher_lengths, game.student_lengths, max_part_tokens)
    return guards.above_limit("cut_parts", share, CUT_WARNING, message)
