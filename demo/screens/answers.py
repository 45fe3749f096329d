"""What the tab Compare shows: recorded completions of an example, or the stages' answers as they grow.

A screen is a tuple: picture, note, then completion and marks of each of POLICY_STAGES.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from demo.runs import folder
from demo.runs import samples as rows
from demo.runs.folder import POLICY_STAGES
from demo.screens import html
from demo.screens.pictures import picture_file
from demo.screens.verdicts import Marks, mark
from prism_lite.types import Sample

if TYPE_CHECKING:
    from demo.models.model import Model

NUM_EXAMPLES = 8
GREEDY, SAMPLED = "most likely", "sampled at temperature 1"


def examples(path: Path) -> list[Sample]:
    """The held-out prompts that have recorded completions, else the first ones."""
    recorded = folder.read_lines(path / "demo" / "compare.jsonl")
    ids = list(dict.fromkeys(line["prompt_id"] for line in recorded))
    found = [rows.sample_by_id(path, prompt_id) for prompt_id in ids]
    known = [sample for sample in found if sample is not None and sample.pictures]
    if known:
        return known
    return [s for s in rows.samples_of(path, "held-out prompts") if s.pictures][:NUM_EXAMPLES]


def recorded_screen(
    path: Path, samples: list[Sample], index: int, tokens: str, seed: int
) -> tuple[Any, ...]:
    """What the run folder holds of an example."""
    if not samples:
        return (
            None,
            html.note("This run has no held-out prompts: set data.heldout to see examples here."),
            *[None, ""] * len(POLICY_STAGES),
        )
    sample = samples[index]
    kept = folder.read_lines(path / "demo" / "compare.jsonl")
    lines = {
        line["stage"]: line
        for line in kept
        if line["prompt_id"] == sample.id
        and line["seed"] == seed
        and line["temperature"] == (0.0 if tokens == GREEDY else 1.0)
    }
    if lines:
        text = "Recorded completions of this run."
    elif kept:
        seeds = sorted({line["seed"] for line in kept if line["temperature"] > 0})
        text = (
            f"Nothing is recorded for this seed: there are seed 0 with most likely tokens, and seeds "
            f"{', '.join(map(str, seeds))} sampled."
        )
    else:
        text = "Press “Ask all stages” once the model is loaded; nothing was recorded here."
    cells: list[Any] = []
    for stage in POLICY_STAGES:
        cells += _recorded_cells(lines[stage]) if stage in lines else [None, ""]
    note = html.note(f"{sample.question} Gold answer: {sample.answer}. {text}")
    return (picture_file(sample.pictures[0].open()), note, *cells)


def _recorded_cells(line: dict[str, Any]) -> list[Any]:
    marks = Marks(**line["marks"])  # by the verifiers of the time of recording
    return [
        html.part_spans(line["completion"]),
        html.marks_line(marks, num_tokens=line["num_tokens"], seconds=None, note="recorded"),
    ]


def waiting_screen(text: str) -> tuple[Any, ...]:
    """A note, and nothing else changed."""
    return gr.skip(), html.note(text), *[gr.skip()] * (2 * len(POLICY_STAGES))


def live_screens(
    model: Model, sample: Sample, strip: Image.Image, tokens: str, seed: int
) -> Iterator[tuple[Any, ...]]:
    """Ask the stages one after another on the one backbone, streaming.

    The first screen and the last are whole; between them only the stage that speaks is sent, because
    sending all of it would cost more than sampling it.
    """
    gold = f" Gold answer: {sample.answer}." if sample.answer is not None else ""
    message = html.note(f"{sample.question}{gold} Live, seed {seed}, the same for every stage.")
    cells: list[Any] = []
    for stage in POLICY_STAGES:
        text = "waiting" if stage in model.stages else "not trained yet"
        cells += [None, html.note(text)]
    head = (picture_file(strip), message)
    yield (*head, *cells)
    temperature = 0.0 if tokens == GREEDY else 1.0
    for place, stage in enumerate(POLICY_STAGES):
        if stage not in model.stages:
            continue
        for part in model.answer(stage, sample, seed=seed, temperature=temperature):
            marks = mark(part.text, part.finish_reason, sample) if part.finish_reason else None
            line = html.marks_line(marks, num_tokens=part.num_tokens, seconds=part.seconds)
            cells[2 * place : 2 * place + 2] = html.part_spans(part.text), line
            sent: list[Any] = [gr.skip()] * len(cells)
            sent[2 * place : 2 * place + 2] = cells[2 * place : 2 * place + 2]
            yield (gr.skip(), gr.skip(), *sent)
    yield (*head, *cells)
