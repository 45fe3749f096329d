"""Which completions are well-formed, and the reasons why others are not."""

from __future__ import annotations

import pytest

from prism_lite.parts import (
    PART_NAMES,
    SYSTEM_PROMPT,
    TAGS,
    Malformed,
    Parts,
    num_bullets,
    num_steps,
    parse,
)

C, T, A = "<caption>c</caption>", "<think>t</think>", "<answer>a</answer>"

GOOD = [
    (f"{C}{T}{A}", Parts("c", "t", "a")),
    (f"{C}\n{T}\n{A}", Parts("c", "t", "a")),
    (f"  \n{C}\t {T}\n\n{A} \n", Parts("c", "t", "a")),
    (f"<caption>\n - x\n - y \n</caption>{T}{A}", Parts("- x\n - y", "t", "a")),
    (f"{C}<think>1 < 2 and 3 > 2</think>{A}", Parts("c", "1 < 2 and 3 > 2", "a")),
    (f"{C}<think>a <b>bold</b> claim</think>{A}", Parts("c", "a <b>bold</b> claim", "a")),
    (f"{C}{T}<answer>\\boxed{{4}}</answer>", Parts("c", "t", "\\boxed{4}")),
    (f"<caption>größer 三</caption>{T}{A}", Parts("größer 三", "t", "a")),
    (f"{C}<think>caption think answer</think>{A}", Parts("c", "caption think answer", "a")),
]

BAD = [
    ("", "missing <caption>"),
    ("a", "missing <caption>"),
    (f"{T}{A}", "missing <caption>"),
    (f"{C}{A}", "missing <think>"),
    (f"{C}{T}", "missing <answer>"),
    (f"{C}{T}<answer>a", "missing </answer>"),
    (f"{C}<think>t{A}", "missing </think>"),
    (f"<caption>c{T}{A}", "missing </caption>"),
    (f"c</caption>{T}{A}", "missing <caption>"),
    (f"{T}{C}{A}", "order"),
    (f"{A}{T}{C}", "order"),
    (f"{C}<think>t{A}</think>", "order"),  # the answer inside think (METHOD.md section 5.7)
    (f"<caption>c{T}</caption>{A}", "order"),
    (f"{C}</think>t<think>{A}", "order"),
    (f"{C}{T}{A}{C}{T}{A}", "2 times"),  # the whole triple twice (METHOD.md section 5.7)
    (f"{C}{T}{A}{A}", "2 times"),
    (f"{C}{T}{T}{A}", "2 times"),
    (f"{C}<think>see <answer>b</answer></think>{A}", "2 times"),
    (f"<caption></caption>{T}{A}", "empty caption"),
    (f"<caption> \n </caption>{T}{A}", "empty caption"),
    (f"{C}<think></think>{A}", "empty think"),
    (f"{C}{T}<answer> </answer>", "empty answer"),
    (f"Sure! {C}{T}{A}", "outside"),
    (f"{C} so {T}{A}", "outside"),
    (f"{C}{T}, therefore {A}", "outside"),
    (f"{C}{T}{A}.", "outside"),
    (f"{C.upper()}{T}{A}", "missing <caption>"),
    (f"< caption>c</caption>{T}{A}", "missing <caption>"),
    (f"<caption id=1>c</caption>{T}{A}", "missing <caption>"),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_well_formed(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_malformed_says_why(text, reason):
    parsed = parse(text)
    assert isinstance(parsed, Malformed)
    assert reason in parsed.reason


def test_render_and_parse_are_inverse():
    for _, parts in GOOD:
        assert parse(parts.render()) == parts
        assert parts.render() == f"{parts.perception}\n{parts.reasoning}"


def test_the_system_prompt_names_every_tag():
    assert all(tag in SYSTEM_PROMPT for tag in TAGS)
    assert PART_NAMES == ("caption", "think", "answer")


def test_bullets_and_steps_by_hand():
    assert num_bullets("- a row\n- left to right 3,5\n  more of it") == 2
    assert num_bullets("one line\n\nanother") == 2
    assert num_steps("3+5=8,8+2=10") == 2
    assert num_steps("First 3.5 is read. Then 2;\nso 1.75.") == 3
