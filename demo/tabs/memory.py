"""Tab Memory: what a recipe will hold on a card (predicted), and what a run's stages held (measured)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.events import Dependency

from demo.runs import folder
from demo.runs.folder import STAGE_TITLES, TRAINED_STAGES
from demo.runs.jobs import REPOSITORY
from demo.screens import curves, html, widgets
from demo.screens.widgets import QUIET
from demo.site import Site, in_words
from prism_lite.recipe import recipe_names

PLAN_LIMIT_S = 600
BAR_ORDER = [*(STAGE_TITLES[stage] for stage in TRAINED_STAGES), "room on the card"]
SPARE = 0.1  # of the card, as `prism-lite plan` demands
CARDS = {
    "that of the recipe": None,
    "RTX 3060, 12 GiB": 12,
    "T4, 15 GiB": 15,
    "RTX 4090, 24 GiB": 24,
    "RTX 5090, 32 GiB": 32,
    "A100, 80 GiB": 80,
}
CATEGORY_COLORS = {
    "weights": "#0072B2",
    "adapters": "#56B4E9",
    "optimizer": "#009E73",
    "gradients": "#E69F00",
    "activations": "#D55E00",
    "kv_cache": "#CC79A7",
    "logits": "#8A8A8A",
    "pictures": "#AA5593",
}


def build(site: Site, opened: Dependency, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    gr.HTML("<h3>Predicted: will it fit?</h3>")
    with gr.Row():
        recipe = gr.Dropdown(recipe_names(), value="tiny", label="Preset", min_width=150)
        card = gr.Dropdown(
            list(CARDS), value=next(iter(CARDS)), label="Card", elem_id="card", min_width=150
        )
        button = gr.Button("Simulate its steps", variant="primary", elem_id="plan", min_width=160)
    verdict = gr.HTML(
        html.note(
            "Every stage's real step is simulated at full size, without a GPU; it takes from seconds to a "
            "few minutes. On a command line: prism-lite plan --recipe NAME --card GIB."
        ),
        elem_id="plan-verdict",
    )
    bars = widgets.bars(
        "Predicted peaks (GiB)", x="stage", y="GiB", color="what", sort=BAR_ORDER, height=300,
        colors=CATEGORY_COLORS | {"room": curves.GREY}, elem_id="plan-bars",
        visible=False,  # until something was simulated
    )  # fmt: skip
    gr.HTML("<h3>Measured in this run</h3>")
    numbers = widgets.figures("memory-figures")
    plot = widgets.bars(
        "Measured peaks (GiB)", x="stage", y="GiB", color="what", sort=BAR_ORDER, height=240,
        colors={"measured": curves.BLUE}, elem_id="memory-bars",
    )  # fmt: skip
    message = gr.HTML(elem_id="memory-note")

    def show(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        peaks = measured_peaks(path)
        if not peaks:
            return (
                "",
                None,
                html.note("No peak yet: each stage logs its own from its first step on."),
            )
        frame = pd.DataFrame(
            [(STAGE_TITLES[s], gib, "measured") for s, gib in peaks.items()],
            columns=["stage", "GiB", "what"],
        )
        items = [
            (STAGE_TITLES[stage], f"{gib:.2f} GiB", "Highest value of mem/peak_gib in this stage.")
            for stage, gib in peaks.items()
        ]
        return html.figures(items), frame, html.note(_what_is_measured(path))

    def simulate(chosen: str, card_name: str) -> tuple[str, gr.BarPlot]:
        found = run_plan(chosen, CARDS.get(card_name))
        return plan_verdict(found), gr.BarPlot(value=plan_frame(found), visible=True)

    for event in (opened.then, run.change):
        event(in_words(show), [run], [numbers, plot, message], **QUIET)
    button.click(
        in_words(simulate), [recipe, card], [verdict, bars], api_name="plan", concurrency_limit=1
    )


def run_plan(recipe: str, card_gib: int | None) -> Mapping[str, Any]:
    """`prism-lite plan --json` in a process of its own: the web process loads no model.

    Raises:
        ValueError: no such preset, or the plan's own sentence.
    """
    if recipe not in recipe_names():
        raise ValueError(f"preset {recipe!r}: choose one of {', '.join(recipe_names())}.")
    command = [sys.executable, "-m", "prism_lite", "plan", "--recipe", recipe, "--json"]
    command += ["--card", str(card_gib)] if card_gib else []
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PLAN_LIMIT_S,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"the simulation took more than {PLAN_LIMIT_S} s: run `prism-lite plan` in a terminal."
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise ValueError(f"the plan of {recipe} failed: {last}")
    return json.loads(done.stdout)


def plan_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """GiB by stage and item; where there is a card, a last bar as high as what may be used of it."""
    points = [
        (STAGE_TITLES.get(stage, stage), gib, category)
        for stage, figures in found["stages"].items()
        for category, gib in figures["by_category"].items()
        if gib > 0
    ]
    if found["card_gib"]:
        points.append(("room on the card", found["card_gib"] * (1 - SPARE), "room"))
    return pd.DataFrame(points, columns=["stage", "GiB", "what"])


def plan_verdict(found: Mapping[str, Any]) -> str:
    """Whether it fits, and what to lower if not."""
    stage, peak = max(
        ((stage, figures["peak_gib"]) for stage, figures in found["stages"].items()),
        key=lambda item: item[1],
    )
    if not found["card_gib"]:
        return html.note(
            f"Predicted, not measured: tensors of at most {peak:.2f} GiB ({STAGE_TITLES[stage]}), beside "
            "Python and its libraries."
        )
    room = found["card_gib"] * (1 - SPARE)
    text = (
        f"Predicted, not measured: {peak:.2f} of {found['card_gib']:g} GiB ({STAGE_TITLES[stage]}); "
        f"{room:.2f} GiB leave 10 % to spare."
    )
    if peak <= room:
        return html.note(f"Fits. {text}", kind="good")
    return html.note(
        f"Does not fit. {text} Lower model.max_pack_tokens, sampling.max_rows or the group size; "
        "prism-lite plan says by how much.",
        kind="warn",
    )


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
    return f"Measured on {device}: the most that torch's allocator held in each stage."
