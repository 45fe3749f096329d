"""The pure half of the demo: spans, marks, curves, HTML of our own words."""

from __future__ import annotations

import html.parser
import math
import random
from pathlib import Path

import pytest

from demo.runs.folder import StageProgress
from demo.screens import curves
from demo.screens import html as view
from demo.screens.verdicts import mark
from demo.tabs.rewards import reward_rows
from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.types import Sample, Turn

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
WHOLE = "<caption>- digits: 2,3</caption>\n<think>2+3=5</think>\n<answer>5</answer>"


def facts_sample() -> Sample:
    facts = DigitsFacts((2, 3), "sum")
    turns = (Turn("user", facts.question),)
    return Sample("s", turns, answer="5", facts=facts)


def test_spans_label_the_bodies_and_lose_no_character() -> None:
    spans = view.part_spans(WHOLE)
    assert "".join(text for text, _ in spans) == WHOLE
    assert [s for s in spans if s[1]] == [
        ("- digits: 2,3", "C caption"),
        ("2+3=5", "T think"),
        ("5", "A answer"),
    ]


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 7))
def test_spans_of_a_streaming_completion_are_its_text(cut: int) -> None:
    assert "".join(text for text, _ in view.part_spans(WHOLE[:cut])) == WHOLE[:cut]


def test_an_unclosed_part_keeps_its_label_to_the_end() -> None:
    assert view.part_spans("<think>never ends")[-1] == ("never ends", "T think")


def test_a_completion_of_20000_tokens_is_cut_and_says_so() -> None:
    text = "<caption>" + "seven " * 20_000
    spans = view.part_spans(text)
    shown = "".join(body for body, _ in spans[:-1])
    assert text.startswith(shown) and len(shown) == view.MAX_SHOWN_CHARACTERS
    assert f"{len(text):,} characters" in spans[-1][0]


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "made",
    [
        view.note(HOSTILE),
        view.badge("recorded", HOSTILE),
        view.figures([(HOSTILE, HOSTILE, HOSTILE)]),
        view.marks_line(mark(HOSTILE, "end", None), num_tokens=1, seconds=1, note=HOSTILE),
        view.stepper([StageProgress("sft", 1, 2, False)], "sft", HOSTILE),
    ],
)
def test_our_html_escapes_whatever_is_put_into_it(made: str) -> None:
    parser = _Tags()
    parser.feed(made)
    for tag, attributes in parser.found:
        assert tag not in ("img", "script")
        assert not any(name.startswith("on") for name in attributes)


def written(seen: tuple[int, ...], path: list[int]) -> str:
    return wording.compose(seen, DigitsFacts((2, 3), "sum"), path, 0, 0).render()


@pytest.mark.parametrize(
    ("text", "caption", "think", "answer"),
    [
        (written((2, 3), [2, 5]), True, True, True),
        (written((2, 4), [2, 6]), False, True, False),  # misread, reasoned rightly
        (written((2, 3), [2, 6]), True, False, False),  # read rightly, slipped
        (written((2, 4), [2, 5]), False, False, True),  # two faults that cancel
    ],
)
def test_marks_say_which_part_is_wrong(text: str, caption: bool, think: bool, answer: bool) -> None:
    marks = mark(text, "end", facts_sample())
    assert marks.is_well_formed
    assert (marks.caption, marks.think, marks.answer) == (caption, think, answer)


def test_marks_of_malformed_and_cut_completions() -> None:
    assert mark("<caption>a</caption>", "end", facts_sample()).reason == "missing <think>"
    cut = mark(WHOLE, "length", facts_sample())
    assert not cut.is_well_formed and cut.answer is False
    assert mark(WHOLE, "end", None).answer is None


