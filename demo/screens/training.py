"""The Train tab's content, read from the files of a run: progress, numbers, curves, rollouts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from demo.runs import folder, samples
from demo.runs.folder import STAGE_TITLES
from demo.runs.process import TrainingProcess
from demo.screens import curves, html
from demo.screens.pictures import picture_file

STALE_S = 60.0
NUM_PROMPTS = 3  # whose newest rollouts are shown
MAX_CELL = 300
# Name, metric, format, explanation.
FIGURES = (
    ("step time", "step_time", "{:.1f} s", "Duration of the last optimizer step, with sampling."),
    ("loss", "loss", "{:.3f}", "Loss of the last step; in alignment and RLVR it says little."),
    (
        "pair accuracy, perception", "disc/pair_accuracy_perception", "{:.2f}",
        "Share of pairs in which the teacher's caption scores higher; at 0.5 the discriminator is fooled.",
    ),
    (
        "pair accuracy, reasoning", "disc/pair_accuracy_reasoning", "{:.2f}",
        "Share of pairs in which the teacher's reasoning scores higher; at 0.5 it is fooled.",
    ),
    ("reward", "reward", "{:.3f}", "Mean weighted reward of the last step's rollouts."),
    (
        "ratio clipped", "clip_ratio/region_mean", "{:.3f}",
        "Share of tokens whose probability ratio was clipped in the last update.",
    ),
    ("malformed", "malformed_rate", "{:.1%}", "Share of rollouts without the three parts in order."),
    ("generated", "gen_tokens_per_s", "{:.0f} tokens/s", "Sampling speed over all rollouts."),
    ("trained", "train_tokens_per_s", "{:.0f} tokens/s", "Tokens through forward and backward."),
    ("peak memory", "mem/peak_gib", "{:.2f} GiB", "Peak of this stage; on a CPU, of the process."),
)  # fmt: skip
STATES = {
    "recorded": "A recorded run that ships with the demo: real results, no weights. "
    "Start a run of your own below.",
    "finished": "Finished: every stage is trained and evaluated.",
    "training": "Training as a separate process: closing this page, or the demo, does not stop it.",
    "paused": "Paused: it keeps its memory. Resume continues the training.",
    "stopped": "Not running and not finished. Resume continues from its last checkpoint.",
    "elsewhere": "Another program is writing to this run (its last step is less than a minute old).",
}
TONES = {"training": "good", "stopped": "warn", "paused": "warn"}


def state_of_screen(path: Path, process: TrainingProcess | None, output: str) -> tuple[Any, ...]:
    """Return a value that changes whenever the screen does; its first item is about the curves."""
    return folder.signature(path), process, len(output), _is_stale(path)


def screen(
    path: Path,
    run_id: str,
    process: TrainingProcess | None,
    output: str,
    *,
    same_curves: bool,
) -> tuple[Any, ...]:
    """Return stepper, note, numbers, a plot per panel, rollouts (3 values) and the training's output."""
    is_training = process is not None and process.run_id == run_id
    stages = folder.progress(path)
    state = _state(path, is_training)
    active = next((s.stage for s in stages if not s.is_done), None)
    metrics = folder.read_metrics(path)
    text = STATES[state]
    if process is not None and not is_training:
        text = f"{process.run_id!r} is training now; this is {run_id!r}. {text}"
    return (
        html.stepper(stages, active, state),
        html.note(text, tone=TONES.get(state, "plain")),
        _figures(metrics),
        *(gr.skip() if same_curves else _plot(panel, metrics) for panel in curves.PANELS),
        *_newest_rollouts(path),
        output or "No output here: this run was not started from this page.",
    )


def _state(path: Path, is_training: bool) -> str:
    if path == folder.SAMPLE_RUN:
        return "recorded"
    if is_training:
        return "paused" if folder.control_command(path) == "pause" else "training"
    if folder.is_finished(path):
        return "finished"
    return "stopped" if _is_stale(path) else "elsewhere"


def _is_stale(path: Path) -> bool:
    """Return whether nothing was logged for a while."""
    file = path / "metrics.jsonl"
    return not file.exists() or time.time() - file.stat().st_mtime > STALE_S


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return html.note("No step yet: the numbers appear with the first one.")
    last = metrics[-1]
    step = f"{STAGE_TITLES.get(last['stage'], last['stage'])} {last['step'] + 1}"
    items = [
        (name, pattern.format(last[key]), text)
        for name, key, pattern, text in FIGURES
        if key in last
    ]
    return html.figures([("stage and step", step, "The last optimizer step logged."), *items])


def _plot(panel: curves.Panel, metrics: Sequence[Mapping[str, Any]]) -> gr.LinePlot:
    frame, colors = curves.panel_plot(panel, metrics)
    return gr.LinePlot(value=frame, color_map=colors)


def _newest_rollouts(path: Path) -> tuple[Any, ...]:
    """Return a note, pictures, and the best and the worst completion of a few prompts."""
    saved = [
        (stage, steps[-1])
        for stage in ("rlvr", "align")
        if (steps := folder.rollout_steps(path, stage))
    ]
    if not saved:
        return html.note("No rollouts yet: they come with alignment and RLVR."), None, None
    stage, step = saved[0]
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in folder.read_rollouts(path, stage, step):
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    pictures, table = [], []
    for number, (prompt_id, group) in enumerate(list(by_prompt.items())[:NUM_PROMPTS], 1):
        sample = samples.sample_by_id(path, prompt_id)
        if sample is not None and sample.pictures:
            file = picture_file(sample.pictures[0].open())
            pictures.append((file, f"{number} · {sample.question}"))
        for select in (max, min):
            record = select(group, key=lambda record: record["advantage"])
            cells = [record["completion"][:MAX_CELL], html.number(record["advantage"])]
            table.append([str(number), *cells, record["finish_reason"]])
    text = (
        f"Newest rollouts: {STAGE_TITLES[stage]} step {step + 1}; for each prompt the completions with the "
        "highest and the lowest advantage."
    )
    return html.note(text), pictures, table
