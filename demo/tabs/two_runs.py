"""Tab Two runs: what differs in their settings, figures and curves, to read here or to save."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from demo.runs import folder
from demo.screens import html, two_runs
from demo.site import Header, Site, connect


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        other = gr.Dropdown(
            folder.run_ids(site.home), value=None, label="Compare the run above with",
            elem_id="other-run",
        )  # fmt: skip
        save = gr.DownloadButton(
            "Save as one HTML file", elem_id="save-comparison", interactive=False
        )
    content = gr.HTML(elem_id="two-runs")

    def list_others(run_id: str, other_id: str | None) -> gr.Dropdown:
        known = [name for name in folder.run_ids(site.home) if name != run_id]
        return gr.Dropdown(choices=known, value=other_id if other_id in known else None)

    def compare(run_id: str, other_id: str | None) -> tuple[str, Any]:
        if not other_id or other_id == run_id:
            text = "Choose a second run: what differs in its settings, figures and curves appears here."
            return html.note(text), gr.DownloadButton(value=None, interactive=False)
        names = (run_id, other_id)
        shown = two_runs.comparison_html(site.path(run_id), site.path(other_id), names)
        file = _write(two_runs.page_file(shown, names), f"{run_id}-and-{other_id}.html")
        return shown, gr.DownloadButton(value=file, interactive=True)

    inputs, outputs = [header.run_choice, other], [content, save]
    connect(header.opened.then, list_others, inputs, [other], is_silent=True)
    connect(header.opened.then, compare, inputs, outputs, is_silent=True)
    listed = connect(header.run_choice.change, list_others, inputs, [other])
    connect(listed.then, compare, inputs, outputs)
    connect(other.focus, list_others, inputs, [other])
    connect(other.change, compare, inputs, outputs)


def _write(text: str, name: str) -> str:
    """Write a file where Gradio may serve it from; return its path."""
    file = Path(tempfile.mkdtemp(dir=get_upload_folder())) / name.replace(" ", "-")
    file.write_text(text, encoding="utf-8")
    return str(file)
