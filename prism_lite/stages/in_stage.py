"""Evaluation inside a stage, and the policy of the best one (`eval.every`, `eval.keep`).

Each evaluation is a line of metrics.jsonl of its own, under the number of the step it follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.data.task import TaskData
from prism_lite.models.backbone import Backbone
from prism_lite.processes import broadcast, on_first
from prism_lite.runs.card import write_model_card
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.plots import write_plots
from prism_lite.stages.evaluate import evaluate_inside


class InStageEvaluation:
    """The evaluations of one stage; with `eval.keep: best` the best policy so far, in CPU memory."""

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder,
        backbone: Backbone,
        task: TaskData,
        *,
        stage: str,
        num_steps: int,
    ) -> None:
        self._config, self._run, self._backbone, self._task = config, run, backbone, task
        self._stage, self._num_steps = stage, num_steps
        self._best: dict[str, Any] | None = None  # step and value
        self._best_policy: dict[str, Tensor] = {}

    def after_step(self, step: int) -> None:
        """Evaluate the policy after this step if it is due, log it, and keep the policy if it is best.

        Of equal evaluations the earliest is kept: the policy that is nearer to the stage's start.
        """
        eval_config = self._config.eval
        done = step + 1
        is_last = done == self._num_steps or self._run.ends_stage
        if done % eval_config.every and not is_last:
            return
        figures = broadcast(evaluate_inside(self._backbone, self._task, self._config))
        metrics = {f"eval/{name}": value for name, value in figures.items()}
        self._run.log(self._stage, step, metrics, is_step=False)
        on_first(lambda: write_plots(self._run, [self._stage]))
        on_first(lambda: write_model_card(self._run))
        if eval_config.keep == "last":
            return
        value = figures[eval_config.best_by]
        if self._best is None or value > self._best["value"]:
            self._best = {"step": step, "value": value}
            state = self._backbone.adapter_state()
            self._best_policy = {name: tensor.cpu() for name, tensor in state.items()}

    def finish(self) -> None:
        """Load the best policy into the backbone, and write the choice to results.json."""
        if self._best is None:
            return
        by = self._config.eval.best_by
        values = {
            line["step"]: line[f"eval/{by}"]
            for line in self._run.metrics(self._stage)
            if f"eval/{by}" in line
        }
        last = max(values)
        choice = {
            "step": self._best["step"],
            "by": by,
            "value": self._best["value"],
            "last": values[last],
            "evaluations": [[step, values[step]] for step in sorted(values)],
        }
        if choice["step"] != last:
            self._backbone.load_adapter_state(self._best_policy)
        results = self._run.results()
        results.setdefault("kept", {})[self._stage] = choice
        self._run.write_results(results)
        say(
            self._run.console,
            f"{self._stage}: the policy after step {choice['step'] + 1} is kept, {by} "
            f"{choice['value']:.3f} in the evaluation inside the stage (last step {choice['last']:.3f})",
        )

    def saved(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Return the tensors and the values that a checkpoint saves, by name."""
        if self._best is None:
            return {}, {}
        return {"best": self._best_policy}, {"best": self._best}

    def restore(
        self, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
    ) -> None:
        """Restore what a checkpoint has of `saved`."""
        if "best" in values:
            self._best, self._best_policy = values["best"], dict(tensors["best"])
