"""Four steps from a data file to a training: check, columns, plan, start."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import gradio as gr

from demo.runs import data_files, folder, trainer
from demo.runs.recipes import recipe_titles
from demo.screens import html
from demo.site import Header, Site, connect
from demo.tabs import memory
from demo.tabs.data import check_summary
from demo.tabs.following import Started, connect_following

_COLUMNS = "{prompt: question, images: image, answer: answer, teacher: response}"

_TEACH = (
    '<p class="plot-help">SFT and alignment need a caption, think and answer in each row. Where there '
    "are none, a larger model writes them: <code>prism-lite teach FILE --local ID --keep-right --field "
    "both --out taught.jsonl</code> (or <code>--base-url URL</code>, an endpoint). Then choose it.</p>"
)


def build(site: Site, header: Header) -> None:
    """Lay out the four steps and connect their events."""
    folder_note = (
        f"Put your file ({', '.join(data_files.FILE_TYPES)}) and its pictures into "
        f"{data_files.data_folder(site.home)}, then choose it here. Three rows to begin with, in a "
        f"terminal: prism-lite data template {data_files.data_folder(site.home) / 'mine.jsonl'}"
    )
    gr.HTML(html.note(folder_note))
    with gr.Row():
        train, heldout = (
            gr.Dropdown([], value=None, label=label, elem_id=elem_id)
            for label, elem_id in (
                ("Rows to train on", "own-train"),
                ("Held-out rows (optional)", "own-heldout"),
            )
        )
    gr.HTML("<h3>1 Check</h3>")
    check = gr.Button("Check the rows", elem_id="own-check")
    check_reply = gr.HTML(elem_id="own-check-reply")
    gr.HTML(_TEACH, elem_id="own-teach")
    first_rows = gr.Textbox(label="First row of each stage", lines=4, interactive=False)
    gr.HTML("<h3>2 Columns</h3>")
    columns = gr.Textbox(
        label="Only if the check did not recognize the format. Our name: your name of the column",
        max_length=400,
        placeholder=_COLUMNS, elem_id="own-columns",
    )  # fmt: skip
    gr.HTML("<h3>3 Plan</h3>")
    recipe = gr.Dropdown(
        [(title, name) for title, name in recipe_titles() if name != "tiny"],
        value="t4-2b",
        label="Recipe",
        info="without a GPU: tiny-files",
        elem_id="own-recipe",
    )
    plan = gr.Button("Plan its memory and time (a minute or two)", elem_id="own-plan")
    plan_reply = gr.HTML(elem_id="own-plan-reply")
    gr.HTML("<h3>4 Start</h3>")
    name = gr.Textbox(
        folder.new_run_id(site.home), label="Run name", max_length=40, elem_id="own-name"
    )
    start = gr.Button("Start this training", variant="primary", elem_id="own-start")
    start_reply = gr.HTML(elem_id="own-start-reply")
    started = gr.State(None)

    def list_files(*chosen: str | None) -> list[gr.Dropdown]:
        names = data_files.file_names(site.home)
        return [gr.Dropdown(choices=names, value=c if c in names else None) for c in chosen]

    def check_rows(train_name: str | None, columns_text: str) -> tuple[str, str]:
        try:
            path = data_files.data_file(site.home, train_name)
            return check_summary(path, columns_text)
        except ValueError as error:
            return html.note(str(error), tone="warn"), ""

    def plan_recipe(recipe_name: str) -> str:
        try:
            return memory.plan_summary(memory.plan_memory(recipe_name, None), recipe_name)
        except ValueError as error:
            return html.note(str(error), tone="warn")

    def begin(run_id: str, recipe_name: str, *data: str | None) -> tuple[str, Started | None]:
        run_id = (run_id or "").strip()
        try:
            arguments = _arguments(site, run_id, recipe_name, *data)
            text = _start(site, run_id, arguments)
        except ValueError as error:
            return html.note(str(error), tone="warn"), None
        command = shlex.join(["prism-lite", "run", "--out", f"runs/{run_id}", *arguments])
        return html.note(text, tone="good"), Started(run_id, command)

    files = [train, heldout]
    connect(header.opened.then, list_files, files, files, is_silent=True)
    for dropdown in files:
        connect(dropdown.focus, list_files, files, files)
    connect(check.click, check_rows, [train, columns], [check_reply, first_rows], is_slow=True)
    connect(plan.click, plan_recipe, [recipe], [plan_reply], is_slow=True)
    inputs = [name, recipe, train, heldout, columns]
    begun = connect(start.click, begin, inputs, [start_reply, started])
    connect_following(site, header, begun, started, name, start_reply)


def _arguments(
    site: Site, run_id: str, recipe: str, train: Any, heldout: Any, columns: str | None
) -> list[str]:
    """Return the arguments of `prism-lite run` for the user's files."""
    trainer.check_run_name(run_id)
    if run_id in folder.run_ids(site.home):
        raise ValueError(f"run {run_id!r} exists: choose another name.")
    overrides = [f"data.train={data_files.data_file(site.home, train)}"]
    if heldout:
        overrides.append(f"data.heldout={data_files.data_file(site.home, heldout)}")
    if columns and columns.strip():
        overrides.append(f"data.columns={json.dumps(data_files.column_map(columns))}")
    return trainer.training_arguments(recipe, trainer.form_values(recipe), overrides)


def _start(site: Site, run_id: str, arguments: Sequence[str]) -> str:
    """Start a run on the user's files; return the sentence that says so."""
    site.models.free_gpu()
    process = site.trainer.start(run_id, arguments)
    return (
        f"{run_id} starts (process {process.pid}): it reads the data and loads its model, then trains. "
        "This page switches to it soon."
    )
