"""Tab Compare: one picture and question, answered by the base and by each stage, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from demo import drawing, folder, rows, view
from demo.folder import POLICY_STAGES, STAGE_TITLES
from demo.live import Model, sample_for
from demo.marks import Marks, mark
from demo.site import Site, in_words
from prism_lite.data import wording
from prism_lite.types import Sample

NUM_EXAMPLES = 8
EXAMPLE, DRAWING, UPLOAD = "Example", "Own drawing", "Own picture"
GREEDY, SAMPLED = "most likely", "sampled at temperature 1"
PIVOT = 5
KIND_OF = {text.format(pivot=PIVOT): kind for kind, text in wording.QUESTIONS.items()}
CANVAS = (640, 200)
STAGE_HELP = {
    "base": "before any training",
    "sft": "after imitation",
    "align": "after the adversarial game",
    "rlvr": "after verifiable rewards",
}


def build(site: Site, page: gr.Blocks, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(elem_classes="compare-top"):
        with gr.Column(scale=3, min_width=300):
            source = gr.Radio(
                [EXAMPLE, DRAWING, UPLOAD], value=EXAMPLE, label="Picture", elem_id="source"
            )
            with gr.Column(visible=True) as example_box:
                gallery = gr.Gallery(
                    label="Held-out examples",
                    columns=4,
                    rows=2,
                    height=225,
                    allow_preview=False,
                    object_fit="contain",
                    buttons=[],
                    elem_id="examples",
                    interactive=False,
                )
                example = gr.Dropdown(
                    list(range(1, NUM_EXAMPLES + 1)), value=1, label="Example", elem_id="example"
                )
            with gr.Column(visible=False) as drawing_box:
                pad = gr.Sketchpad(
                    value=_blank_sheet(),  # with a sheet the pen is ready; without one it must be chosen
                    label="Write 3 or 4 digits side by side, with gaps between them",
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
        with gr.Column(scale=2, min_width=280):
            question = gr.Dropdown(
                list(KIND_OF), label="Question", visible=False, elem_id="question"
            )
            truth = gr.Textbox(
                label="Which digits are they? (optional: lets the answers be checked)",
                placeholder="3 7 1",
                max_length=20,
                visible=False,
                elem_id="truth",
            )
            with gr.Row():
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=2**31, min_width=90
                )
                how = gr.Radio([GREEDY, SAMPLED], value=GREEDY, label="Tokens are")
            with gr.Row():
                ask = gr.Button("Ask all stages", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", elem_id="stop-answers")
            seen = gr.Image(
                label="What the model sees",
                height=96,
                interactive=False,
                buttons=[],
                elem_id="seen",
            )
    message = gr.HTML(elem_id="compare-note")
    gr.HTML(
        '<div class="legend"><span class="c">C caption: what it sees</span>'
        '<span class="t">T think: what follows</span><span class="a">A answer</span></div>'
    )
    cells: list[gr.Component] = []
    with gr.Row(elem_classes="answers"):
        for stage in POLICY_STAGES:
            with gr.Column(min_width=240, elem_classes="answer"):
                gr.HTML(
                    f'<h3 title="{STAGE_HELP[stage]}">{STAGE_TITLES[stage]}</h3>'
                    f'<p class="stage-help">{STAGE_HELP[stage]}</p>'
                )
                cells.append(
                    gr.HighlightedText(
                        label=STAGE_TITLES[stage],
                        show_label=False,
                        color_map=view.PART_COLORS,
                        show_inline_category=False,
                        show_whitespaces=True,
                        elem_id=f"answer-{stage}",
                        elem_classes="completion",
                    )
                )
                cells.append(gr.HTML(elem_id=f"marks-{stage}"))
    with gr.Accordion("Held-out figures of this run", open=True):
        table = gr.Dataframe(
            interactive=False, show_label=False, elem_id="held-out", buttons=[], wrap=True
        )
        table_note = gr.HTML()

    def show_run(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        samples = _examples(path)
        header, body = view.stages_table(folder.read_results(path))
        count = folder.read_results(path).get("n")
        explain = (
            f"Shares over {count} held-out prompts with half of the 95 % interval; sampled at "
            "temperature 1 except the greedy column."
            if body
            else "Nothing evaluated yet: figures come after each stage of the training."
        )
        is_digits = folder.read_config(path)["data"]["task"] == "digits"
        return (
            [(sample.pictures[0].open(), f"{i + 1}") for i, sample in enumerate(samples)],
            1,
            gr.Dropdown(
                choices=list(KIND_OF) if is_digits else [],
                value=next(iter(KIND_OF)) if is_digits else None,
                allow_custom_value=not is_digits,
            ),
            gr.Dataframe(value=body or None, headers=header),
            view.note(explain),
            *_recorded(path, samples, 0, GREEDY, 0),
        )

    def show_source(chosen: str) -> tuple[Any, ...]:
        own = chosen != EXAMPLE
        return (
            gr.Column(visible=chosen == EXAMPLE),
            gr.Column(visible=chosen == DRAWING),
            gr.Column(visible=chosen == UPLOAD),
            gr.Dropdown(visible=own),
            gr.Textbox(visible=own),
        )

    def pick(event: gr.SelectData) -> int:
        return event.index + 1

    def answer(
        run_id: str,
        chosen_source: str,
        chosen_example: int | None,
        asked: str | None,
        digits_text: str,
        seed_number: float,
        tokens: str,
        drawn: Any = None,
        uploaded: str | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        path = site.path(run_id)
        site.models.prepare(path)
        model = site.models.get(path)
        number = _seed(seed_number)
        if chosen_source == EXAMPLE:
            samples = _examples(path)
            index = _index_of(chosen_example, len(samples))
            if model is None:
                yield _recorded(path, samples, index, tokens, number)
                return
            sample, strip = samples[index], samples[index].pictures[0].open()
        else:
            if model is None:
                raise ValueError(
                    f"own pictures need the run's model: {site.models.readiness(path).detail}. Choose a "
                    "run trained on this machine, or wait until its model is loaded."
                )
            picture = _drawn(drawn) if chosen_source == DRAWING else _uploaded(uploaded)
            sample, strip = _own_sample(model, picture, asked or "", digits_text)
        site.demand_idle_gpu()
        with site.models.lock:
            yield from _live(model, sample, strip, tokens, number)

    outputs = [seen, message, *cells]
    for event in (page.load, run.change):
        event(
            in_words(show_run),
            [run],
            [gallery, example, question, table, table_note, *outputs],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    source.change(
        show_source,
        [source],
        [example_box, drawing_box, upload_box, question, truth],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    gallery.select(pick, None, [example], queue=False, api_visibility="private")
    inputs = [run, source, example, question, truth, seed, how, pad, upload]
    asking = gr.on(
        [ask.click, example.change],
        in_words(answer),
        inputs,
        outputs,
        api_name="compare",
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
        trigger_mode="once",
    )
    stop.click(None, cancels=[asking], queue=False, api_visibility="private")


def _examples(path: Path) -> list[Sample]:
    """The held-out prompts that have recorded completions, else the first ones."""
    recorded = folder.read_lines(path / "demo" / "compare.jsonl")
    ids = list(dict.fromkeys(line["prompt_id"] for line in recorded))
    found = [rows.sample_by_id(path, prompt_id) for prompt_id in ids]
    known = [sample for sample in found if sample is not None and sample.pictures]
    if known:
        return known
    return [s for s in rows.samples_of(path, "held-out prompts") if s.pictures][:NUM_EXAMPLES]


def _recorded(
    path: Path, samples: list[Sample], index: int, tokens: str, seed: int
) -> tuple[Any, ...]:
    """What the run folder holds of an example: picture, note, and per stage completion and marks."""
    if not samples:
        return (
            None,
            view.note("This run has no held-out prompts: set data.heldout to see examples here."),
            *[None, ""] * len(POLICY_STAGES),
        )
    sample = samples[index]
    lines = [
        line
        for line in folder.read_lines(path / "demo" / "compare.jsonl")
        if line["prompt_id"] == sample.id
        and line["seed"] == seed
        and line["temperature"] == (0.0 if tokens == GREEDY else 1.0)
    ]
    text = f"{sample.question} Gold answer: {sample.answer}. Recorded completions of this run."
    if not lines:
        kept = folder.read_lines(path / "demo" / "compare.jsonl")
        seeds = sorted({line["seed"] for line in kept if line["temperature"] > 0})
        text = f"{sample.question} Gold answer: {sample.answer}. " + (
            f"Recorded are seed 0, most likely tokens, and seeds {', '.join(map(str, seeds))}, sampled."
            if kept
            else "Press “Ask all stages” once the model is loaded; nothing was recorded here."
        )
    found: list[Any] = []
    for stage in POLICY_STAGES:
        line = next((line for line in lines if line["stage"] == stage), None)
        if line is None:
            found += [None, ""]
            continue
        marks = Marks(**line["marks"])  # by the verifiers of the time of recording
        found += [
            view.part_spans(line["completion"]),
            view.marks_line(marks, num_tokens=line["num_tokens"], seconds=None, note="recorded"),
        ]
    return (sample.pictures[0].open(), view.note(text), *found)


def _live(
    model: Model, sample: Sample, strip: Image.Image, tokens: str, seed: int
) -> Iterator[tuple[Any, ...]]:
    """Ask the stages one after another on the one backbone, streaming."""
    gold = f" Gold answer: {sample.answer}." if sample.answer is not None else ""
    message = view.note(f"{sample.question}{gold} Live, seed {seed}, the same for every stage.")
    shown: list[Any] = [None, ""] * len(POLICY_STAGES)
    for place, stage in enumerate(POLICY_STAGES):
        if stage not in model.stages:
            shown[2 * place + 1] = view.note("not trained yet")
            continue
        temperature = 0.0 if tokens == GREEDY else 1.0
        for part in model.answer(stage, sample, seed=seed, temperature=temperature):
            shown[2 * place] = view.part_spans(part.text)
            marks = mark(part.text, part.finish_reason, sample) if part.finish_reason else None
            shown[2 * place + 1] = view.marks_line(
                marks, num_tokens=part.num_tokens, seconds=part.seconds
            )
            yield (strip, message, *shown)
    yield (strip, message, *shown)


def _own_sample(
    model: Model, picture: Image.Image, question: str, digits_text: str
) -> tuple[Sample, Image.Image]:
    """A sample of a visitor's picture, and the picture as the model gets it."""
    data = model.config.data
    if data.task != "digits":
        return sample_for(question, picture), picture
    least, most = data.digits.min_digits, data.digits.max_digits
    strip, num_digits = drawing.strip_of(picture, min_digits=least, max_digits=most)
    if question not in KIND_OF:
        raise ValueError(
            "choose one of the listed questions: the tiny model has learned no others."
        )
    digits = [int(character) for character in digits_text if character.isdigit()]
    if digits and len(digits) != num_digits:
        raise ValueError(
            f"you name {len(digits)} digits, the drawing has {num_digits}: name each one once, left to "
            "right, or leave the field empty."
        )
    sample = sample_for(question, strip, digits=digits, pivot=PIVOT, kind=KIND_OF[question])
    return sample, strip


def _blank_sheet() -> Image.Image:
    return Image.new("RGB", CANVAS, "white")


def _drawn(drawn: Any) -> Image.Image:
    composite = (drawn or {}).get("composite")
    if composite is None:
        raise ValueError("nothing is drawn yet: write digits on the pad.")
    sheet = Image.new("RGB", composite.size, "white")
    layer = composite.convert("RGBA")
    sheet.paste(layer, mask=layer.getchannel("A"))
    return sheet


def _uploaded(path: str | None) -> Image.Image:
    if not path:
        raise ValueError("no picture yet: upload a PNG or JPEG.")
    return drawing.open_upload(path)


def _seed(value: float | None) -> int:
    if value is None or not 0 <= value <= 2**31:
        raise ValueError(f"seed {value}: expected a whole number from 0 to {2**31}.")
    return int(value)


def _index_of(choice: int | None, num: int) -> int:
    if choice is None or not 1 <= choice <= num:
        raise ValueError(f"example {choice}: this run has {num}; choose one of them.")
    return choice - 1
