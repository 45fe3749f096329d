"""The first screen as HTML: one picture and question, a card per stage, and how the figures changed.

Text of a model is escaped; what is wrong in it is underlined, and said in words below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from demo.runs.folder import STAGE_TITLES
from demo.screens import html
from demo.screens.errors import (
    NOTHING_WRONG,
    Span,
    answer_errors,
    caption_errors,
    reasons,
    think_errors,
)
from demo.screens.marks import Marks
from demo.screens.pictures import picture_html
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import ANSWER, CAPTION, THINK, Malformed, Parts, parse
from prism_lite.types import Sample

_PART_CLASSES = {CAPTION: "c", THINK: "t", ANSWER: "a"}
# Figure, title, class of its line.
_CHART_FIGURES = (
    ("accuracy", "answers", "a"),
    ("transfer_accuracy", "new kinds", "x"),
    ("caption_accuracy", "captions", "c"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _LABELS = 480, 230, 34, 14, 134


def question_html(sample: Sample, number: int, num_examples: int) -> str:
    """Return the picture, the question and what is known of the truth."""
    return (
        f'<div class="story-question">{picture_html(sample.pictures[0].open())}<div>'
        f"<h2>{escape(html.question(sample.question))}</h2><p>{truth_html(sample)}</p>"
        f"<p class='stage-help'>Example {number} of {num_examples}; left and right arrow keys show "
        "others.</p></div></div>"
    )


def truth_html(sample: Sample) -> str:
    """Return the digits of the picture and the right answer, as far as they are known."""
    truth = ""
    if isinstance(sample.facts, DigitsFacts):
        digits = " ".join(map(str, sample.facts.digits))
        truth = f"It shows <b>{escape(digits)}</b>. "
    if sample.answer is not None:
        truth += f"The right answer is <b>{escape(sample.answer)}</b>."
    return truth


def cards_html(sample: Sample, lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a card for each stage, in the order of `lines`.

    Args:
        lines: the recorded completion of each stage, with its marks.
    """
    cards = [_card(stage, sample, line) for stage, line in lines.items()]
    return f'<div class="story-cards">{"".join(cards)}</div>'


def _card(stage: str, sample: Sample, line: Mapping[str, Any]) -> str:
    marks = Marks(**line["marks"])
    parts = parse(line["completion"])
    errors = reasons(sample, line["completion"], line["finish_reason"])
    if isinstance(parts, Malformed):
        body = f'<div class="part">{escape(line["completion"])}</div>'
    else:
        body = "".join(
            f'<div class="part {_PART_CLASSES[name]}"><i>{name}</i> {_underlined(spans)}</div>'
            for name, spans in _spans(sample, parts, marks).items()
        )
    is_right = marks.answer
    symbol, word = {True: ("✓", "right"), False: ("✗", "wrong"), None: ("", "")}[is_right]
    why = "; ".join(errors) or NOTHING_WRONG
    return (
        f'<article class="story-card {word}"><h3>{escape(STAGE_TITLES[stage])} '
        f'<span class="mark {"yes" if is_right else "no"}">{symbol} answer {word}</span></h3>'
        f'{body}<p class="why">{escape(why)}</p></article>'
    )


def _spans(sample: Sample, parts: Parts, marks: Marks) -> dict[str, list[Span]]:
    if isinstance(sample.facts, DigitsFacts):
        return {
            CAPTION: caption_errors(sample.facts, parts.caption),
            THINK: think_errors(sample.facts, parts),
            ANSWER: answer_errors(sample.facts, parts.answer),
        }
    wrong = f"the gold answer is {sample.answer}" if marks.answer is False else ""
    return {
        CAPTION: [Span(parts.caption)],
        THINK: [Span(parts.think)],
        ANSWER: [Span(parts.answer, wrong)],
    }


def _underlined(spans: Sequence[Span]) -> str:
    return "".join(
        f'<u title="{escape(span.error)}">{escape(span.text)}</u>'
        if span.error
        else escape(span.text)
        for span in spans
    )


def chart_html(results: Mapping[str, Any]) -> str:
    """Return a slope chart of the held-out figures over the stages, "" before the second stage.

    RLVR alone, which continues SFT like alignment does, is drawn as a dashed branch.
    """
    stages = results.get("stages", {})
    main = [stage for stage in ("base", "sft", "align", "rlvr") if stage in stages]
    if len(main) < 2:
        return ""
    step = (_WIDTH - _LEFT - _LABELS) / (len(main) - 1)
    x_of = {stage: _LEFT + step * number for number, stage in enumerate(main)}
    pieces = [_grid(x_of)]
    names = [figure for figure in _CHART_FIGURES if figure[0] in stages[main[0]]]
    ends = _label_heights([stages[main[-1]][name] for name, *_ in names])
    for (name, title, css_class), label_y in zip(names, ends, strict=True):
        points = " ".join(f"{x_of[s]:.0f},{_y(stages[s][name]):.0f}" for s in main)
        pieces.append(f'<polyline class="{css_class}" points="{points}"/>')
        if "control" in stages and "sft" in x_of:
            branch = (
                f"{x_of['sft']:.0f},{_y(stages['sft'][name]):.0f} "
                f"{x_of[main[-1]]:.0f},{_y(stages['control'][name]):.0f}"
            )
            pieces.append(f'<polyline class="{css_class} branch" points="{branch}"/>')
        last = stages[main[-1]][name]
        pieces.append(
            f'<text class="{css_class}" x="{x_of[main[-1]] + 8:.0f}" y="{label_y:.0f}">{last:.2f} '
            f"{escape(title)}</text>"
        )
    text = "; ".join(
        f"{title} {', '.join(f'{STAGE_TITLES[s]} {stages[s][name]:.2f}' for s in main)}"
        for name, title, _ in names
    )
    caption = (
        f"Right answers and captions, shares of {results.get('n')} held-out prompts. New kinds: "
        "answers to questions that alignment and RLVR never ask."
    )
    if "control" in stages:
        caption += " Dashed: RLVR alone, with as many updates."
    return (
        f'<figure class="story-chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(text)}">{"".join(pieces)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _grid(x_of: Mapping[str, float]) -> str:
    right = max(x_of.values())
    lines = [
        f'<line x1="{_LEFT}" x2="{right:.0f}" y1="{_y(share):.0f}" y2="{_y(share):.0f}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(share) + 4:.0f}" text-anchor="end">{share:g}</text>'
        for share in (0, 0.5, 1)
    ]
    titles = [
        f'<text x="{x:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{STAGE_TITLES[stage]}</text>'
        for stage, x in x_of.items()
    ]
    return "".join([*lines, *titles])


def _y(share: float) -> float:
    """Return the height of a share, 0 at the bottom."""
    return _TOP + (1 - share) * (_HEIGHT - _TOP - 28)


def _label_heights(shares: Sequence[float]) -> list[float]:
    """Return the heights of the labels at the lines' ends, with at least 15 between them."""
    order = sorted(range(len(shares)), key=lambda i: _y(shares[i]))
    heights = [0.0] * len(shares)
    lowest = 0.0
    for index in order:
        heights[index] = max(_y(shares[index]) + 4, lowest + 15)
        lowest = heights[index]
    return heights
