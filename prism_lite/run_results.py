"""What a run writes beside its checkpoints: figures of each policy, plots, the card, exports."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prism_lite.console import say
from prism_lite.data.task import TaskData
from prism_lite.discriminator.model import save_discriminator
from prism_lite.files import write_text
from prism_lite.models.device import release_unused
from prism_lite.processes import on_first
from prism_lite.runs import card, plots, report
from prism_lite.runs.checkpoint import disk_errors
from prism_lite.runs.drift_report import drift_line
from prism_lite.runs.folder import RunFolder
from prism_lite.stages.context import Context
from prism_lite.stages.drift import measure_drift
from prism_lite.stages.evaluate import evaluate, evaluated_samples
from prism_lite.stages.memory import context_with_less_memory, free_memory
from prism_lite.types import POLICY_STAGES, STAGES


def evaluate_policy(context: Context, stage: str, seconds: float | None) -> Context:
    """Evaluate the loaded policy, if it is wanted, with less memory where that is short.

    Args:
        seconds: training time of the stage; None where it is not known.

    Returns:
        The context that later stages use.
    """
    if stage not in context.config.eval.stages:
        return context
    if not context.task.heldout:
        say(context.run.console, "no held-out rows (data.heldout): nothing to evaluate")
        return context
    while True:
        try:
            _add_figures(context, stage, seconds)
            return context
        except (RuntimeError, MemoryError) as error:
            activity = f"the evaluation of stage {stage}"
            context = context_with_less_memory(context, error, activity)
        free_memory()


def _add_figures(context: Context, stage: str, seconds: float | None) -> None:
    """Evaluate the loaded policy and add its figures to results.json."""
    config, folder = context.config, context.run
    release_unused(context.backbone.device)
    started_s = time.monotonic()
    evaluation = evaluate(
        context.backbone, context.task, config, with_progress=folder.with_progress, stage=stage
    )
    evaluated_s = time.monotonic()
    drift = measure_drift(context, stage, evaluation.groups) if config.eval.drift else None
    drift_share = (time.monotonic() - evaluated_s) / (time.monotonic() - started_s)
    figures = evaluation.figures
    if seconds is not None:
        figures["seconds"] = seconds
    results = {
        "task": config.data.task,
        "n": len(evaluated_samples(context.task, config)),
        "seed": config.seed,
        "stages": {},
        **folder.results(),
    }
    results["stages"][stage] = figures
    if drift is not None:
        results.setdefault("drift", {})[stage] = drift
    folder.write_rates(stage, evaluation.rates)
    folder.write_results(results)
    say(folder.console, report.stage_line(stage, figures))
    if drift is not None:
        base = results["drift"].get("base", {})
        line = drift_line(drift, base if stage != "base" else {})
        say(folder.console, f"{line} ({drift_share:.0%} of the evaluation's time)")


@contextmanager
def adds_seconds(folder: RunFolder, stage: str) -> Iterator[None]:
    """Add the time spent to the stage's seconds in results.json, also when it stops halfway."""
    started_s = time.monotonic()
    try:
        yield
    finally:
        results = folder.results()
        seconds = results.setdefault("seconds", {})
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started_s
        folder.write_results(results)


def write_reports(context: Context) -> None:
    """Write the plots, and the model card that names what has run so far."""
    on_first(lambda: plots.write_plots(context.run))
    on_first(lambda: card.write_model_card(context.run))


def write_skipped(folder: RunFolder, task: TaskData) -> None:
    """Write skipped.jsonl: every row that this session's data leaves out, and why."""
    path = folder.path / "skipped.jsonl"
    if not task.skipped:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in task.skipped)
    write_text(path, "".join(f"{line}\n" for line in lines))
    say(folder.console, f"{path} lists the {len(task.skipped)} skipped rows")


def write_exports(context: Context) -> None:
    """Write policy/ (plain PEFT) and discriminator/ from the last finished stages."""
    folder = context.run
    finished = [stage for stage in STAGES if folder.is_done(stage)]
    with_policy = [stage for stage in finished if stage in POLICY_STAGES]
    if with_policy:
        context.load_policy(with_policy[-1])
        with disk_errors(folder.path / "policy"):
            context.backbone.save_policy(str(folder.path / "policy"))
    for stage in reversed(finished):
        tensors = folder.load_final(stage)
        if "discriminator" in tensors:
            config = context.config.discriminator
            with disk_errors(folder.path / "discriminator"):
                save_discriminator(folder.path / "discriminator", tensors["discriminator"], config)
            return
