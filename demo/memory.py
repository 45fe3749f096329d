"""Tab Memory: what a run's stages held at their peak, against the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo import curves, folder, view
from demo.folder import STAGE_TITLES, TRAINED_STAGES
from demo.site import Site, in_words


def build(site: Site, page: gr.Blocks, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    numbers = gr.HTML(elem_id="memory-figures", elem_classes="figures-host")
    plot = gr.BarPlot(
        None,
        x="stage",
        y="GiB",
        color="what",
        title="Measured peak of each stage (GiB)",
        color_map={"measured": curves.BLUE},
        show_label=False,
        sort=None,
        height=260,
        elem_id="memory-bars",
        buttons=[],
    )
    message = gr.HTML(elem_id="memory-note")

    def show(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        peaks = measured_peaks(path)
        if not peaks:
            return (
                "",
                None,
                view.note("No peak yet: every stage logs its own from the first step on."),
            )
        frame = pd.DataFrame(
            [(STAGE_TITLES[s], gib, "measured") for s, gib in peaks.items()],
            columns=["stage", "GiB", "what"],
        )
        items = [
            (STAGE_TITLES[stage], f"{gib:.2f} GiB", "Highest value of mem/peak_gib in this stage.")
            for stage, gib in peaks.items()
        ]
        return view.figures(items), frame, view.note(_what_is_measured(path))

    for event in (page.load, run.change):
        event(
            in_words(show), [run], [numbers, plot, message],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip


def measured_peaks(path: Path) -> dict[str, float]:
    """Peak GiB by stage, where it was logged."""
    peaks: dict[str, float] = {}
    for line in folder.read_metrics(path):
        if "mem/peak_gib" in line and line["stage"] in TRAINED_STAGES:
            peaks[line["stage"]] = max(peaks.get(line["stage"], 0.0), line["mem/peak_gib"])
    return peaks


def _what_is_measured(path: Path) -> str:
    device = (folder.read_json(path / "env.json") or {}).get("device", "cpu")
    if device == "cpu":
        return (
            "Measured on a CPU: the most memory that the whole process held so far, Python and libraries "
            "included; it never falls from stage to stage."
        )
    return f"Measured on {device}: the most that torch's allocator held so far."
