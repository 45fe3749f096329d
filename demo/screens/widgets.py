"""Components and event settings that several tabs share, with what Gradio's traps demand of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demo.screens import html

# An event that answers at once and that nobody waits for.
QUIET: dict[str, Any] = {
    "queue": False, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip


def completion(label: str, *, elem_id: str, **settings: Any) -> gr.HighlightedText:
    """A completion in its coloured parts: text of a model goes nowhere but into one of these."""
    return gr.HighlightedText(
        label=label,
        color_map=html.PART_COLORS,
        show_whitespaces=True,
        elem_classes="completion",
        elem_id=elem_id,
        **settings,
    )


def bars(
    title: str, *, x: str, y: str, color: str, colors: Mapping[str, str], **settings: Any
) -> gr.BarPlot:
    """A bar plot without bars yet: an empty frame would break it for good."""
    return gr.BarPlot(
        None,
        x=x,
        y=y,
        color=color,
        title=title,
        color_title=" ",
        color_map=dict(colors),
        show_label=False,
        buttons=[],
        **settings,
    )


def figures(elem_id: str) -> gr.HTML:
    """Where `view.figures` are shown; their explanations may reach beyond its edge."""
    return gr.HTML(elem_id=elem_id, elem_classes="figures-host")


def sideways() -> gr.HTML:
    """Above a wide table: says on a narrow screen that there is more of it."""
    return gr.HTML(
        '<p class="plot-help">The table scrolls sideways.</p>', elem_classes="narrow-hint"
    )
