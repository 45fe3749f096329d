"""What the Train tab shows of a run, read from its files: steps, state, figures, curves, rollouts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from demo.runs import folder, samples
from demo.runs.folder import STAGE_TITLES
from demo.runs.jobs import Job
from demo.screens import curves, html
from demo.screens.pictures import picture_file

STALE_S = 60.0
NUM_PROMPTS = 3  # whose newest rollouts are shown
MAX_CELL = 300
FIGURES = (
    ("step time", "step_time", "{:.1f} s", "Seconds of the last optimizer step, sampling included."),
    ("loss", "loss", "{:.3f}", "Loss of the last step; in alignment and RLVR its size says little."),
    (
        "pair accuracy, perception", "disc/pair_accuracy_perception", "{:.2f}",
        "Share of pairs where the teacher's caption scores higher; 0.5: the discriminator is fooled.",
    ),
    (
        "pair accuracy, reasoning", "disc/pair_accuracy_reasoning", "{:.2f}",
        "Share of pairs where the teacher's reasoning scores higher; 0.5: fooled.",
    ),
    ("reward", "reward", "{:.3f}", "Mean weighted reward of the last step's rollouts."),
    (
        "ratio clipped", "clip_ratio/region_mean", "{:.3f}",
        "Share of tokens whose probability ratio was clipped in the last update.",
    ),
    ("malformed", "malformed_rate", "{:.1%}", "Share of rollouts without the three parts in order."),
    ("generated", "gen_tokens_per_s", "{:.0f} tokens/s", "Sampling speed over all rollouts."),
    ("trained", "train_tokens_per_s", "{:.0f} tokens/s", "Tokens through forward and backward."),
    ("peak memory", "mem/peak_gib", "{:.2f} GiB", "Most held: in this stage, or on a CPU so far."),
)  # fmt: skip
STATES = {
    "recorded": "A recorded run that ships with the demo: real figures, no weights. "
    "Start a run of your own below.",
    "finished": "Finished: every stage is trained and evaluated.",
    "training": "Training in its own process: closing this page, or the demo, does not stop it.",
    "paused": "Paused: it holds its memory and goes on with Resume.",
    "stopped": "Not running and not finished. Resume goes on from its last checkpoint.",
    "elsewhere": "Another program is writing to this run (its last step is under a minute old).",
}


def seen(path: Path, job: Job | None, printed: str) -> tuple[Any, ...]:
    """Equal as long as nothing that this tab shows has changed; the first item is of the curves."""
    return folder.signature(path), job, len(printed), _is_stale(path)


def screen(
    path: Path, run_id: str, job: Job | None, printed: str, *, same_curves: bool
) -> tuple[Any, ...]:
    """Steps, status, figures, a frame per curve panel, rollouts (3), what was printed."""
    is_training = job is not None and job.run == run_id
    stages = folder.progress(path)
    state = _state(path, is_training)
    active = next((s.stage for s in stages if not s.is_done), None)
    metrics = folder.read_metrics(path)
    note = STATES[state]
    if job is not None and not is_training:
        note = f"{job.run!r} is training now; this is {run_id!r}. {note}"
    kind = {"training": "good", "stopped": "warn", "paused": "warn"}.get(state, "plain")
    frames = [
        gr.skip() if same_curves else curves.panel_frame(panel, metrics) for panel in curves.PANELS
    ]
    return (
        html.stepper(stages, active if state != "recorded" else None, state),
        html.note(note, kind=kind),
        _figures(metrics),
        *frames,
        *_newest_rollouts(path),
        printed or "Nothing printed here: this run was not started from this page.",
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
    """Whether nothing was logged for a while."""
    file = path / "metrics.jsonl"
    return not file.exists() or time.time() - file.stat().st_mtime > STALE_S


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return html.note("No step yet: figures come with the first one.")
    last = metrics[-1]
    where = f"{STAGE_TITLES.get(last['stage'], last['stage'])} {last['step'] + 1}"
    items = [("stage and step", where, "The last optimizer step that was logged.")]
    items += [
        (title, pattern.format(last[key]), text)
        for title, key, pattern, text in FIGURES
        if key in last
    ]
    return html.figures(items)


def _newest_rollouts(path: Path) -> tuple[Any, ...]:
    """Where they are from, pictures, and of a few prompts the best and the worst completion."""
    kept = [
        (stage, steps[-1])
        for stage in ("rlvr", "align")
        if (steps := folder.rollout_steps(path, stage))
    ]
    if not kept:
        return html.note("No rollouts yet: they come with alignment and RLVR."), None, None
    stage, step = kept[0]
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in folder.read_rollouts(path, stage, step):
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    pictures, table = [], []
    for number, (prompt_id, group) in enumerate(list(by_prompt.items())[:NUM_PROMPTS], 1):
        sample = samples.sample_by_id(path, prompt_id)
        if sample is not None and sample.pictures:
            file = picture_file(sample.pictures[0].open())
            pictures.append((file, f"{number} · {sample.question}"))
        for pick in (max, min):
            row = pick(group, key=lambda record: record["advantage"])
            cells = [row["completion"][:MAX_CELL], html.number(row["advantage"])]
            table.append([str(number), *cells, row["finish_reason"]])
    text = (
        f"Newest rollouts: {STAGE_TITLES[stage]} step {step + 1}; of each prompt the best and the worst by "
        "advantage."
    )
    return html.note(text), pictures, table
