"""Tab Compare: one picture and question, answered by the base model and by each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from demo.models import drawing, questions
from demo.runs import folder
from demo.runs.folder import STAGE_TITLES
from demo.screens import answers, html, widgets
from demo.screens.answers import GREEDY, NUM_EXAMPLES, SAMPLED
from demo.screens.pictures import picture_file
from demo.site import Header, Site, connect
from prism_lite.runs.changes import change_rows
from prism_lite.runs.drift_report import HOW_TO_READ, drift_table
from prism_lite.types import EVALUATED_STAGES

EXAMPLE, DRAWING, UPLOAD = "Example", "Own drawing", "Own picture"
_CANVAS = (640, 200)
_MAX_SEED = 2**31
_STAGE_HELP = {
    "base": "before any training",
    "sft": "after imitating demonstrations",
    "control": "from SFT: verifiable rewards only, for as many updates",
    "align": "from SFT: adversarial alignment",
    "rlvr": "from Aligned: verifiable rewards",
}
_LEGEND = (
    '<div class="legend"><span class="c">C caption: what it sees</span>'
    '<span class="t">T think: what follows</span><span class="a">A answer</span></div>'
)


@dataclass(frozen=True)
class PictureForm:
    """The source of the picture; `boxes` contain the gallery, the sketchpad and the upload."""

    source: gr.Radio
    boxes: tuple[gr.Column, gr.Column, gr.Column]
    gallery: gr.Gallery
    example: gr.Dropdown
    pad_hint: gr.HTML
    pad: gr.Sketchpad
    upload: gr.File


@dataclass(frozen=True)
class QuestionForm:
    """The question and how completions are sampled."""

    question: gr.Dropdown
    truth: gr.Textbox
    seed: gr.Number
    tokens: gr.Radio
    ask: gr.Button
    stop: gr.Button


def build(site: Site, header: Header, tabs: gr.Tabs) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            picture = _picture_form()
        with gr.Column(scale=2, min_width=280):
            form = _question_form()
            model_input = gr.HTML(elem_id="model-input")
    note = gr.HTML(elem_id="compare-note")
    gr.HTML(_LEGEND)
    heads, control_column, answer_cells = _answer_columns()
    screen = [model_input, note, *answer_cells]
    with gr.Accordion("Held-out results of this run"):
        results = [widgets.table("held-out", wrap=True), gr.HTML()]
        with gr.Column() as changes_box:
            results += [widgets.table("changes", wrap=True), changes_box]
    with gr.Accordion("Drift meter of this run", open=False) as drift_box:
        results += [widgets.table("drift", wrap=True), gr.HTML(), drift_box]
    run_outputs = [picture.gallery, picture.example, form.question, picture.pad_hint, *results]
    run_outputs += [control_column, *heads]
    _connect_run(site, header, [*run_outputs, *screen])
    _connect_picture(picture, form)
    _connect_refreshes(site, header, picture, tabs)
    _connect_question(site, header, picture, form, screen)


def _picture_form() -> PictureForm:
    source = gr.Radio([EXAMPLE, DRAWING, UPLOAD], value=EXAMPLE, label="Picture", elem_id="source")
    with gr.Column() as example_box:
        gallery = widgets.gallery("Held-out examples", "examples", columns=4, rows=2, height=262)
        numbers = list(range(1, NUM_EXAMPLES + 1))
        example = gr.Dropdown(numbers, value=1, label="Example", elem_id="example")
    with gr.Column(visible=False) as drawing_box:
        pad_hint = gr.HTML()
        pad = gr.Sketchpad(
            value=Image.new("RGB", _CANVAS, "white"),  # without it the pen must be selected first
            label="Your drawing", type="pil", canvas_size=_CANVAS, fixed_canvas=True, layers=False,
            brush=gr.Brush(default_size=16, colors=["#000000"], color_mode="fixed"),
            height=300, elem_id="pad", buttons=[],
        )  # fmt: skip
    with gr.Column(visible=False) as upload_box:
        # a gr.Image would decode the file itself, without our limits and messages
        upload = gr.File(
            label="PNG, JPEG or WebP, at most 10 MiB", height=150, elem_id="upload",
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
        )  # fmt: skip
    boxes = (example_box, drawing_box, upload_box)
    return PictureForm(source, boxes, gallery, example, pad_hint, pad, upload)


def _question_form() -> QuestionForm:
    question = gr.Dropdown(
        list(questions.KIND_OF), label="Question", visible=False, elem_id="question"
    )
    truth = gr.Textbox(
        label="Which digits are they? (optional: to check the answers)", placeholder="3 7 1 4",
        max_length=20, visible=False, elem_id="truth",
    )  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_MAX_SEED, min_width=90)
        tokens = gr.Radio([GREEDY, SAMPLED], value=GREEDY, label="Tokens")
    with gr.Row():
        ask = gr.Button("Ask all stages", variant="primary", elem_id="ask")
        stop = gr.Button("Stop", elem_id="stop-answers")
    return QuestionForm(question, truth, seed, tokens, ask, stop)


def _answer_columns() -> tuple[list[gr.HTML], gr.Column, list[gr.Component]]:
    """Return the heads of the columns, the column of RLVR alone, and completion and marks of each stage."""
    heads: list[gr.HTML] = []
    cells: list[gr.Component] = []
    columns: dict[str, gr.Column] = {}
    settings = {"show_label": False, "show_inline_category": False}
    with gr.Row():
        for stage in EVALUATED_STAGES:
            with gr.Column(min_width=200, elem_classes="answer") as columns[stage]:
                heads.append(gr.HTML())
                cells.append(widgets.completion(STAGE_TITLES[stage], f"answer-{stage}", **settings))
                cells.append(gr.HTML(elem_id=f"marks-{stage}"))
    return heads, columns["control"], cells


def _head(path: Path, stage: str) -> str:
    """Return title and explanation of a stage's column."""
    text = _STAGE_HELP[stage]
    if stage == "rlvr":
        if folder.read_config(path).get("rlvr", {}).get("start") == "sft":
            text = "from SFT: verifiable rewards"
        if folder.keeps_game(path):
            text += " and discriminator"
    return f'<h3>{STAGE_TITLES[stage]}</h3><p class="stage-help">{text}</p>'


