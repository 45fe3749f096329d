"""Tab Train: start, watch, pause and resume a run. The page only reads and writes the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from demo.runs import folder, samples, trainer
from demo.runs.folder import SAMPLE_ID, STAGE_TITLES
from demo.runs.holder import is_held
from demo.runs.recipes import recipe_titles
from demo.screens import curves, html, widgets
from demo.screens.pictures import picture_file
from demo.site import Header, Site, connect
from demo.tabs import own_data
from demo.tabs.following import Started, connect_following

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
_STATES = {
    "recorded": "A recorded run that ships with the demo: real results, and the final weights. "
    "Start a run of your own below.",
    "finished": "Finished: every stage is trained and evaluated. Compare shows its completions, Rewards "
    "what they earned, and Two runs sets it beside another run.",
    "training": "Training as a separate process: closing this page, or the demo, does not stop it.",
    "paused": "Paused: it keeps its memory. Resume continues the training.",
    "stopped": "Not running and not finished. Resume continues from its last checkpoint.",
    "elsewhere": "Another program trains this run: pause or stop it there.",
}
_NO_OUTPUT = "No output here: this run was not started from this page."
_LOG_LINES = 20  # all in view: the newest matter most
_ABOUT_RECIPES = (
    "The recipe tiny trains a small model to read pictures of digits, on the CPU, in a few minutes. The "
    "other recipes need a GPU and your own data: see below."
)
_TONES = {"training": "good", "stopped": "warn", "paused": "warn"}


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    stepper = gr.HTML(elem_id="stepper")
    status = gr.HTML(elem_id="train-status")
    buttons: list[Any] = []
    reply = gr.HTML(elem_id="train-reply")
    with gr.Row():
        for title, action in (
            ("Pause", site.trainer.pause),
            ("Resume", site.trainer.resume),
            ("Stop and save", site.trainer.stop),
        ):
            button = gr.Button(
                title, elem_id=title.split()[0].lower(), min_width=100, interactive=False
            )
            connect(button.click, in_words(_control(site, action)), [header.run_choice], [reply])
            buttons.append(button)
    header.on_run(lambda _: "", [reply])  # an answer about another run must not stay
    with gr.Accordion("Start a new run", open=False, elem_id="new-run"):
        _new_run(site, header)
    with gr.Accordion("Train on your own data", open=False, elem_id="own-data"):
        own_data.build(site, header)
    figures = widgets.figures("train-figures")
    outputs = [reply, stepper, status, *buttons, figures, *_plots(), *_rollouts()]
    outputs.append(
        gr.Textbox(
            label=f"Output of the training, its last {_LOG_LINES} lines", lines=8,
            max_lines=2 * _LOG_LINES,  # long ones are wrapped
            interactive=False, autoscroll=False, elem_id="log", buttons=["copy"],
        )
    )  # fmt: skip
    _connect_watching(site, header, outputs)


def in_words(action: Callable[..., str]) -> Callable[..., str]:
    """Return a handler that shows the action's sentence, or that of its ValueError, in a note."""

    def handler(*values: Any) -> str:
        try:
            return html.note(action(*values), tone="good")
        except ValueError as error:
            return html.note(str(error), tone="warn")

    return handler


def _control(site: Site, action: Callable[[str], str]) -> Callable[[str], str]:
    def handler(run_id: str) -> str:
        if run_id == SAMPLE_ID:
            raise ValueError("this is a recording: choose or start a run of your own.")
        if action == site.trainer.resume:
            site.models.free_gpu()
        return action(run_id)

    return handler