def test_thinning_keeps_ends_and_extremes() -> None:
    rng = random.Random(0)
    points = [(float(i), rng.gauss(0, 1)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[8765] = (8765.0, -99.0)
    thin = curves.thin(points)
    assert len(thin) <= curves.MAX_POINTS
    assert thin[0] == points[0] and thin[-1] == points[-1]
    assert (4321.0, 99.0) in thin and (8765.0, -99.0) in thin
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    assert set(thin) <= set(points)


@pytest.mark.parametrize("num", [0, 1, 2, 499, 500])
def test_short_curves_are_not_thinned(num: int) -> None:
    points = [(float(i), float(i)) for i in range(num)]
    assert curves.thin(points) == points


def panel(id_: str) -> curves.Panel:
    return next(p for p in curves.PANELS if p.id == id_)


def test_a_panel_without_points_has_no_frame() -> None:
    assert curves.panel_frame(panel("sft_loss"), []) is None
    assert curves.panel_frame(panel("sft_loss"), [{"stage": "sft", "step": 0}]) is None


def test_a_panel_of_one_point_is_typed() -> None:
    frame = curves.panel_frame(panel("sft_loss"), [{"stage": "sft", "step": 0, "loss": 2}])
    assert frame is not None
    assert frame.step.dtype == frame.value.dtype == float
    assert frame.values.tolist() == [[0.0, 2.0, "loss"]]


def test_stages_are_laid_end_to_end() -> None:
    metrics = [
        {"stage": "align", "step": 0, "entropy": 1.0},
        {"stage": "align", "step": 1, "entropy": 0.9},
        {"stage": "rlvr", "step": 0, "entropy": 0.8},
    ]
    frame = curves.panel_frame(panel("entropy"), metrics)
    assert frame is not None
    assert frame.values.tolist() == [[0, 1.0, "Aligned"], [1, 0.9, "Aligned"], [2, 0.8, "RLVR"]]


def test_pair_accuracy_has_its_chance_line() -> None:
    metrics = [
        {"stage": "align", "step": s, "disc/pair_accuracy_perception": 0.9} for s in range(3)
    ]
    frame = curves.panel_frame(panel("pair_accuracy"), metrics)
    assert frame is not None
    chance = frame[frame.curve == curves.CHANCE]
    assert chance.step.tolist() == [0, 2] and chance.value.tolist() == [0.5, 0.5]


def test_heat_of_tokens() -> None:
    weights = [[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]]
    assert view.heat_spans(["a", "b\n"], weights, "strongest") == [("a", "E0"), ("b⏎\n", "E3")]
    assert view.heat_spans(["a", "b"], weights, "balance") == [("a", 1.0), ("b", -1.0)]
    assert view.heat_spans(["a", "b"], weights, "1") == [("a", 0.3), ("b", 0.0)]


def test_heat_is_cut_at_its_limit() -> None:
    num = view.MAX_HEAT_TOKENS + 500
    spans = view.heat_spans(["x"] * num, [[1.0, 0.0]] * num, "0")
    assert len(spans) == view.MAX_HEAT_TOKENS + 1 and str(num) in spans[-1][0]


def test_reward_bars_add_up() -> None:
    records = [
        {"prompt_id": p, "rewards": {"accuracy": a, "format": f}}
        for p, a, f in (("p", 1.0, 1.0), ("p", 0.0, 1.0), ("q", 0.0, 0.0))
    ]
    rows = reward_rows(records, {"accuracy": 0.8, "format": 0.2})
    assert [row["rollout"] for row in rows] == ["1.1", "1.2", "2.1"]
    assert [row["sum"] for row in rows] == pytest.approx([1.0, 0.2, 0.0])


def test_the_recorded_bars_add_up_to_the_logged_reward() -> None:
    from demo.runs import folder
    from demo.tabs.rewards import weights

    for step in folder.rollout_steps(folder.SAMPLE_RUN, "rlvr"):
        records = folder.read_rollouts(folder.SAMPLE_RUN, "rlvr", step)
        rows = reward_rows(records, weights(folder.SAMPLE_RUN))
        logged = next(
            m for m in folder.read_metrics(folder.SAMPLE_RUN, "rlvr") if m["step"] == step
        )
        assert math.isclose(sum(r["sum"] for r in rows) / len(rows), logged["reward"], abs_tol=1e-5)


def test_the_questions_of_the_task_are_the_ones_offered() -> None:
    from demo.models.questions import KIND_OF

    assert set(KIND_OF.values()) == set(wording.QUESTIONS)


def test_the_plan_s_bars_are_its_figures() -> None:
    from demo.tabs.memory import plan_frame, plan_verdict

    found = {
        "card_gib": 10,
        "stages": {
            "sft": {
                "peak_gib": 8.0,
                "by_category": {"weights": 5.0, "activations": 3.0, "logits": 0},
            },
            "rlvr": {"peak_gib": 9.5, "by_category": {"weights": 5.0, "kv_cache": 4.5}},
        },
    }
    sums = plan_frame(found).groupby("stage").GiB.sum().to_dict()
    assert sums == {"SFT": 8.0, "RLVR": 9.5, "room on the card": 9.0}
    assert "Does not fit" in plan_verdict(found) and "Fits" in plan_verdict(
        found | {"card_gib": 12}
    )


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (WHOLE, "end", ("- digits: 2,3", "5")),
        (WHOLE, "length", ("- digits: 2,3", "malformed: cut at the length limit")),
        ("<caption>a</caption>", "end", ("<caption>a</caption>", "malformed: missing <think>")),
    ],
)
def test_what_a_table_shows_of_a_completion(
    text: str, finish: str, expected: tuple[str, str]
) -> None:
    assert view.caption_and_answer(text, finish) == expected


def test_further_rewards_are_in_the_bars(tmp_path: Path) -> None:
    from demo.tabs.rewards import weights

    (tmp_path / "config.yaml").write_text(
        "rlvr: {accuracy_weight: 0.5, format_weight: 0.2, ocr_weight: 0.3, judge_weight: 0.0}\n"
    )
    records = [{"prompt_id": "p", "rewards": {"accuracy": 1.0, "format": 1.0, "ocr": 0.5}}]
    (row,) = reward_rows(records, weights(tmp_path))
    assert row["parts"] == {"accuracy": 0.5, "format": 0.2, "ocr": 0.15}
    assert row["sum"] == pytest.approx(0.85)


def test_the_command_of_the_form_names_what_was_changed() -> None:
    from demo.runs import command

    values = [None, 7, None, None, None, None]
    line = command.command_line("a", "tiny", values)
    assert line == "prism-lite run --out runs/a --recipe tiny sft.steps=7"
    with pytest.raises(ValueError, match="expected 0 to"):
        command.arguments("tiny", [-1, *values[1:]])
    with pytest.raises(ValueError, match="your own file"):
        command.demand_startable("t4-2b")
