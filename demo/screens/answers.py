"""The Compare tab's answers: recorded completions of an example, or live ones as they grow.

A screen is a tuple: picture, note, then completion and marks for each of EVALUATED_STAGES.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from demo.runs import folder, samples
from demo.screens import html
from demo.screens.errors import wrong_step
from demo.screens.marks import Marks, mark, marks_line
from demo.screens.pictures import titled_picture
from prism_lite.digits.wording import DigitsFacts
from prism_lite.types import EVALUATED_STAGES, Sample

if TYPE_CHECKING:
    from demo.models.model import Model

NUM_EXAMPLES = 8
GREEDY, SAMPLED = "greedy", "sampled"


def examples(path: Path) -> list[Sample]:
    """Return the held-out prompts with recorded completions, or else the first ones."""
    recorded = folder.read_lines(path / "demo" / "compare.jsonl")
    ids = dict.fromkeys(line["prompt_id"] for line in recorded)
    known = [samples.sample_by_id(path, prompt_id) for prompt_id in ids]
    with_picture = [sample for sample in known if sample is not None and sample.pictures]
    if with_picture:
        return with_picture
    heldout = samples.samples_of(path, "held-out prompts")
    return [sample for sample in heldout if sample.pictures][:NUM_EXAMPLES]


def is_recorded(path: Path, sample: Sample | None, tokens: str, seed: int) -> bool:
    """Return whether the completions were recorded with these settings; also True without a sample."""
    return sample is None or bool(_recorded_lines(path, sample, tokens, seed))


def _recorded_lines(
    path: Path, sample: Sample, tokens: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the recorded completion of each stage."""
    settings = (sample.id, seed, 0.0 if tokens == GREEDY else 1.0)
    return {
        line["stage"]: line
        for line in folder.read_lines(path / "demo" / "compare.jsonl")
        if (line["prompt_id"], line["seed"], line["temperature"]) == settings
    }


def recorded_screen(path: Path, sample: Sample | None, tokens: str, seed: int) -> tuple[Any, ...]:
    """Return the screen of a sample's recorded completions; the sample is None if there is none."""
    if sample is None:
        text = "This run has no held-out prompts: set data.heldout to see examples here."
        return "", html.note(text), *[html.NO_COMPLETION, ""] * len(EVALUATED_STAGES)
    recorded = folder.read_lines(path / "demo" / "compare.jsonl")
    lines = _recorded_lines(path, sample, tokens, seed)
    text = "Press “Ask all stages” once the model is loaded; this run has no recorded completions."
    if not folder.has_weights(path):
        text = "No stage of this run is trained yet: its model can be asked after the first one."
    if lines:
        text = (
            "Recorded completions of this run, on examples chosen because the stages differ; the table "
            "below has the rates over all held-out prompts."
        )
    elif recorded:
        seeds = sorted({line["seed"] for line in recorded if line["temperature"] > 0})
        text = (
            "Nothing was recorded for this seed. Recorded are greedy completions with seed 0, and sampled "
            f"ones with seeds {', '.join(map(str, seeds))}."
        )
    cells: list[Any] = []
    for stage in EVALUATED_STAGES:
        line = lines.get(stage)
        if line is None:
            cells += [html.NO_COMPLETION, ""]
            continue
        marks = Marks(**line["marks"])  # by the verifiers at the time of the recording
        cells.append(html.part_spans(line["completion"]))
        step, num_tokens = wrong_step(sample, line["completion"]), line["num_tokens"]
        cells.append(marks_line(marks, num_tokens=num_tokens, note="recorded", wrong_step=step))
    is_silent = not lines and not folder.has_weights(path)
    note = html.note(f"{_about(sample)} {text}", tone="warn" if is_silent else "plain")
    return _model_input(sample.pictures[0].open()), note, *cells


def _model_input(image: Image.Image) -> str:
    return titled_picture("What the model sees", image)


def _about(sample: Sample) -> str:
    """Return the question, and what is known of the truth."""
    text = html.question(sample.question)
    if isinstance(sample.facts, DigitsFacts):
        text += f" Digits: {' '.join(map(str, sample.facts.digits))}."
    return text if sample.answer is None else f"{text} Gold answer: {sample.answer}."


def refusal_screen(text: str) -> tuple[Any, ...]:
    """Return a screen with this sentence and no completions, so that no earlier ones stay below it."""
    return "", html.note(text, tone="warn"), *[html.NO_COMPLETION, ""] * len(EVALUATED_STAGES)


def waiting_screen() -> tuple[Any, ...]:
    """Return a screen that only changes the note."""
    text = "The model is being loaded and answers as soon as it is ready."
    return gr.skip(), html.note(text), *[gr.skip()] * (2 * len(EVALUATED_STAGES))


def live_screens(
    model: Model, sample: Sample, image: Image.Image, tokens: str, seed: int
) -> Iterator[tuple[Any, ...]]:
    """Ask the stages one after another and yield their growing completions.

    The first and the last screen are complete. Those between update only the stage that is being
    sampled, because sending all of them would cost more than the sampling.
    """
    note = html.note(f"{_about(sample)} Live, with seed {seed} for every stage.")
    cells: list[Any] = []
    for stage in EVALUATED_STAGES:
        text = "waiting" if stage in model.stages else "not trained yet"
        cells += [html.NO_COMPLETION, html.note(text)]
    yield _model_input(image), note, *cells
    temperature = 0.0 if tokens == GREEDY else 1.0
    for column, stage in enumerate(EVALUATED_STAGES):
        if stage not in model.stages:
            continue
        changed = slice(2 * column, 2 * column + 2)
        for answer in model.answer(stage, sample, seed=seed, temperature=temperature):
            is_done = bool(answer.finish_reason)
            marks = mark(answer.text, answer.finish_reason, sample) if is_done else None
            line = marks_line(
                marks, num_tokens=answer.num_tokens, seconds=answer.seconds,
                wrong_step=wrong_step(sample, answer.text) if is_done else "",
            )  # fmt: skip
            cells[changed] = html.part_spans(answer.text), line
            sent: list[Any] = [gr.skip()] * len(cells)
            sent[changed] = cells[changed]
            yield gr.skip(), gr.skip(), *sent
    yield _model_input(image), note, *cells
