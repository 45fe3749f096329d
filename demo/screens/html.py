"""Turn run data into what the tabs show: spans, HTML and table cells, without Gradio, models or files.

Text of a model never becomes HTML: it goes to components that escape it, as (text, label) spans. The
HTML made here contains our own words and numbers, and everything in it is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from demo.runs.folder import STAGE_TITLES, StageProgress
from demo.screens import curves
from prism_lite.parts import ANSWER, CAPTION, TAGS, THINK, Malformed, parse

MAX_SHOWN_CHARACTERS = 60_000  # of one completion; more makes a browser slow
MAX_HEAT_TOKENS = 1_500
# The letters distinguish the parts without color.
_PART_LABELS = {CAPTION: "C caption", THINK: "T think", ANSWER: "A answer"}
PART_COLORS = {"C caption": "#2a9d8f", "T think": "#d9a441", "A answer": "#e8735a"}
# Gradio's empty state is an icon whose name screen readers may not read.
NO_COMPLETION: list[tuple[str, str | None]] = [("no completion", None)]
NO_ROUTING: list[tuple[str, str | None]] = [("no routing", None)]
HEAT_COLORS = {"+": curves.ORANGE, "-": curves.BLUE}
_BADGE_TITLES = {"recorded": "recorded run", "tiny": "tiny model", "waiting": "no model loaded"}
_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))


def part_spans(text: str) -> list[tuple[str, str | None]]:
    """Split a completion, which may be malformed or incomplete, into its labeled parts.

    The tags stay visible without a label, and so does all text outside the parts. Of a very long text
    only the beginning is shown.
    """
    num_characters = len(text)
    text = text[:MAX_SHOWN_CHARACTERS]
    spans: list[tuple[str, str | None]] = []
    position, label = 0, None
    for match in _TAG.finditer(text):
        tag = match.group()
        spans += [(text[position : match.start()], label), (tag, None)]
        label = None if tag.startswith("</") else _PART_LABELS[tag[1:-1]]
        position = match.end()
    spans.append((text[position:], label))
    if num_characters > MAX_SHOWN_CHARACTERS:
        text = f"\n[the first {MAX_SHOWN_CHARACTERS:,} of {num_characters:,} characters]"
        spans.append((text, None))
    return [(text, label) for text, label in spans if text]


def badge(state: str, detail: str) -> str:
    """Return the header's badge: a state of `Models.status`, or "training", and why."""
    title = _BADGE_TITLES.get(state, state)
    return (
        f'<div class="badge badge-{state}" role="status"><b>{title}</b> '
        f"<span>{escape(detail)}</span></div>"
    )


def figures(items: Iterable[tuple[str, str, str]]) -> str:
    """Return numbers that show their explanation on hover and on keyboard focus.

    Args:
        items: (name, value, explanation); an empty value shows the name alone.
    """
    cells = []
    for name, value, text in items:
        spoken = f"{name}: {value}. {text}" if value else f"{name}. {text}"
        number = f"<b>{escape(value)}</b>" if value else ""
        cells.append(
            f'<div class="figure" tabindex="0" data-help="{escape(text)}" '
            f'aria-label="{escape(spoken)}">{number}<span>{escape(name)}</span></div>'
        )
    return f'<div class="figures">{"".join(cells)}</div>' if cells else ""


def note(text: str, *, tone: str = "plain") -> str:
    """Return a sentence in a box with the tone "plain", "good" or "warn"."""
    return f'<div class="note note-{tone}">{escape(text)}</div>' if text else ""


def stepper(stages: Sequence[StageProgress], active: str | None, state: str) -> str:
    """Return the list of stages with the progress of each and the state of the active one."""
    cells = []
    for number, stage in enumerate(stages, 1):
        share = 1.0 if stage.is_done else min(1.0, stage.steps_done / max(1, stage.num_steps))
        css_class, text = "waiting", f"{stage.steps_done} of {stage.num_steps}"
        if stage.is_done:
            css_class, text = "done", f"done, {stage.steps_done} steps"
        elif stage.stage == active:
            css_class, text = "active", f"{text}, {state}"
        cells.append(
            f'<li class="step {css_class}"><b>{number} {STAGE_TITLES[stage.stage]}</b>'
            f'<span>{escape(text)}</span><progress max="1" value="{share:.3f}" '
            f'aria-label="{stage.stage}"></progress></li>'
        )
    return f'<ol class="stepper">{"".join(cells)}</ol>'


def heat_spans(
    tokens: Sequence[str], weights_TE: Sequence[Sequence[float]], quantity: str
) -> list[tuple[str, str | float | None]]:
    """Return tokens with their routing at one layer, as a label or a number.

    Args:
        tokens: T token texts.
        weights_TE: routing weights, one row per token.
        quantity: "strongest" labels each token with its strongest expert; "balance" is the share of the
            perception half minus that of the reasoning half, -1 to 1; "3" is the weight of expert 3.
    """
    spans: list[tuple[str, str | float | None]] = []
    for token, row in zip(tokens[:MAX_HEAT_TOKENS], weights_TE, strict=False):
        half = len(row) // 2
        if quantity == "strongest":
            value: str | float = f"E{max(range(len(row)), key=row.__getitem__)}"
        elif quantity == "balance":
            value = round(sum(row[:half]) - sum(row[half:]), 4)
        else:
            value = round(row[int(quantity)], 4)
        spans.append((token.replace("\n", "⏎\n"), value))
    if len(tokens) > MAX_HEAT_TOKENS:
        spans.append((f" [the first {MAX_HEAT_TOKENS} of {len(tokens)} tokens]", None))
    return spans


def stages_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the held-out results of each stage, with their intervals."""
    columns = (
        "accuracy", "greedy_accuracy", "transfer_accuracy", "caption_accuracy", "think_validity",
        "format_rate",
    )  # fmt: skip
    stages = results.get("stages", {})
    rows = [
        [title, *(_rate(stages[stage], name) for name in columns)]
        for stage, title in STAGE_TITLES.items()
        if stage in stages
    ]
    return ["stage", *(name.replace("_", " ") for name in columns)], rows


def _rate(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    low, high = values["ci95"][name]
    return f"{values[name]:.2f} ± {(high - low) / 2:.2f}"


def question(text: str) -> str:
    """Return a question without the marks of its pictures in the user's rows."""
    return text.replace("<image>", "").strip()


def caption_and_answer(completion: str, finish_reason: str) -> tuple[str, str]:
    """Return caption and answer for a table; of a malformed completion the whole text and the reason."""
    parts = parse(completion)
    if isinstance(parts, Malformed):
        return completion, f"malformed: {parts.reason}"
    is_cut = finish_reason != "end"
    return parts.caption, "malformed: cut at the length limit" if is_cut else parts.answer


def number(value: float | None) -> str:
    """Return a number for a table; "-" where there is none."""
    return "-" if value is None else f"{value:.2f}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls sideways in its own box; also for files, as it needs no component."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="table-box"><table><tr>{head}</tr>{body}</table></div>'


def narrow_legend(colors: Mapping[str, str]) -> str:
    """Return the names of a plot's curves for a phone, where the plot's own legend is cut off."""
    names = "".join(
        f'<span style="--curve: {color}">{escape(name)}</span>' for name, color in colors.items()
    )
    return f'<p class="narrow-legend">{names}</p>'
