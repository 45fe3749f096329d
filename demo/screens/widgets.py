"""Components that several tabs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demo.screens import html


def completion(label: str, elem_id: str, **settings: Any) -> gr.HighlightedText:
    """Return a component for a completion with its parts in color; it escapes the model's text."""
    return gr.HighlightedText(
        label=label,
        color_map=html.PART_COLORS,
        elem_classes="completion",
        elem_id=elem_id,
        **settings,
    )


def bars(
    title: str, elem_id: str, *, x: str, y: str, color: str, height: int, **settings: Any
) -> gr.BarPlot:
    """Return a bar plot without data: an empty frame would break it for good."""
    return gr.BarPlot(
        x=x, y=y, color=color, title=title, height=height, color_title=" ", show_label=False,
        buttons=[], elem_id=elem_id, **settings,
    )  # fmt: skip


def table(elem_id: str, **settings: Any) -> gr.Dataframe:
    """Return a read-only table; on a narrow screen a hint above it says that it scrolls."""
    gr.HTML('<p class="plot-help">The table scrolls sideways.</p>', elem_classes="narrow-hint")
    return gr.Dataframe(
        interactive=False, show_label=False, buttons=[], elem_id=elem_id, **settings
    )


def gallery(label: str, elem_id: str, **settings: Any) -> gr.Gallery:
    """Return a gallery whose pictures can be selected but not enlarged."""
    return gr.Gallery(
        label=label, object_fit="contain", allow_preview=False, interactive=False, buttons=[],
        elem_id=elem_id, elem_classes="strips", **settings,
    )  # fmt: skip


def figures(elem_id: str | None = None, items: Mapping[str, str] | None = None) -> gr.HTML:
    """Return a component for `html.figures`, whose explanations may extend beyond its edge."""
    value = html.figures((name, "", text) for name, text in (items or {}).items())
    return gr.HTML(value, elem_id=elem_id, elem_classes="figures-host")


def picked_number(event: gr.SelectData) -> int:
    """Return the number, from 1, of the picture that was selected in a gallery."""
    return event.index + 1


def picked_row(event: gr.SelectData) -> int:
    """Return the index of the row that was selected in a table."""
    return event.index[0]
