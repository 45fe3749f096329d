"""Tab Discriminator: the game of alignment; the scores of a group, and the experts of each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.models import MAX_GROUP_SIZE
from demo.runs import samples
from demo.runs.folder import STAGE_TITLES
from demo.screens import curves, groups, widgets
from demo.screens.groups import STRONGEST
from demo.site import Header, Site, connect, errors_on_page
from demo.tabs import game
from prism_lite.types import EVALUATED_STAGES

_COLUMN_HELP = {
    "perception": "Logit of the caption given the picture: higher is more like a teacher's.",
    "reasoning": "Logit of think and answer: higher is more like a teacher's.",
    "margin": "The teacher's score minus this row's, mean of both; below 0 the row fools it.",
    "advantage": "What the policy learns from: the scores relative to the group, mean 0; malformed "
    "rows are penalized.",
}


@dataclass(frozen=True)
class GroupForm:
    """The choice of a group, and how to sample a new one."""

    choice: gr.Dropdown
    policy: gr.Dropdown
    size: gr.Slider
    seed: gr.Number
    sample: gr.Button


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    game.build(site, header)
    gr.HTML("<h2>A group and its scores</h2>")
    current = gr.State(None)  # the group on this visitor's screen
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            form, origin = _group_form()
        with gr.Column(scale=2, min_width=240):
            picture = gr.HTML(elem_id="group-picture")
            question = gr.Textbox(label="Question and gold answer", interactive=False)
    gr.HTML('<p class="plot-help">Meaning of the columns: point at a name, or press Tab.</p>')
    widgets.figures(items=_COLUMN_HELP)
    table = widgets.table("candidates", headers=groups.HEADERS, max_height=460)
    plot = widgets.bars(
        "Advantage by row", "advantage-bars", x="row", y="advantage", color="sign", height=220,
        color_map={"raised": curves.BLUE, "lowered": curves.ORANGE},
    )  # fmt: skip
    with gr.Row():
        row = gr.Dropdown(label="Row (or click it in the table)", elem_id="row", min_width=140)
        layer = gr.Slider(1, 2, value=1, step=1, label="Adapted layer", elem_id="layer")
        color_by = gr.Dropdown([STRONGEST], value=STRONGEST, label="Color by", elem_id="color-by")
    row_form = [row, layer, color_by]
    row_screen = [widgets.completion("Completion", "row-text"), *_heat_maps()]
    group_screen = [current, origin, picture, question, table, plot, *row_form]
    events = _connect_group(site, header, form, group_screen)
    _connect_row(events, current, table, row_form, row_screen)


def _group_form() -> tuple[GroupForm, gr.HTML]:
    choice = gr.Dropdown(label="Group", elem_id="group")
    origin = gr.HTML(elem_id="group-note")
    with gr.Row():
        policies = [(STAGE_TITLES[stage], stage) for stage in EVALUATED_STAGES]
        policy = gr.Dropdown(policies, value="align", label="Policy", min_width=110)
        size = gr.Slider(2, MAX_GROUP_SIZE, value=8, step=1, label="Group size", min_width=110)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
    sample = gr.Button("Sample and score this prompt again", elem_id="new-group")
    return GroupForm(choice, policy, size, seed, sample), origin


def _heat_maps() -> list[gr.Component]:
    """Return the tokens of both parts and the note that explains their colors."""
    with gr.Row():
        maps = [
            gr.HighlightedText(
                label=f"Routing of the {channel} part, token by token", min_width=280,
                elem_id=f"heat-{channel}", elem_classes="heat",
            )
            for channel in ("perception", "reasoning")
        ]  # fmt: skip
    return [*maps, gr.HTML(elem_id="heat-note")]


def _connect_group(
    site: Site, header: Header, form: GroupForm, screen: list[Any]
) -> list[Dependency]:
    """Show a recorded or logged group, or sample one; return the events that show a group."""

    def list_groups(run_id: str) -> gr.Dropdown:
        titles = list(groups.known_groups(site.path(run_id)))
        return gr.Dropdown(choices=titles, value=titles[0] if titles else None)

    def show_group(run_id: str, title: str | None) -> tuple[Any, ...]:
        path = site.path(run_id)
        read_group = groups.known_groups(path).get(title or "")
        return groups.group_screen(path, read_group()) if read_group else groups.empty_screen()

    @errors_on_page()
    def sample_group(
        run_id: str, group: Mapping[str, Any] | None, stage: str, size: float, seed: float
    ) -> tuple[Any, ...]:
        path = site.path(run_id)
        model = site.load_model(path)
        if stage not in model.stages:
            raise ValueError(f"the {STAGE_TITLES[stage]} stage of this run is not trained yet.")
        sample = samples.sample_by_id(path, group["prompt_id"]) if group else None
        if sample is None or not sample.teacher:
            raise ValueError("choose a group whose prompt has a teacher completion first.")
        with site.models.lock:
            record = model.group(sample, stage, group_size=int(size), seed=int(seed))
        return groups.group_screen(path, record)

    header.on_run(list_groups, [form.choice])
    shown = connect(form.choice.change, show_group, [header.run_choice, form.choice], screen)
    sampled = form.sample.click(
        sample_group,
        [header.run_choice, screen[0], form.policy, form.size, form.seed],
        screen,
        concurrency_id="model",
        concurrency_limit=1,
        show_progress_on=[screen[4]],
        api_visibility="private",
    )
    return [shown, sampled]


def _connect_row(
    events: list[Dependency],
    current: gr.State,
    table: gr.Dataframe,
    form: list[Any],
    screen: list[Any],
) -> None:
    """Show the chosen row, after a new group is shown and when the visitor chooses another.

    `change` events would also fire for each field that a new group fills, and the last of their answers
    to arrive would stay.
    """

    def pick(event: gr.SelectData, group: Mapping[str, Any] | None) -> str | None:
        return groups.row_names(group)[event.index[0]] if group else None

    clicked = connect(table.select, pick, [current], [form[0]])
    listeners = [event.then for event in (*events, clicked)] + [field.input for field in form]
    for listener in listeners:
        connect(listener, groups.row_screen, [current, *form], screen)
