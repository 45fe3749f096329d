"""What the tabs show, as pure functions of what they read: no Gradio, no model, no files.

Text of a model never becomes HTML: it goes to components that escape it, as (text, label) spans. The
HTML made here holds our own words and numbers only, and everything in it is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from demo.runs.folder import STAGE_TITLES, StageProgress
from demo.screens.verdicts import Marks
from prism_lite.parts import ANSWER, CAPTION, TAGS, THINK, Malformed, parse

MAX_SHOWN_CHARACTERS = 60_000  # of one completion; more makes a browser slow
MAX_HEAT_TOKENS = 1_500
# Lettered, so that the parts are told apart without their colours too.
PART_LABELS = {CAPTION: "C caption", THINK: "T think", ANSWER: "A answer"}
PART_COLORS = {"C caption": "#2a9d8f", "T think": "#d9a441", "A answer": "#e8735a"}
_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))

Spans = list[tuple[str, str | None]]
HEAT_COLORS = {"+": "#D55E00", "-": "#0072B2"}


def part_spans(text: str) -> Spans:
    """A completion, whole, malformed or still streaming, cut into its labelled parts.

    The tags stay visible and unlabelled, and so does all text outside the parts.
    """
    text, note = shortened(text)
    spans: Spans = []
    position, label = 0, None
    for match in _TAG.finditer(text):
        spans.append((text[position : match.start()], label))
        tag = match.group()
        spans.append((tag, None))
        label = None if tag.startswith("</") else PART_LABELS[tag[1:-1]]
        position = match.end()
    spans.append((text[position:], label))
    if note:
        spans.append((note, None))
    return [(body, label) for body, label in spans if body]


def shortened(text: str) -> tuple[str, str]:
    """The text as far as it is shown, and a sentence about the rest ("" if all is shown)."""
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text, ""
    return text[:MAX_SHOWN_CHARACTERS], (
        f"\n[the first {MAX_SHOWN_CHARACTERS:,} of {len(text):,} characters]"
    )


def badge(kind: str, detail: str) -> str:
    """The header's badge. kind: "recorded", "tiny", "live", "loading" or "training"."""
    titles = {
        "recorded": "recorded run",
        "tiny": "tiny model",
        "live": "live",
        "loading": "loading",
        "training": "training",
    }
    return (
        f'<div class="badge badge-{html.escape(kind)}" role="status"><b>{titles[kind]}</b> '
        f"<span>{html.escape(detail)}</span></div>"
    )


def marks_line(
    marks: Marks | None, *, num_tokens: int, seconds: float | None, note: str = ""
) -> str:
    """Ticks and costs of one answer, in words as well as signs."""
    cells = []
    if marks is not None:
        cells += [_mark("format", marks.is_well_formed, marks.reason or "caption, think, answer")]
        for name, value, text in (
            ("caption", marks.caption, "does the caption state what the picture shows"),
            ("think", marks.think, "do the steps follow from what the caption states"),
            ("answer", marks.answer, "is the answer part the gold answer"),
        ):
            if value is not None:
                cells.append(_mark(name, value, text))
    cells.append(f"<span>{num_tokens} tokens</span>")
    if seconds is not None:
        cells.append(f"<span>{seconds:.2f} s</span>")
    if note:
        cells.append(f"<span>{html.escape(note)}</span>")
    return f'<div class="marks">{"".join(cells)}</div>'


def _mark(name: str, is_right: bool, explanation: str) -> str:
    sign, word = ("✓", "right") if is_right else ("✗", "wrong")
    if name == "format":
        word = "well-formed" if is_right else explanation
    return (
        f'<span class="mark {"yes" if is_right else "no"}" tabindex="0" '
        f'title="{html.escape(explanation, quote=True)}">{sign} {html.escape(name)}: '
        f"{html.escape(word)}</span>"
    )


def figures(items: Iterable[tuple[str, str, str]]) -> str:
    """Numbers with their names; each says what it means on hover and on keyboard focus.

    Args:
        items: (name, value, explanation); a value "" shows the name alone.
    """
    cells = [_figure(*item) for item in items]
    return f'<div class="figures">{"".join(cells)}</div>' if cells else ""


