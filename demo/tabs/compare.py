"""Tab Compare: one picture and question, answered by the base and by each stage, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency
from PIL import Image

from demo.models import questions
from demo.models.questions import KIND_OF
from demo.runs import folder
from demo.runs.folder import POLICY_STAGES, STAGE_TITLES
from demo.screens import answers, html, widgets
from demo.screens.answers import GREEDY, NUM_EXAMPLES, SAMPLED
from demo.screens.pictures import picture_file
from demo.screens.widgets import QUIET
from demo.site import Site, in_words

EXAMPLE, DRAWING, UPLOAD = "Example", "Own drawing", "Own picture"
CANVAS = (640, 200)
STAGE_HELP = {
    "base": "before any training",
    "sft": "after imitation",
    "align": "after the adversarial game",
    "rlvr": "after verifiable rewards",
}
LEGEND = (
    '<div class="legend"><span class="c">C caption: what it sees</span>'
    '<span class="t">T think: what follows</span><span class="a">A answer</span></div>'
)


@dataclass(frozen=True)
class PictureForm:
    """Where the picture comes from; `boxes` hold the gallery, the pad and the upload."""

    source: gr.Radio
    boxes: tuple[gr.Column, gr.Column, gr.Column]
    gallery: gr.Gallery
    example: gr.Dropdown
    pad_hint: gr.HTML
    pad: gr.Sketchpad
    upload: gr.File


@dataclass(frozen=True)
class QuestionForm:
    """What is asked, and how."""

    question: gr.Dropdown
    truth: gr.Textbox
    seed: gr.Number
    how: gr.Radio
    ask: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class HeldOut:
    """The run's evaluation."""

    table: gr.Dataframe
    note: gr.HTML


def build(site: Site, opened: Dependency, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(elem_classes="compare-top"):
        with gr.Column(scale=3, min_width=300):
            picture = _picture_form()
        with gr.Column(scale=2, min_width=280):
            form = _question_form()
            seen = gr.Image(
                label="What the model sees", height=120, interactive=False, buttons=[],
                elem_id="seen",
            )  # fmt: skip
    message = gr.HTML(elem_id="compare-note")
    gr.HTML(LEGEND)
    screen = [seen, message, *_answer_columns()]
    held_out = _held_out()
    _wire_run(site, opened, run, picture, form, held_out, screen)
    _wire_picture(picture, form)
    _wire_asking(site, run, picture, form, screen)


def _picture_form() -> PictureForm:
    source = gr.Radio([EXAMPLE, DRAWING, UPLOAD], value=EXAMPLE, label="Picture", elem_id="source")
    with gr.Column(visible=True) as example_box:
        gallery = gr.Gallery(
            label="Held-out examples", columns=4, rows=2, height=262, allow_preview=False,
            object_fit="contain", buttons=[], elem_id="examples", interactive=False,
        )  # fmt: skip
        example = gr.Dropdown(
            list(range(1, NUM_EXAMPLES + 1)), value=1, label="Example", elem_id="example"
        )
    with gr.Column(visible=False) as drawing_box:
        pad_hint = gr.HTML()
        pad = gr.Sketchpad(
            value=_blank_sheet(),  # with a sheet the pen is ready; without one it must be chosen
            label="Your drawing",
            type="pil",
            canvas_size=CANVAS,
            fixed_canvas=True,
            layers=False,
            brush=gr.Brush(default_size=16, colors=["#000000"], color_mode="fixed"),
            height=300,
            elem_id="pad",
            buttons=[],
        )
    with gr.Column(visible=False) as upload_box:
        # a gr.Image would decode the file itself, without a limit and without our words
        upload = gr.File(
            label="PNG, JPEG or WebP, at most 10 MiB",
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
            type="filepath",
            height=150,
            elem_id="upload",
        )
    return PictureForm(
        source, (example_box, drawing_box, upload_box), gallery, example, pad_hint, pad, upload
    )


def _question_form() -> QuestionForm:
    question = gr.Dropdown(list(KIND_OF), label="Question", visible=False, elem_id="question")
    truth = gr.Textbox(
        label="Which digits are they? (optional: lets the answers be checked)",
        placeholder="3 7 1",
        max_length=20,
        visible=False,
        elem_id="truth",
    )
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, min_width=90)
        how = gr.Radio([GREEDY, SAMPLED], value=GREEDY, label="Tokens are")
    with gr.Row():
        ask = gr.Button("Ask all stages", variant="primary", elem_id="ask")
        stop = gr.Button("Stop", elem_id="stop-answers")
    return QuestionForm(question, truth, seed, how, ask, stop)


def _answer_columns() -> list[gr.Component]:
    """Completion and marks of each stage."""
    cells: list[gr.Component] = []
    with gr.Row(elem_classes="answers"):
        for stage in POLICY_STAGES:
            title, text = STAGE_TITLES[stage], STAGE_HELP[stage]
            with gr.Column(min_width=240, elem_classes="answer"):
                gr.HTML(f'<h3>{title}</h3><p class="stage-help">{text}</p>')
                cells.append(
                    widgets.completion(
                        title,
                        elem_id=f"answer-{stage}",
                        show_label=False,
                        show_inline_category=False,
                    )
                )
                cells.append(gr.HTML(elem_id=f"marks-{stage}"))
    return cells


