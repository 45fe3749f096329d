"""Tab Story, the first one: what each stage changed, on one example at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from demo.runs import folder
from demo.screens import answers, html, story
from demo.site import Header, Site, connect
from prism_lite.types import Sample

# The arrow keys press the buttons while this tab is shown and no field has the focus.
_KEYS = """() => document.addEventListener('keydown', event => {
  const id = {ArrowLeft: 'story-previous', ArrowRight: 'story-next'}[event.key];
  const button = id && document.getElementById(id);
  if (!button || !button.offsetParent || event.target.closest('input, textarea, [role=tab]')) return;
  button.click();
})"""


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    shown = gr.State(0)  # index of the example
    with gr.Row(elem_classes="story-top"):
        with gr.Column(scale=3, min_width=300):
            question = gr.HTML(elem_id="story-question")
            with gr.Row():
                previous = gr.Button("← Previous", elem_id="story-previous", min_width=90)
                following = gr.Button("Next →", elem_id="story-next", min_width=90)
        with gr.Column(scale=2, min_width=300, elem_classes="story-chart-box"):
            chart = gr.HTML(elem_id="story-chart")
        with gr.Column(scale=5, min_width=300, elem_classes="story-cards-box"):
            cards = gr.HTML(elem_id="story-cards")
    note = gr.HTML(elem_id="story-note")
    choose = gr.Button(
        "Choose examples with this run's model", visible=False, elem_id="story-choose"
    )
    screen = [shown, question, cards]

    def show_run(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        examples = _examples(path)
        text = _STORY if examples else _NO_STORY
        can_choose = not examples and folder.has_weights(path) and folder.is_finished(path)
        results = folder.read_json(path / "results.json")
        turning = [gr.Button(visible=len(examples) > 1) for _ in (previous, following)]
        return (
            *_screen(path, examples, 0), story.chart_html(results), html.note(text), *turning,
            gr.Button(visible=can_choose and not site.home.is_shared),
        )  # fmt: skip

    def step(offset: int) -> Any:
        def handler(run_id: str, index: int) -> tuple[Any, ...]:
            path = site.path(run_id)
            return _screen(path, _examples(path), index + offset)

        return handler

    def choose_examples(run_id: str) -> tuple[Any, ...]:
        from demo.record import write_examples  # imports torch

        path = site.path(run_id)
        model = site.load_model(path)
        with site.models.lock:
            write_examples(model, path)
        return show_run(run_id)

    outputs = [*screen, chart, note, previous, following, choose]
    header.on_run(show_run, outputs)
    connect(previous.click, step(-1), [header.run_choice, shown], screen)
    connect(following.click, step(1), [header.run_choice, shown], screen)
    connect(choose.click, choose_examples, [header.run_choice], outputs, is_slow=True)
    header.opened.then(None, None, None, js=_KEYS, queue=False, api_visibility="private")


_STORY = (
    "The most likely completions, on held-out pictures chosen because the stages differ; the chart has the "
    "figures over all of them. Underlined is what does not agree with the picture (caption), with the "
    "caption (think) or with the right answer."
)
_NO_STORY = (
    "No examples in this run yet: they are chosen with a button here once every stage is trained. The "
    "recorded sample, in the list above, has some."
)


def _examples(path: Path) -> list[Sample]:
    """Return the examples with recorded completions, or [] without a recording."""
    if not (path / "demo" / "compare.jsonl").is_file():
        return []
    return answers.examples(path)


def _screen(path: Path, examples: list[Sample], index: int) -> tuple[int, str, str]:
    """Return the index, the question and the cards of an example; the first follows the last."""
    if not examples:
        return 0, "", ""
    index %= len(examples)
    sample = examples[index]
    lines = {
        line["stage"]: line
        for line in folder.read_lines(path / "demo" / "compare.jsonl")
        if line["prompt_id"] == sample.id and line["temperature"] == 0
    }
    ordered = {stage: lines[stage] for stage in folder.shown_stages(path) if stage in lines}
    question = story.question_html(sample, index + 1, len(examples))
    return index, question, story.cards_html(sample, ordered)