def _figure(name: str, value: str, text: str) -> str:
    spoken = f"{name}: {value}. {text}" if value else f"{name}. {text}"
    number = f"<b>{html.escape(value)}</b>" if value else ""
    return (
        f'<div class="figure" tabindex="0" data-help="{html.escape(text, quote=True)}" '
        f'aria-label="{html.escape(spoken, quote=True)}">'
        f"{number}<span>{html.escape(name)}</span></div>"
    )


def note(text: str, *, kind: str = "plain") -> str:
    """A sentence in a box: kind "plain", "good" or "warn"."""
    return f'<div class="note note-{kind}">{html.escape(text)}</div>' if text else ""


def stepper(stages: Sequence[StageProgress], active: str | None, state: str) -> str:
    """The stages as steps, with how far each is."""
    cells = []
    for number, stage in enumerate(stages, 1):
        done = 1.0 if stage.is_done else min(1.0, stage.steps_done / max(1, stage.num_steps))
        kind = "done" if stage.is_done else "active" if stage.stage == active else "waiting"
        word = "done" if stage.is_done else f"{stage.steps_done} of {stage.num_steps}"
        if stage.is_done:
            word = f"done, {stage.num_steps} steps"
        elif stage.stage == active and state:
            word = f"{word}, {state}"
        cells.append(
            f'<li class="step {kind}"><b>{number} {html.escape(STAGE_TITLES[stage.stage])}</b>'
            f"<span>{html.escape(word)}</span>"
            f'<progress max="1" value="{done:.3f}" aria-label="{html.escape(stage.stage)}">'
            "</progress></li>"
        )
    return f'<ol class="stepper">{"".join(cells)}</ol>'


def heat_spans(
    tokens: Sequence[str], weights_TE: Sequence[Sequence[float]], shown: str
) -> list[tuple[str, str | float | None]]:
    """Tokens coloured by their routing at one layer.

    Args:
        tokens: T token texts.
        weights_TE: routing weights, a row per token.
        shown: "strongest" labels each token with its strongest expert; "balance" is the perception
            half's share minus the reasoning half's, -1..1; "3" is the weight of expert 3, 0..1.
    """
    spans: list[tuple[str, str | float | None]] = []
    for token, row in zip(tokens[:MAX_HEAT_TOKENS], weights_TE, strict=False):
        half = len(row) // 2
        if shown == "strongest":
            value: str | float = f"E{max(range(len(row)), key=row.__getitem__)}"
        elif shown == "balance":
            value = round(sum(row[:half]) - sum(row[half:]), 4)
        else:
            value = round(row[int(shown)], 4)
        spans.append((_visible(token), value))
    if len(tokens) > MAX_HEAT_TOKENS:
        spans.append((f" [the first {MAX_HEAT_TOKENS} of {len(tokens)} tokens]", None))
    return spans


def _visible(token: str) -> str:
    return token.replace("\n", "⏎\n")


def stages_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Held-out figures of each stage: header and rows, intervals included."""
    columns = ("accuracy", "greedy_accuracy", "caption_accuracy", "think_validity", "format_rate")
    stages = results.get("stages", {})
    rows = [
        [STAGE_TITLES[stage], *(_rate(stages[stage], name) for name in columns)]
        for stage in STAGE_TITLES
        if stage in stages
    ]
    return ["stage", *(name.replace("_", " ") for name in columns)], rows


def _rate(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    low, high = values["ci95"][name]
    return f"{values[name]:.2f} ± {(high - low) / 2:.2f}"


def caption_and_answer(completion: str, finish_reason: str) -> tuple[str, str]:
    """What a table shows of a completion: of a malformed one all of it, and the reason as the answer."""
    parts = parse(completion)
    if isinstance(parts, Malformed):
        return completion, f"malformed: {parts.reason}"
    is_cut = finish_reason != "end"
    return parts.caption, "malformed: cut at the length limit" if is_cut else parts.answer


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; "-" where there is none."""
    return "-" if value is None else f"{value:+.{digits}f}" if value < 0 else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "48 s", "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