def _held_out() -> HeldOut:
    with gr.Accordion("Held-out figures of this run", open=True):
        widgets.sideways()
        table = gr.Dataframe(
            interactive=False, show_label=False, elem_id="held-out", buttons=[], wrap=True
        )
        return HeldOut(table, gr.HTML())


def _wire_run(
    site: Site,
    opened: Dependency,
    run: gr.Dropdown,
    picture: PictureForm,
    form: QuestionForm,
    held_out: HeldOut,
    screen: list[Any],
) -> None:
    """Another run brings its own examples, questions and figures."""

    def show_run(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        samples = answers.examples(path)
        results = folder.read_results(path)
        header, body = html.stages_table(results)
        explain = (
            f"Shares over {results.get('n')} held-out prompts with half of the 95 % interval; sampled at "
            "temperature 1 except the greedy column."
            if body
            else "Nothing evaluated yet: figures come after each stage of the training."
        )
        data = folder.read_config(path)["data"]
        is_digits = data["task"] == "digits"
        return (
            [
                (picture_file(sample.pictures[0].open()), f"{number}")
                for number, sample in enumerate(samples, 1)
            ],
            gr.Dropdown(choices=list(range(1, len(samples) + 1)), value=1 if samples else None),
            gr.Dropdown(
                choices=list(KIND_OF) if is_digits else [],
                value=next(iter(KIND_OF)) if is_digits else None,
                allow_custom_value=not is_digits,
            ),
            html.note(questions.pad_hint(data)),
            gr.Dataframe(value=body or None, headers=header),
            html.note(explain),
            *answers.recorded_screen(path, samples, 0, GREEDY, 0),
        )

    outputs = [picture.gallery, picture.example, form.question, picture.pad_hint]
    outputs += [held_out.table, held_out.note]
    for event in (opened.then, run.change):
        event(in_words(show_run), [run], [*outputs, *screen], **QUIET)


def _wire_picture(picture: PictureForm, form: QuestionForm) -> None:
    """The chosen source shows its own fields; a picture that is clicked is the example."""

    def show_source(chosen: str) -> tuple[Any, ...]:
        is_own = chosen != EXAMPLE
        boxes = (gr.Column(visible=chosen == source) for source in (EXAMPLE, DRAWING, UPLOAD))
        return *boxes, gr.Dropdown(visible=is_own), gr.Textbox(visible=is_own)

    def pick(event: gr.SelectData) -> int:
        return event.index + 1

    outputs = [*picture.boxes, form.question, form.truth]
    picture.source.change(show_source, [picture.source], outputs, **QUIET)
    picture.gallery.select(pick, None, [picture.example], **QUIET)


def _wire_asking(
    site: Site, run: gr.Dropdown, picture: PictureForm, form: QuestionForm, screen: list[Any]
) -> None:
    """The button asks; another example shows what is known of it, or asks."""

    def answer(
        run_id: str, source: str, example: int | None, asked: str | None, digits_text: str,
        seed_number: float, tokens: str, drawn: Any = None, uploaded: str | None = None,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        path, seed = site.path(run_id), _seed(seed_number)
        samples = answers.examples(path) if source == EXAMPLE else []
        index = _index_of(example, len(samples)) if source == EXAMPLE else 0
        if source == EXAMPLE and not folder.has_weights(path):
            yield answers.recorded_screen(path, samples, index, tokens, seed)
            return
        if site.models.get(path) is None and folder.has_weights(path):
            yield answers.waiting_screen(
                "The model is on its way; it answers as soon as it is there."
            )
        model = site.model_of(path)
        if source == EXAMPLE:
            sample, strip = samples[index], samples[index].pictures[0].open()
        else:
            is_drawn = source == DRAWING
            image = (
                questions.drawn_picture(drawn) if is_drawn else questions.uploaded_picture(uploaded)
            )
            sample, strip = questions.own_sample(model.config.data, image, asked or "", digits_text)
        with site.models.lock:
            yield from answers.live_screens(model, sample, strip, tokens, seed)

    asking = gr.on(
        [form.ask.click, picture.example.change],
        in_words(answer),
        [
            run, picture.source, picture.example, form.question, form.truth, form.seed, form.how,
            picture.pad, picture.upload,
        ],
        screen,
        api_name="compare",
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
        trigger_mode="once",
    )  # fmt: skip
    form.stop.click(None, cancels=[asking], queue=False, api_visibility="private")


def _blank_sheet() -> Image.Image:
    return Image.new("RGB", CANVAS, "white")


def _seed(value: float | None) -> int:
    if value is None or not 0 <= value <= 2**31:
        raise ValueError(f"seed {value}: expected a whole number from 0 to {2**31}.")
    return int(value)


def _index_of(choice: int | None, num: int) -> int:
    if choice is None or not 1 <= choice <= num:
        raise ValueError(f"example {choice}: this run has {num}; choose one of them.")
    return choice - 1
