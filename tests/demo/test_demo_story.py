"""The first tab: what is underlined, and what the chart draws."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from PIL import Image

from demo.runs import folder
from demo.screens import story
from demo.screens.errors import Span, answer_errors, caption_errors, think_errors
from demo.screens.marks import mark
from demo.tabs.story import _examples, _screen
from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Parts
from prism_lite.types import Picture, Sample, Turn

TRUTH, STATED = (6, 5, 0, 4, 9), (6, 5, 2, 4, 9)
SUM = DigitsFacts(TRUTH, "sum")


def wrong(spans: list[Span]) -> list[tuple[str, str]]:
    return [(span.text, span.error) for span in spans if span.error]


def test_each_misread_digit_of_each_wording_is_underlined() -> None:
    for style in range(wording.NUM_CAPTION_STYLES):
        caption = wording.caption_text(STATED, style)
        spans = caption_errors(SUM, caption)
        assert "".join(span.text for span in spans) == caption
        assert wrong(spans) == [("2", "read 2, is 0")]
        assert not wrong(caption_errors(SUM, wording.caption_text(TRUTH, style)))


def test_captions_that_cannot_be_compared_digit_by_digit_are_underlined_as_one() -> None:
    assert wrong(caption_errors(SUM, "- digits: 6,5")) == [("- digits: 6,5", "2 digits, are 5")]
    text = "a row of digits"
    assert wrong(caption_errors(SUM, text)) == [(text, "not one of the task's wordings")]


def test_the_first_step_that_does_not_follow_from_the_own_caption_is_underlined() -> None:
    caption = wording.caption_text(STATED, 0)
    path = wording.steps(STATED, SUM)
    assert path == [6, 11, 13, 17, 26]
    slipped = [6, 11, 3, 7, 16]  # a dropped carry, and what follows from it
    for style, step, expected in ((0, "11+2=3", "11+2=13"), (1, "+2 is 3", "+2 is 13")):
        right = Parts(caption, wording.think_text(STATED, SUM, path, style), "26")
        assert think_errors(SUM, right) == [Span(right.think)]
        think = wording.think_text(STATED, SUM, slipped, style)
        spans = think_errors(SUM, Parts(caption, think, "16"))
        assert "".join(span.text for span in spans) == think
        assert wrong(spans) == [(step, f"step “{step}”, expected “{expected}”")]


def test_a_think_in_other_words_is_underlined_as_one() -> None:
    parts = Parts(wording.caption_text(TRUTH, 0), "it is 24", "24")
    assert wrong(think_errors(SUM, parts)) == [
        ("it is 24", "expected “6+5=11,11+0=11,11+4=15,15+9=24”")
    ]
    unread = Parts("no digits", "6+5=11", "11")  # nothing that the steps could follow from
    assert think_errors(SUM, unread) == [Span("6+5=11")]


def test_a_wrong_answer_names_the_right_one() -> None:
    assert answer_errors(SUM, "24") == [Span("24")]
    assert wrong(answer_errors(SUM, "26")) == [("26", "26, gold answer 24")]


def line_of(text: str, sample: Sample) -> dict[str, Any]:
    marks = asdict(mark(text, "end", sample))
    return {"completion": text, "finish_reason": "end", "marks": marks}


def sample_of(facts: DigitsFacts) -> Sample:
    answer = wording.answer_text(facts, wording.steps(facts.digits, facts))
    turns = (Turn("user", facts.question),)
    pictures = (Picture("p", Image.new("RGB", (8, 8))),)
    return Sample("a", turns, pictures, answer=answer, facts=facts)


def test_cards_escape_the_model_and_say_what_is_wrong() -> None:
    sample = sample_of(SUM)
    hostile = "<caption><img src=x onerror=1></caption>\n<think>1</think>\n<answer>24</answer>"
    right = wording.compose(TRUTH, SUM, wording.steps(TRUTH, SUM), 0, 0).render()
    lines = {"base": line_of("<b>no parts</b>", sample), "sft": line_of(hostile, sample)}
    cards = story.cards_html(sample, lines | {"align": line_of(right, sample)})
    assert "<img" not in cards
    assert "&lt;img src=x onerror=1&gt;" in cards
    assert "<b>no" not in cards
    base, sft, align = cards.split("<article")[1:]
    assert "malformed" in base
    assert "answer wrong" in base
    assert "not one of the task&#x27;s wordings" in sft
    assert "answer right" in sft
    assert "nothing wrong that can be checked" in align
    assert "<u" not in align


def test_the_chart_draws_the_shares_where_they_belong() -> None:
    def shares(accuracy: float) -> dict[str, float]:
        return {"accuracy": accuracy, "transfer_accuracy": 0.25, "caption_accuracy": 1.0}

    stages = {"base": shares(0.0), "sft": shares(0.5), "rlvr": shares(1.0), "control": shares(0.0)}
    chart = story.chart_html({"n": 9, "stages": stages})
    lines = re.findall(r'<polyline class="([^"]+)" points="([^"]+)"', chart)
    heights = {
        css_class: [float(point.split(",")[1]) for point in points.split()]
        for css_class, points in lines
    }
    bottom, middle, top = heights["a"]
    assert bottom > middle > top
    assert middle == round((bottom + top) / 2)
    assert heights["c"] == [top, top, top]
    assert heights["a branch"] == [middle, bottom]
    assert "9 held-out prompts" in chart
    labels = [float(y) for y in re.findall(r'<text class="[acx]" x="[^"]+" y="([^"]+)"', chart)]
    assert min(abs(a - b) for i, a in enumerate(labels) for b in labels[:i]) >= 14


def test_no_chart_before_the_second_stage() -> None:
    assert story.chart_html({"stages": {"base": {"accuracy": 0.5}}}) == ""


def test_the_recordings_first_example_shows_a_corrected_caption() -> None:
    examples = _examples(folder.SAMPLE_RUN)
    index, question, cards = _screen(folder.SAMPLE_RUN, examples, len(examples))
    assert index == 0  # the first follows the last
    assert f"Example 1 of {len(examples)}" in question
    *_, sft, control, align, rlvr = cards.split("<article")
    assert "read" in sft
    assert "is" in control
    assert "<u" not in rlvr
    assert "read" not in align or "read" not in rlvr
