"""Tab Train: start a run, watch it, hold it, go on. The page only reads and writes the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.runs import command, folder
from demo.runs.folder import SAMPLE_ID
from demo.screens import curves, html, training, widgets
from demo.screens.widgets import QUIET
from demo.site import Site, in_words
from prism_lite.recipe import recipe_names


@dataclass(frozen=True)
class NewRun:
    """The form for a new run."""

    name: gr.Textbox
    recipe: gr.Dropdown
    knobs: list[gr.Number]
    command: gr.Textbox
    start: gr.Button

    @property
    def inputs(self) -> list[Any]:
        return [self.name, self.recipe, *self.knobs]


def build(site: Site, opened: Dependency, run: gr.Dropdown, tick: gr.Timer) -> None:
    """Lay out the tab and wire it."""
    steps = gr.HTML(elem_id="stepper")
    status = gr.HTML(elem_id="train-status")
    with gr.Row():
        buttons = {
            "pause": gr.Button("Pause", elem_id="pause", min_width=100),
            "resume": gr.Button("Resume", elem_id="resume", min_width=100),
            "stop": gr.Button("Stop and save", elem_id="stop", min_width=130),
        }
    new_run = _new_run()
    numbers = widgets.figures("train-figures")
    outputs = [steps, status, numbers, *_plots(), *_rollouts(), _log()]
    _wire_watching(site, opened, run, tick, outputs)
    _wire_steering(site, run, buttons)
    _wire_starting(site, opened, run, tick, new_run, status)


def _new_run() -> NewRun:
    with gr.Accordion("Start a new run", open=False, elem_id="new-run"):
        with gr.Row():
            name = gr.Textbox(
                label="Run name", placeholder="first-try", max_length=40, elem_id="run-name"
            )
            recipe = gr.Dropdown(recipe_names(), value="tiny", label="Preset", elem_id="recipe")
        with gr.Row():
            knobs = [
                gr.Number(
                    None,
                    label=title,
                    info=text,
                    precision=0,
                    minimum=0,
                    min_width=130,
                    placeholder="preset",
                    elem_id=f"knob-{key.replace('.', '-')}",
                )
                for key, title, text in command.KNOBS
            ]
        line = gr.Textbox(
            label="The same on a command line",
            interactive=False,
            buttons=["copy"],
            elem_id="command",
        )
        start = gr.Button("Start training", variant="primary", elem_id="start")
    return NewRun(name, recipe, knobs, line, start)


def _plots() -> list[gr.Component]:
    """A plot per panel, two side by side, each with its sentence."""
    plots: list[gr.Component] = []
    for pair in (curves.PANELS[i : i + 2] for i in range(0, len(curves.PANELS), 2)):
        with gr.Row():
            for panel in pair:
                with gr.Column(min_width=300, elem_classes="plot"):
                    plots.append(_plot(panel))
                    gr.HTML(f'<p class="plot-help">{panel.help}</p>')
    return plots


def _plot(panel: curves.Panel) -> gr.LinePlot:
    return gr.LinePlot(
        None,  # an empty frame would break the plot for good
        x="step",
        y="value",
        color="curve",
        title=panel.title,
        x_title="step",
        y_title=" ",
        color_title=" ",
        color_map=dict(panel.colors),
        show_label=False,
        height=230,
        tooltip="all",
        buttons=["fullscreen"],
        elem_id=f"plot-{panel.id}",
    )


def _rollouts() -> list[gr.Component]:
    latest = gr.HTML(elem_id="rollouts-note")
    with gr.Row():
        pictures = gr.Gallery(
            label="Pictures of these rollouts", columns=1, height=330,
            elem_id="rollout-pictures", object_fit="contain", allow_preview=False,
            min_width=260, buttons=[], interactive=False,
        )  # fmt: skip
        table = gr.Dataframe(
            headers=["no.", "completion", "advantage", "finish"], interactive=False, wrap=True,
            show_label=False, elem_id="rollouts", min_width=320, max_height=330, buttons=[],
            column_widths=["12%", "47%", "24%", "17%"],
        )  # fmt: skip
    return [latest, pictures, table]


def _log() -> gr.Textbox:
    return gr.Textbox(
        label="What the training printed", lines=8, max_lines=8, interactive=False,
        autoscroll=False, elem_id="log", buttons=["copy"],
    )  # fmt: skip


def _wire_watching(
    site: Site, opened: Dependency, run: gr.Dropdown, tick: gr.Timer, outputs: list[Any]
) -> None:
    """On every tick the disk is asked; what has not changed is not sent."""
    before = gr.State(None)  # what this visitor's page shows already

    def refresh(run_id: str, seen: Any) -> tuple[Any, ...]:
        path, job = site.path(run_id), site.jobs.current()
        printed = site.jobs.log_tail(run_id)
        now = training.seen(path, job, printed)
        if now == seen:
            return tuple(gr.skip() for _ in [before, *outputs])
        same_curves = seen is not None and seen[0] == now[0]
        return now, *training.screen(path, run_id, job, printed, same_curves=same_curves)

    for event in (opened.then, run.change):
        event(in_words(lambda run_id: refresh(run_id, None)), [run], [before, *outputs], **QUIET)
    tick.tick(in_words(refresh), [run, before], [before, *outputs], **QUIET)


def _wire_steering(site: Site, run: gr.Dropdown, buttons: dict[str, gr.Button]) -> None:
    def act(verb: str) -> Any:
        def handler(run_id: str) -> None:
            if run_id == SAMPLE_ID:
                raise ValueError("this is a recording: choose or start a run of your own.")
            if verb == "resume":
                site.models.leave_gpu()
            gr.Info(getattr(site.jobs, verb)(run_id))

        return in_words(handler)

    for verb, button in buttons.items():
        button.click(act(verb), [run], None, queue=False, api_visibility="private")


def _wire_starting(
    site: Site,
    opened: Dependency,
    run: gr.Dropdown,
    tick: gr.Timer,
    new_run: NewRun,
    status: gr.HTML,
) -> None:
    """The form shows its command, starts it, and the page turns to the new run once it is there."""
    awaited = gr.State(None)

    def show_command(run_name: str, preset: str, *values: float | None) -> str:
        return command.command_line(run_name, preset, values)

    def begin(run_name: str, preset: str, *values: float | None) -> tuple[str, str]:
        run_name = (run_name or "").strip()
        if run_name in folder.run_ids(site.home):
            raise ValueError(
                f"run {run_name!r} exists: Resume goes on with it, another name starts a new one."
            )
        command.demand_startable(preset)
        site.models.leave_gpu()
        job = site.jobs.start(run_name, command.arguments(preset, values))
        gr.Info(f"{run_name} starts (process {job.pid}).")
        text = f"{run_name} is starting: base model first, then the stages. This page turns to it."
        return html.note(text), run_name

    def follow(awaited_run: str | None) -> tuple[Any, Any]:
        known = folder.run_ids(site.home)
        if awaited_run is None or awaited_run not in known:
            return gr.skip(), gr.skip()
        return gr.Dropdown(choices=known, value=awaited_run), None

    shown = in_words(show_command)
    for event in (opened.then, *(component.change for component in new_run.inputs)):
        event(shown, new_run.inputs, [new_run.command], **QUIET)
    new_run.start.click(
        in_words(begin), new_run.inputs, [status, awaited], queue=False, api_name="start"
    )
    tick.tick(follow, [awaited], [run, awaited], **QUIET)
