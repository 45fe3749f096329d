"""Tab Train: start, watch, pause and resume a run. The page only reads and writes the run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from demo.runs import folder, process
from demo.runs.folder import SAMPLE_ID
from demo.screens import curves, html, training, widgets
from demo.site import Header, Site, connect, errors_on_page
from prism_lite.recipe import recipe_names


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    stepper = gr.HTML(elem_id="stepper")
    status = gr.HTML(elem_id="train-status")
    with gr.Row():
        for title, action in (
            ("Pause", site.trainer.pause),
            ("Resume", site.trainer.resume),
            ("Stop and save", site.trainer.stop),
        ):
            button = gr.Button(title, elem_id=title.split()[0].lower(), min_width=100)
            connect(button.click, _control(site, action), [header.run_choice], None)
    with gr.Accordion("Start a new run", open=False, elem_id="new-run"):
        _new_run(site, header, status)
    figures = widgets.figures("train-figures")
    _connect_watching(site, header, [stepper, status, figures, *_plots(), *_rollouts(), _output()])


def _control(site: Site, action: Callable[[str], str]) -> Callable[[str], None]:
    def handler(run_id: str) -> None:
        if run_id == SAMPLE_ID:
            raise ValueError("this is a recording: choose or start a run of your own.")
        if action == site.trainer.resume:
            site.models.free_gpu()
        gr.Info(action(run_id))

    return handler


def _new_run(site: Site, header: Header, status: gr.HTML) -> None:
    """Lay out the form for a new run; it shows the command, starts it, and follows the new run."""
    with gr.Row():
        name = gr.Textbox(
            label="Run name", placeholder="first-try", max_length=40, elem_id="run-name"
        )
        recipe = gr.Dropdown(recipe_names(), value="tiny", label="Recipe", elem_id="recipe")
    with gr.Row():
        numbers = [
            gr.Number(
                None, label=title, info=text, precision=0, minimum=0, min_width=130,
                placeholder="recipe", elem_id=f"setting-{key.replace('.', '-')}",
            )
            for key, title, text in process.FORM_SETTINGS
        ]  # fmt: skip
    line = gr.Textbox(
        label="The same as a command", interactive=False, buttons=["copy"], elem_id="command"
    )
    start = gr.Button("Start training", variant="primary", elem_id="start")
    expected = gr.State(None)  # id of a run that was started and has no folder yet

    @errors_on_page()
    def begin(run_id: str, recipe: str, *values: float | None) -> tuple[str, str]:
        run_id = (run_id or "").strip()
        if run_id in folder.run_ids(site.home):
            raise ValueError(
                f"run {run_id!r} exists: continue it with Resume, or choose another name."
            )
        process.require_embedded_data(recipe)
        site.models.free_gpu()
        process = site.trainer.start(run_id, process.training_arguments(recipe, values))
        gr.Info(f"{run_id} starts (process {process.pid}).")
        text = f"{run_id} prepares its base model, then trains. This page switches to it soon."
        return html.note(text), run_id

    def follow(run_id: str | None) -> tuple[Any, Any]:
        known = folder.run_ids(site.home)
        if run_id is None or run_id not in known:
            return gr.skip(), gr.skip()
        return gr.Dropdown(choices=known, value=run_id), None

    inputs = [name, recipe, *numbers]
    for event in (header.opened.then, *(component.change for component in inputs)):
        connect(
            event, lambda name, recipe, *values: process.command_line(name, recipe, values),
            inputs, [line],
        )  # fmt: skip
    start.click(begin, inputs, [status, expected], queue=False, api_name="start")
    connect(header.tick.tick, follow, [expected], [header.run_choice, expected])


def _plots() -> list[gr.Component]:
    """Return a plot per panel, two side by side, each with its explanation."""
    plots: list[gr.Component] = []
    for first in range(0, len(curves.PANELS), 2):
        with gr.Row():
            for panel in curves.PANELS[first : first + 2]:
                with gr.Column(min_width=300, elem_classes="plot"):
                    plots.append(
                        gr.LinePlot(
                            None,  # an empty frame would break the plot for good
                            x="step",
                            y="value",
                            color="curve",
                            title=panel.title,
                            y_title=" ",
                            color_title=" ",
                            show_label=False,
                            height=230,
                            tooltip="all",
                            buttons=["fullscreen"],
                            elem_id=f"plot-{panel.id}",
                        )
                    )
                    gr.HTML(f'<p class="plot-help">{panel.help}</p>')
    return plots


def _rollouts() -> list[gr.Component]:
    note = gr.HTML(elem_id="rollouts-note")
    with gr.Row():
        pictures = widgets.gallery(
            "Pictures of these rollouts", "rollout-pictures", columns=1, height=330, min_width=260
        )
        table = gr.Dataframe(
            headers=["no.", "completion", "advantage", "finish"], interactive=False, wrap=True,
            show_label=False, elem_id="rollouts", min_width=320, max_height=330, buttons=[],
            column_widths=["12%", "47%", "24%", "17%"],
        )  # fmt: skip
    return [note, pictures, table]


def _output() -> gr.Textbox:
    return gr.Textbox(
        label="Output of the training", lines=8, max_lines=8, interactive=False,
        autoscroll=False, elem_id="log", buttons=["copy"],
    )  # fmt: skip


def _connect_watching(site: Site, header: Header, outputs: list[Any]) -> None:
    """Read the run folder on every tick; send only what has changed."""
    shown_state = gr.State(None)  # of what this visitor's page shows

    def refresh(run_id: str, shown: Any) -> tuple[Any, ...]:
        path, process = site.path(run_id), site.trainer.current()
        output = site.trainer.log_tail(run_id)
        state = training.state_of_screen(path, process, output)
        if state == shown:
            return tuple(gr.skip() for _ in [shown_state, *outputs])
        same_curves = shown is not None and shown[0] == state[0]
        return state, *training.screen(path, run_id, process, output, same_curves=same_curves)

    header.on_run(lambda run_id: refresh(run_id, None), [shown_state, *outputs])
    connect(header.tick.tick, refresh, [header.run_choice, shown_state], [shown_state, *outputs])