def _new_run(site: Site, header: Header) -> None:
    """Lay out the form for a new run; it shows the command, starts it, and follows the new run."""
    gr.HTML(f'<p class="plot-help">{_ABOUT_RECIPES}</p>')
    with gr.Row():
        name = gr.Textbox(
            folder.new_run_id(site.home), label="Run name", max_length=40, elem_id="run-name"
        )
        recipe = gr.Dropdown(recipe_titles(), value="tiny", label="Recipe", elem_id="recipe")
    with gr.Row():
        numbers = [
            gr.Number(
                value, label=title, info=text, precision=0, minimum=0, min_width=130,
                elem_id=f"setting-{key.replace('.', '-')}",
            )
            for (key, title, text), value in zip(
                trainer.FORM_SETTINGS, trainer.form_values("tiny"), strict=True
            )
        ]  # fmt: skip
    command = gr.Textbox(
        label="The same as a command", interactive=False, buttons=["copy"], elem_id="command"
    )
    start = gr.Button("Start training", variant="primary", elem_id="start")
    reply = gr.HTML(elem_id="start-reply")
    started = gr.State(None)

    def show_command(run_id: str, recipe: str, *values: float | None) -> str:
        return trainer.command_line(run_id, recipe, values)

    def begin(run_id: str, recipe: str, *values: float | None) -> tuple[str, Started | None]:
        run_id = (run_id or "").strip()
        try:
            text = _start(site, run_id, recipe, values)
        except ValueError as error:
            return html.note(str(error), tone="warn"), None
        return html.note(text, tone="good"), Started(run_id, show_command(run_id, recipe, *values))

    inputs = [name, recipe, *numbers]
    filled = connect(recipe.change, trainer.form_values, [recipe], numbers)
    events = (name.change, filled.then, *(field.change for field in numbers))
    connect(header.opened.then, show_command, inputs, [command], is_silent=True)
    for event in events:
        connect(event, show_command, inputs, [command])
    begun = start.click(
        begin, inputs, [reply, started], concurrency_limit=1, show_progress="hidden",
        api_name="start",
    )  # fmt: skip
    connect_following(site, header, begun, started, name, reply)


def _start(site: Site, run_id: str, recipe: str, values: Sequence[float | None]) -> str:
    """Start a run; return the sentence that says so."""
    trainer.check_run_name(run_id)
    if run_id in folder.run_ids(site.home):
        raise ValueError(f"run {run_id!r} exists: continue it with Resume, or choose another name.")
    trainer.require_embedded_data(recipe)
    site.models.free_gpu()
    process = site.trainer.start(run_id, trainer.training_arguments(recipe, values))
    return (
        f"{run_id} starts (process {process.pid}): it loads its base model, then trains. This page "
        "switches to it soon."
    )


def _plots() -> list[Any]:
    """Return the columns, hidden while they are empty, and the plots of the panels."""
    columns: list[Any] = []
    plots: list[Any] = []
    for first in range(0, len(curves.PANELS), 2):
        with gr.Row():
            for panel in curves.PANELS[first : first + 2]:
                with gr.Column(min_width=300, elem_classes="plot") as column:
                    plot = gr.LinePlot(  # without data: an empty frame would break it for good
                        x="step", y="value", color="curve", title=panel.title, y_title=" ",
                        color_title=" ", show_label=False, height=230, tooltip="all",
                        buttons=["fullscreen"], elem_id=f"plot-{panel.id}",
                    )  # fmt: skip
                    legend = html.narrow_legend(curves.panel_colors(panel))
                    gr.HTML(f'{legend}<p class="plot-help">{panel.help}</p>')
                columns.append(column)
                plots.append(plot)
    return [*columns, *plots]


def _rollouts() -> list[gr.Component]:
    note = gr.HTML(elem_id="rollouts-note")
    gr.HTML('<p class="plot-help">The table scrolls sideways.</p>', elem_classes="narrow-hint")
    with gr.Row():
        pictures = widgets.gallery(
            "Pictures of these rollouts", "rollout-pictures", columns=1, height=330, min_width=260
        )
        table = gr.Dataframe(
            headers=["no.", "completion", "advantage", "finish"], interactive=False, wrap=True,
            show_label=False, elem_id="rollouts", min_width=320, max_height=330, buttons=[],
            column_widths=["64px", "280px", "120px", "90px"],
        )  # fmt: skip
    return [note, pictures, table]


def _connect_watching(site: Site, header: Header, outputs: list[Any]) -> None:
    """Read the run folder on every tick; send only what has changed."""
    shown_state = gr.State(None)  # of what this visitor's page shows

    def refresh(run_id: str, shown: Any, answered: str = "") -> tuple[Any, ...]:
        path, process = site.path(run_id), site.trainer.current()
        output = site.trainer.log_tail(run_id)
        signature = folder.signature(path)
        state = (signature, process, len(output), is_held(path))
        # what a button announced has happened; its answer may come after the tick that sees the end
        has_happened = process is None and "note-good" in (answered or "")
        reply = "" if has_happened else gr.skip()
        if state == shown:
            return gr.skip(), reply, *(gr.skip() for _ in outputs[1:])
        same_curves = shown is not None and shown[0] == signature
        return state, reply, *_screen(path, run_id, process, output, same_curves=same_curves)

    header.on_run(lambda run_id: refresh(run_id, None), [shown_state, *outputs])
    connect(
        header.tick.tick, refresh, [header.run_choice, shown_state, outputs[0]],
        [shown_state, *outputs], is_silent=True,
    )  # fmt: skip


