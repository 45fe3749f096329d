"""The alarms of one stage: logged at every step that raises them, printed the first time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prism_lite.console import say
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.retry import retry_command
from prism_lite.stages.alarms.alarm import Alarm
from prism_lite.stages.alarms.completions import (
    answers_inside_think,
    length_collapse,
    malformed_completions,
    repeated_text,
    truncated_completions,
)
from prism_lite.types import Group


class Alarms:
    """The alarms of one stage: logged at every step that raises them, printed the first time.

    Attributes:
        usual_num_tokens: mean completion length at the stage's first step, None before it.
    """

    def __init__(self, run: RunFolder, stage: str) -> None:
        self._run, self._console = run, run.console
        self._limit = run.config.sampling.max_completion_tokens
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
                say(
                    self._console,
                    f"alarm {alarm.name} in {self._stage} step {step}: {alarm.message} (shown once; "
                    f"metrics: alarms/{alarm.name})",
                    "bold red",
                )
                if command := retry_command(self._run, self._by_stage(alarm.changes)):
                    say(self._console, f"  to repeat it so: {command}")
        return metrics

    def _by_stage(self, changes: Mapping[str, str]) -> dict[str, str]:
        policy = "rlvr" if self._stage == "control" else self._stage
        discriminator = "warmup" if self._stage == "warmup" else "discriminator"
        return {
            key.replace("STAGE", policy).replace("DISCRIMINATOR", discriminator): value
            for key, value in changes.items()
        }

    def of_rollouts(self, groups: Sequence[Group]) -> list[Alarm | None]:
        """Check for completions that are cut or malformed, length collapse, loops, answers in think."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        texts = [rollout.text for rollout in rollouts]
        if self.usual_num_tokens is None:
            self.usual_num_tokens = sum(lengths) / len(lengths)
        return [
            length_collapse(lengths, usual_num_tokens=self.usual_num_tokens),
            repeated_text(texts),
            answers_inside_think(texts),
            truncated_completions([r.finish == "length" for r in rollouts], limit=self._limit),
            malformed_completions(rollouts),
        ]
