"""Tab Discriminator: a group and its teacher, scored; per token, which experts judged it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.models import MAX_GROUP_SIZE
from demo.runs import samples
from demo.runs.folder import POLICY_STAGES, STAGE_TITLES
from demo.screens import curves, groups, html, widgets
from demo.screens.groups import STRONGEST
from demo.screens.widgets import QUIET
from demo.site import Site, in_words

HELP = {
    "perception": "Logit of the caption given the picture: higher looks more like a teacher's.",
    "reasoning": "Logit of think and answer: higher looks more like a teacher's.",
    "margin": "Teacher's score minus this row's, mean of both channels; below 0 it is fooled.",
    "advantage": "What the policy learns from: the scores against their group, mean 0; malformed "
    "rows lose.",
}

COLUMNS = '<p class="plot-help">What the columns mean: point at a word, or reach it with Tab.</p>'


@dataclass(frozen=True)
class GroupForm:
    """Which group is shown, and how a new one is sampled."""

    choice: gr.Dropdown
    policy: gr.Dropdown
    size: gr.Slider
    seed: gr.Number
    fresh: gr.Button


@dataclass(frozen=True)
class RowForm:
    """Which row is shown, and by what its tokens are coloured."""

    row: gr.Dropdown
    layer: gr.Slider
    colour: gr.Dropdown


def build(site: Site, opened: Dependency, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    held = gr.State(None)  # the group on this visitor's screen
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            form, source = _group_form()
        with gr.Column(scale=2, min_width=240):
            picture = gr.Image(
                label="Picture", height=130, interactive=False, buttons=[], elem_id="group-picture"
            )
            asked = gr.Textbox(label="Question and gold answer", interactive=False)
    gr.HTML(COLUMNS)
    gr.HTML(
        html.figures((name, "", text) for name, text in HELP.items()), elem_classes="figures-host"
    )
    widgets.sideways()
    table = gr.Dataframe(
        headers=groups.HEADERS, interactive=False, show_label=False, elem_id="candidates",
        buttons=[], max_height=460,
    )  # fmt: skip
    plot = widgets.bars(
        "Advantage by row", x="row", y="advantage", color="sign", height=220,
        colors={"raised": curves.BLUE, "lowered": curves.ORANGE}, elem_id="advantage-bars",
    )  # fmt: skip
    chosen = _row_form()
    shown = [widgets.completion("Completion", elem_id="row-text"), *_heat_maps()]
    screen = [held, source, picture, asked, table, plot, chosen.row, chosen.layer, chosen.colour]
    grouped = _wire_group(site, opened, run, form, screen)
    _wire_row(grouped, held, table, chosen, shown)


def _group_form() -> tuple[GroupForm, gr.HTML]:
    choice = gr.Dropdown(label="Group", elem_id="group")
    source = gr.HTML(elem_id="group-note")
    with gr.Row():
        policy = gr.Dropdown(
            [STAGE_TITLES[s] for s in POLICY_STAGES], value=STAGE_TITLES["align"],
            label="Policy", min_width=110,
        )  # fmt: skip
        size = gr.Slider(2, MAX_GROUP_SIZE, value=8, step=1, label="Candidates", min_width=110)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
    fresh = gr.Button("Sample and score this prompt anew", elem_id="new-group")
    return GroupForm(choice, policy, size, seed, fresh), source


def _row_form() -> RowForm:
    with gr.Row():
        row = gr.Dropdown(label="Row (or click it in the table)", elem_id="row", min_width=140)
        layer = gr.Slider(1, 2, value=1, step=1, label="Adapted layer", elem_id="layer")
        colour = gr.Dropdown([STRONGEST], value=STRONGEST, label="Colour by", elem_id="colour-by")
    return RowForm(row, layer, colour)


def _heat_maps() -> list[gr.Component]:
    """The tokens of both parts, and what their colours mean."""
    found: list[gr.Component] = []
    with gr.Row():
        for name in ("perception", "reasoning"):
            found.append(
                gr.HighlightedText(
                    label=f"Routing of the {name} part, token by token",
                    elem_id=f"heat-{name}",
                    elem_classes="heat",
                    show_whitespaces=True,
                    min_width=280,
                    buttons=[],
                )
            )
    return [*found, gr.HTML(elem_id="heat-note")]


def _wire_group(
    site: Site, opened: Dependency, run: gr.Dropdown, form: GroupForm, screen: list[Any]
) -> list[Dependency]:
    """A recorded or logged group is chosen, a new one is sampled: the events that bring a group."""

    def list_groups(run_id: str) -> gr.Dropdown:
        names = list(groups.known_groups(site.path(run_id)))
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    def show_group(run_id: str, name: str | None) -> tuple[Any, ...]:
        path = site.path(run_id)
        known = groups.known_groups(path)
        return groups.group_screen(path, known[name]()) if name in known else groups.empty_screen()

    def sample_group(
        run_id: str, current: Mapping[str, Any] | None, stage: str, size: float, seed: float
    ) -> tuple[Any, ...]:
        path = site.path(run_id)
        model = site.model_of(path)
        chosen = next((s for s in POLICY_STAGES if STAGE_TITLES[s] == stage), "")
        if chosen not in model.stages:
            raise ValueError(f"stage {stage} is not trained yet in this run.")
        sample = samples.sample_by_id(path, current["prompt_id"]) if current else None
        if sample is None or not sample.teacher:
            raise ValueError("choose a group whose prompt has a teacher completion first.")
        with site.models.lock:
            record = model.group(sample, chosen, group_size=int(size), seed=int(seed))
        return groups.group_screen(path, record)

    for event in (opened.then, run.change):
        event(in_words(list_groups), [run], [form.choice], **QUIET)
    picked = form.choice.change(in_words(show_group), [run, form.choice], screen, **QUIET)
    sampled = form.fresh.click(
        in_words(sample_group),
        [run, screen[0], form.policy, form.size, form.seed],
        screen,
        concurrency_id="model",
        concurrency_limit=1,
        show_progress_on=[screen[4]],
        api_visibility="private",
    )
    return [picked, sampled]


def _wire_row(
    grouped: list[Dependency],
    held: gr.State,
    table: gr.Dataframe,
    chosen: RowForm,
    shown: list[Any],
) -> None:
    """A row is chosen by name or by a click.

    It is drawn after the group is, and on what a person does: `change` events would fire for each field
    that a new group fills, and the last answer to come, of whichever, would stay.
    """

    def pick(event: gr.SelectData, group: Mapping[str, Any] | None) -> str | None:
        return groups.row_names(group["rows"])[event.index[0]] if group else None

    def show_row(
        group: Mapping[str, Any] | None, row: str | None, layer: float, colour_by: str
    ) -> tuple[Any, ...]:
        return groups.row_screen(group, row, int(layer), colour_by)

    clicked = table.select(in_words(pick), [held], [chosen.row], **QUIET)
    inputs = [chosen.row, chosen.layer, chosen.colour]
    events = [*(event.then for event in (*grouped, clicked)), *(field.input for field in inputs)]
    for event in events:
        event(in_words(show_row), [held, *inputs], shown, **QUIET)