def _screen(
    path: Path,
    run_id: str,
    process: trainer.TrainingProcess | None,
    output: str,
    *,
    same_curves: bool,
) -> tuple[Any, ...]:
    """Return stepper, note, three buttons, numbers, columns, plots, rollouts (3 values) and output."""
    is_training = process is not None and process.run_id == run_id
    stages = folder.progress(path)
    state = _state(path, is_training)
    active = next((s.stage for s in stages if not s.is_done), None)
    metrics = folder.read_metrics(path)
    text = _STATES[state]
    if process is not None and not is_training:
        text = f"{process.run_id!r} is training now; this is {run_id!r}. {text}"
    plots: list[Any] = [gr.skip()] * (2 * len(curves.PANELS))
    if not same_curves:
        frames = [curves.panel_plot(panel, metrics) for panel in curves.PANELS]
        plots = [gr.Column(visible=frame is not None) for frame, _ in frames]
        plots += [gr.LinePlot(value=frame, color_map=colors) for frame, colors in frames]
    return (
        html.stepper(stages, active, state),
        html.note(text, tone=_TONES.get(state, "plain")),
        *(gr.Button(interactive=is_possible) for is_possible in _possible_actions(state, process)),
        _figures(metrics),
        *plots,
        *_newest_rollouts(path),
        "\n".join(output.splitlines()[-_LOG_LINES:]) or _NO_OUTPUT,
    )


def _state(path: Path, is_training: bool) -> str:
    if path == folder.SAMPLE_RUN:
        return "recorded"
    if is_training:
        return "paused" if folder.control_command(path) == "pause" else "training"
    if folder.is_finished(path):
        return "finished"
    return "elsewhere" if is_held(path) else "stopped"


def _possible_actions(
    state: str, process: trainer.TrainingProcess | None
) -> tuple[bool, bool, bool]:
    """Return whether the run can be paused, resumed, and stopped."""
    can_resume = state == "paused" or (state == "stopped" and process is None)
    return state == "training", can_resume, state in ("training", "paused")


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return html.note("No step yet: the base model is evaluated first, then the numbers appear.")
    last = dict(metrics[-1])
    for line in metrics[-2:]:  # an evaluation after a step is a line of its own
        if (line["stage"], line["step"]) == (last["stage"], last["step"]):
            last |= line
    step = f"{STAGE_TITLES[last['stage']]} {last['step'] + 1}"
    items = [
        (name, pattern.format(last[key]), text)
        for name, key, pattern, text in FIGURES
        if key in last
    ]
    return html.figures([("stage and step", step, "The last optimizer step logged."), *items])


def _newest_rollouts(path: Path) -> tuple[Any, ...]:
    """Return a note, pictures, and the best and the worst completion of a few prompts."""
    saved = {stage: folder.rollout_steps(path, stage) for stage in ("rlvr", "align", "control")}
    stage = next((stage for stage, steps in saved.items() if steps), None)
    if stage is None:
        return html.note("No rollouts yet: they come with alignment and RLVR."), None, None
    step = saved[stage][-1]
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in folder.read_rollouts(path, stage, step):
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    pictures, table = [], []
    for number, (prompt_id, group) in enumerate(list(by_prompt.items())[:NUM_PROMPTS], 1):
        sample = samples.sample_by_id(path, prompt_id)
        if sample is not None and sample.pictures:
            file = picture_file(sample.pictures[0].open())
            pictures.append((file, f"{number} · {html.question(sample.question)}"))
        for select in (max, min):
            record = select(group, key=lambda record: record["advantage"])
            cells = [record["completion"][:MAX_CELL], html.number(record["advantage"])]
            table.append([str(number), *cells, record["finish_reason"]])
    text = (
        f"Newest rollouts: {STAGE_TITLES[stage]} step {step + 1}; for each prompt the completions with the "
        "highest and the lowest advantage."
    )
    return html.note(text), pictures, table
