"""Tab Memory: what a recipe will need on a GPU (predicted) and what a run's stages used (measured)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.runs import folder
from demo.runs.folder import STAGE_TITLES
from demo.runs.recipes import recipe_titles, titles_for
from demo.runs.trainer import PRISM_LITE, environment
from demo.screens import curves, html, widgets
from demo.site import Header, Site, errors_on_page
from prism_lite.recipe import recipe_names
from prism_lite.types import STAGES

_PLAN_LIMIT_S = 600
_USABLE = "usable on the GPU"
_BAR_ORDER = [*(STAGE_TITLES[stage] for stage in STAGES), _USABLE]
_RESERVE = 0.1  # of the GPU, as in `prism-lite plan`
_GPUS = {
    "the recipe's GPU": None,
    "RTX 3060, 12 GiB": 12,
    "T4, 15 GiB": 15,
    "RTX 4090, 24 GiB": 24,
    "RTX 5090, 32 GiB": 32,
    "A100, 40 GiB": 40,
    "A100, 80 GiB": 80,
}
_CATEGORY_COLORS = {
    "weights": curves.BLUE,
    "adapters": curves.SKY,
    "optimizer": curves.GREEN,
    "gradients": curves.YELLOW,
    "activations": curves.ORANGE,
    "kv_cache": curves.PINK,
    "logits": curves.GRAY,
    "pictures": curves.PURPLE,
    _USABLE: curves.GRAY,
}


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    gr.HTML("<h3>Predicted: will it fit?</h3>")
    with gr.Row():
        recipe = gr.Dropdown(recipe_titles(), value="tiny", label="Recipe", min_width=150)
        gpu = gr.Dropdown(list(_GPUS), label="GPU", elem_id="card", min_width=150)
        button = gr.Button("Simulate", variant="primary", elem_id="plan", min_width=160)
    text = (
        "Simulates a training step of every stage at full size, without a GPU; takes seconds to a few "
        "minutes. As a command: prism-lite plan --recipe NAME --card GIB."
    )
    plan_note = gr.HTML(html.note(text), elem_id="plan-verdict")
    plan_bars = widgets.bars(
        "Predicted peaks of tensors (GiB)", "plan-bars", x="stage", y="GiB", color="what", sort=_BAR_ORDER,
        height=300, color_map=_CATEGORY_COLORS, visible=False,  # until something is simulated
    )  # fmt: skip
    gr.HTML("<h3>Measured in this run</h3>")
    figures = widgets.figures("memory-figures")
    bars = widgets.bars(
        "Measured peaks (GiB)", "memory-bars", x="stage", y="GiB", color="what", sort=_BAR_ORDER,
        height=240, color_map={"measured": curves.BLUE},
    )  # fmt: skip
    note = gr.HTML(elem_id="memory-note")

    def show(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        peaks = _measured_peaks(path)
        if not peaks:
            return "", None, html.note("No peaks yet: every stage logs its own in each step.")
        frame = pd.DataFrame(
            {"stage": list(peaks), "GiB": list(peaks.values()), "what": "measured"}
        )
        text = "Highest value of mem/peak_gib in this stage."
        items = [(title, f"{gib:.2f} GiB", text) for title, gib in peaks.items()]
        return html.figures(items), frame, html.note(_explanation(path))

    @errors_on_page()
    def simulate(recipe: str, gpu: str) -> tuple[str, gr.BarPlot]:
        plan = plan_memory(recipe, _GPUS.get(gpu))
        return plan_summary(plan, recipe), gr.BarPlot(value=plan_frame(plan), visible=True)

    header.on_run(show, [figures, bars, note])
    button.click(
        simulate, [recipe, gpu], [plan_note, plan_bars], api_name="plan", concurrency_limit=1
    )


def plan_memory(recipe: str, gpu_gib: int | None) -> Mapping[str, Any]:
    """Return the result of `prism-lite plan --json`, run in a separate process."""
    if recipe not in recipe_names():
        raise ValueError(f"recipe {recipe!r}: choose one of {', '.join(recipe_names())}.")
    command = [*PRISM_LITE, "plan", "--recipe", recipe, "--json"]
    command += ["--card", str(gpu_gib)] if gpu_gib else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PLAN_LIMIT_S, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"the simulation took more than {_PLAN_LIMIT_S} s: run `prism-lite plan` in a terminal."
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise ValueError(f"the plan of {recipe} failed: {last}")
    return json.loads(done.stdout)


def plan_frame(plan: Mapping[str, Any]) -> pd.DataFrame:
    """Return GiB by stage and category; if a GPU is known, a last bar shows how much of it is usable."""
    points = [
        (STAGE_TITLES[stage], gib, category)
        for stage, peak in plan["stages"].items()
        for category, gib in peak["by_category"].items()
        if gib > 0
    ]
    if plan["card_gib"]:
        points.append((_USABLE, plan["card_gib"] * (1 - _RESERVE), _USABLE))
    return pd.DataFrame(points, columns=["stage", "GiB", "what"])


def plan_summary(plan: Mapping[str, Any], recipe: str) -> str:
    """Return whether the recipe fits, what to lower if not, and GiB and hours of every stage."""
    gpu_gib = plan["card_gib"]
    needs = {stage: _gib(figures) for stage, figures in plan["stages"].items()}
    stage = max(needs, key=needs.__getitem__)
    title, peak_gib = STAGE_TITLES[stage], needs[stage]
    if not gpu_gib:
        return html.note(
            f"Predicted, not measured: tensors of at most {peak_gib:.2f} GiB ({title}), plus Python and "
            "its libraries."
        )
    text = (
        f"Predicted, not measured: {peak_gib:.1f} of {gpu_gib:g} GiB reserved at the most ({title}); "
        f"{gpu_gib * (1 - _RESERVE):.1f} GiB are usable if 10 % is kept in reserve."
    )
    if "hours" in plan:
        text += f" {plan['hours']:.1f} hours in all (may be wrong by 40 %)."
    table = _stages_table(plan, needs)
    if peak_gib <= gpu_gib * (1 - _RESERVE):
        return html.note(f"Fits. {text}", tone="good") + table
    lower = (
        "Lower sampling.max_rows, then model.max_pack_tokens, then discriminator.max_part_tokens, or set "
        "model.vision_on_cpu=true: none of them changes what is computed. In a terminal, prism-lite plan "
        f"--recipe {recipe} --card {gpu_gib:g} says what each saves. Recipes for such a card: "
        f"{', '.join(titles_for(gpu_gib)) or 'none'}."
    )
    return html.note(f"Does not fit. {text}", tone="warn") + table + html.note(lower, tone="warn")


def _gib(stage: Mapping[str, Any]) -> float:
    """Return what a stage needs: on a card what torch reserves at the most, else its tensors."""
    return max(stage.get("reserved_gib", [stage["peak_gib"]]))


def _stages_table(plan: Mapping[str, Any], needs: Mapping[str, float]) -> str:
    """Return a table with the GiB and the hours of every stage."""
    if "hours" not in plan:
        return ""
    rows = [
        (STAGE_TITLES[stage], f"{needs[stage]:.1f}", f"{figures['hours']:.1f}")
        for stage, figures in plan["stages"].items()
    ]
    rows += [
        ("evaluation", "", f"{plan['evaluation_hours']:.1f}"),
        ("in all", "", f"{plan['hours']:.1f}"),
    ]
    return html.table(("stage", "GiB reserved at the most", "hours"), rows)


def _measured_peaks(path: Path) -> dict[str, float]:
    """Return the logged peak of each stage in GiB, by the stage's title."""
    peaks: dict[str, float] = {}
    for line in folder.read_metrics(path):
        title, gib = STAGE_TITLES[line["stage"]], line.get("mem/peak_gib")
        if gib is not None:
            peaks[title] = max(peaks.get(title, 0.0), gib)
    return peaks


def _explanation(path: Path) -> str:
    device = folder.read_json(path / "env.json").get("device", "cpu")
    if device == "cpu":
        return (
            "Measured on a CPU: the most memory that the process, with Python and libraries, has used so "
            "far; it never decreases from stage to stage."
        )
    return f"Measured on {device}: the most memory that torch's allocator held in each stage."