def _connect_run(site: Site, header: Header, outputs: list[Any]) -> None:
    """Show the examples, questions and results of the chosen run."""

    def show_run(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        samples = answers.examples(path)
        results = folder.read_json(path / "results.json")
        headers, rows = html.stages_table(results)
        text = "Nothing is evaluated yet: results appear after each stage of the training."
        if rows:
            text = (
                f"Shares of {results.get('n')} held-out prompts ± half of the 95 % interval, sampled at "
                "temperature 1 except for greedy accuracy."
            )
        config = folder.read_config(path)
        changes = change_rows(path, rlvr_start=config.get("rlvr", {}).get("start", "align"))
        if changes:
            text += " Below: what each stage changed, paired by prompt; * excludes zero."
        numbers = list(range(1, len(samples) + 1))
        files = [picture_file(sample.pictures[0].open()) for sample in samples]
        data = config["data"]
        # a model trained on files answers any question
        choices = questions.questions_of(data)
        return (
            list(zip(files, map(str, numbers), strict=True)),
            gr.Dropdown(choices=numbers, value=1 if samples else None),
            gr.Dropdown(
                choices=choices, value=next(iter(choices), None), allow_custom_value=not choices
            ),
            html.note(questions.pad_hint(data)),
            gr.Dataframe(value=rows or None, headers=headers),
            html.note(text),
            *_changes_table(changes),
            *drift_screen(results),
            gr.Column(visible="control" in folder.shown_stages(path)),
            *(_head(path, stage) for stage in EVALUATED_STAGES),
            *answers.recorded_screen(path, samples[0] if samples else None, GREEDY, 0),
        )

    header.on_run(show_run, outputs)


def _changes_table(rows: list[list[str]]) -> tuple[Any, gr.Column]:
    """Return the table of what each stage changed, hidden where fewer than two were evaluated."""
    if not rows:
        return gr.skip(), gr.Column(visible=False)
    header, *changes = rows
    titled = [
        [" - ".join(STAGE_TITLES.get(stage, stage) for stage in names.split(" - ")), *cells]
        for names, *cells in changes
    ]
    return gr.Dataframe(value=titled, headers=header), gr.Column(visible=True)


def drift_screen(results: Mapping[str, Any]) -> tuple[Any, str, gr.Accordion]:
    """Return the drift meter's table and how to read it, hidden where nothing was measured."""
    header, rows = drift_table(results)
    if not rows:
        return gr.skip(), "", gr.Accordion(visible=False)
    titled = [[STAGE_TITLES.get(stage, stage), *cells] for stage, *cells in rows]
    table = gr.Dataframe(value=titled, headers=["stage", *header[1:]])
    return table, html.note(HOW_TO_READ), gr.Accordion(visible=True)


def _connect_picture(picture: PictureForm, form: QuestionForm) -> None:
    """Show the fields of the chosen source, and take a clicked picture as the example."""

    def show_source(chosen: str) -> tuple[Any, ...]:
        is_own = chosen != EXAMPLE
        boxes = (gr.Column(visible=chosen == source) for source in (EXAMPLE, DRAWING, UPLOAD))
        return *boxes, gr.Dropdown(visible=is_own), gr.Textbox(visible=is_own)

    outputs = [*picture.boxes, form.question, form.truth]
    connect(picture.source.change, show_source, [picture.source], outputs)
    connect(picture.gallery.select, widgets.picked_number, None, [picture.example])


def _connect_refreshes(site: Site, header: Header, picture: PictureForm, tabs: gr.Tabs) -> None:
    """Stop the page's refreshing while the sketchpad is on the screen.

    The browser's sketchpad uploads its drawing about fifty times whenever any part of the page is updated,
    and answers would wait for that.
    """

    def choose(source: str) -> gr.Timer:
        return gr.Timer(active=source != DRAWING)

    def open_tab(source: str, event: gr.SelectData) -> gr.Timer:
        return gr.Timer(active=event.value != "Compare" or source != DRAWING)

    def show_loaded(source: str, run_id: str) -> str:
        """Return the badge, of a sketchpad's model once it is loaded."""
        path = site.path(run_id)
        if source == DRAWING and folder.has_weights(path):
            site.load_model(path)
        return header.show_status(run_id)

    chosen = connect(picture.source.change, choose, [picture.source], [header.tick])
    connect(chosen.then, show_loaded, [picture.source, header.run_choice], [header.badge])
    connect(tabs.select, open_tab, [picture.source], [header.tick])


def _connect_question(
    site: Site, header: Header, picture: PictureForm, form: QuestionForm, screen: list[Any]
) -> None:
    """Answer when the button is pressed or another example is chosen."""

    def answer(
        run_id: str, source: str, example: int | None, question: str | None, digits_text: str,
        seed_number: float | None, tokens: str, sketch: Any = None, upload: str | None = None,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        try:
            path = site.path(run_id)
            if seed_number is None:
                raise ValueError(f"no seed: enter a whole number from 0 to {_MAX_SEED}.")
            seed, sample = int(seed_number), None
            if source == EXAMPLE:
                samples = answers.examples(path)
                if samples:
                    if example is None or not 1 <= example <= len(samples):
                        raise ValueError(f"example {example}: choose one of 1 to {len(samples)}.")
                    sample = samples[example - 1]
                is_recorded = answers.is_recorded(path, sample, tokens, seed)
                if is_recorded or not folder.has_weights(path):
                    yield answers.recorded_screen(path, sample, tokens, seed)
                    return
            if site.models.get(path) is None and folder.has_weights(path):
                yield answers.waiting_screen()
            model = site.load_model(path)
            if sample is not None:
                image = sample.pictures[0].open()
            else:
                image = _own_picture(source, sketch, upload)
                sample, image = questions.visitor_sample(
                    model.config.data, image, question or "", digits_text
                )
            with site.models.lock:
                yield from answers.live_screens(model, sample, image, tokens, seed)
        except ValueError as error:
            yield answers.refusal_screen(str(error))
            raise gr.Error(str(error), duration=15, print_exception=False) from error

    answering = gr.on(
        [form.ask.click, picture.example.change],
        answer,
        [
            header.run_choice, picture.source, picture.example, form.question, form.truth, form.seed,
            form.tokens, picture.pad, picture.upload,
        ],
        screen,
        api_name="compare", show_progress="minimal", trigger_mode="once",
        concurrency_id="model", concurrency_limit=1,
    )  # fmt: skip
    form.stop.click(None, cancels=[answering], queue=False, api_visibility="private")


def _own_picture(source: str, sketch: Any, upload: str | None) -> Image.Image:
    if source == DRAWING:
        return questions.drawn_picture(sketch)
    if not upload:
        raise ValueError("no picture yet: upload a PNG, JPEG or WebP file.")
    return drawing.open_upload(upload)
