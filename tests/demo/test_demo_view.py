"""Pure functions of the demo: spans, marks, curves, rewards, HTML."""

from __future__ import annotations

import html.parser
import math
import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from demo.runs.folder import SAMPLE_RUN, StageProgress, read_json
from demo.screens import curves
from demo.screens import html as view
from demo.screens.marks import mark, marks_line
from demo.tabs import compare, train
from demo.tabs.rewards import group_cards, reward_weights, weighted_rewards
from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.types import Sample, Turn

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
COMPLETE = "<caption>- digits: 2,3</caption>\n<think>2+3=5</think>\n<answer>5</answer>"


def facts_sample() -> Sample:
    facts = DigitsFacts((2, 3), "sum")
    turns = (Turn("user", facts.question),)
    return Sample("s", turns, answer="5", facts=facts)


def test_spans_label_the_bodies_and_lose_no_character() -> None:
    spans = view.part_spans(COMPLETE)
    assert "".join(text for text, _ in spans) == COMPLETE
    assert [s for s in spans if s[1]] == [
        ("- digits: 2,3", "C caption"),
        ("2+3=5", "T think"),
        ("5", "A answer"),
    ]


@pytest.mark.parametrize("cut", range(0, len(COMPLETE), 7))
def test_spans_of_a_streaming_completion_are_its_text(cut: int) -> None:
    assert "".join(text for text, _ in view.part_spans(COMPLETE[:cut])) == COMPLETE[:cut]


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
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "markup",
    [
        view.note(HOSTILE),
        view.badge("recorded", HOSTILE),
        view.figures([(HOSTILE, HOSTILE, HOSTILE)]),
        marks_line(mark(HOSTILE, "end", None), num_tokens=1, seconds=1, note=HOSTILE),
        view.stepper([StageProgress("sft", 1, 2, False)], "sft", HOSTILE),
    ],
)
def test_our_html_escapes_whatever_is_put_into_it(markup: str) -> None:
    parser = _Tags()
    parser.feed(markup)
    for tag, attributes in parser.tags:
        assert tag not in ("img", "script")
        assert not any(name.startswith("on") for name in attributes)


def written(digits: tuple[int, ...], path: list[int]) -> str:
    return wording.compose(digits, DigitsFacts((2, 3), "sum"), path, 0, 0).render()


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


@pytest.mark.parametrize(
    ("digits", "misread"),
    [
        ((2, 3), ""),
        ((2, 4), "read 4, is 3"),
        ((9, 4), "read 9, is 2; read 4, is 3"),
        ((2, 3, 3), "read 3 digits, are 2"),
    ],
)
def test_marks_name_the_misread_digits(digits: tuple[int, ...], misread: str) -> None:
    text = written(digits, wording.steps(digits, DigitsFacts((2, 3), "sum")))
    marks = mark(text, "end", facts_sample())
    assert marks.misread == misread and marks.caption == (not misread)
    assert f"caption: {misread or 'right'}" in marks_line(marks, num_tokens=1)


def test_marks_of_malformed_and_cut_completions() -> None:
    assert mark("<caption>a</caption>", "end", facts_sample()).reason == "missing <think>"
    cut = mark(COMPLETE, "length", facts_sample())
    assert not cut.is_well_formed and cut.answer is False
    assert mark(COMPLETE, "end", None).answer is None


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


def frame_of(panel_id: str, metrics: list[dict[str, Any]]) -> pd.DataFrame | None:
    (panel,) = (panel for panel in curves.PANELS if panel.id == panel_id)
    frame, colors = curves.panel_plot(panel, metrics)
    assert frame is None or set(frame.curve) <= set(colors)
    return frame


def test_a_panel_without_points_has_no_frame() -> None:
    assert frame_of("sft_loss", []) is None
    assert frame_of("sft_loss", [{"stage": "sft", "step": 0}]) is None


def test_a_panel_of_one_point_is_typed() -> None:
    frame = frame_of("sft_loss", [{"stage": "sft", "step": 0, "loss": 2}])
    assert frame is not None
    assert frame.step.dtype == frame.value.dtype == float
    assert frame.values.tolist() == [[1.0, 2.0, "SFT"]]


def test_stages_are_laid_end_to_end() -> None:
    """Steps count from 1, as the training prints them."""
    metrics = [
        {"stage": "align", "step": 0, "entropy": 1.0},
        {"stage": "align", "step": 1, "entropy": 0.9},
        {"stage": "rlvr", "step": 0, "entropy": 0.8},
    ]
    frame = frame_of("entropy", metrics)
    assert frame is not None
    assert frame.values.tolist() == [[1, 1.0, "Aligned"], [2, 0.9, "Aligned"], [3, 0.8, "RLVR"]]


def test_evaluations_inside_the_stages_are_curves_beside_the_steps() -> None:
    metrics = [
        {"stage": "sft", "step": 0, "loss": 1.0},
        {"stage": "sft", "step": 1, "loss": 0.9, "step_time": 2.0},
        {"stage": "sft", "step": 1, "eval/accuracy": 0.4, "eval/caption_accuracy": 0.2},
        {"stage": "rlvr", "step": 1, "eval/accuracy": 0.6},
    ]
    frame = frame_of("evaluation", metrics)
    assert frame is not None
    assert frame.values.tolist() == [
        [2, 0.4, "accuracy"],
        [2, 0.2, "captions"],
        [4, 0.6, "accuracy"],
    ]
    text = train._figures(metrics[:3])  # the newest step, whose evaluation is a line of its own
    assert "SFT 2" in text and "0.900" in text and "2.0 s" in text


def test_rlvr_alone_begins_beside_alignment() -> None:
    metrics = [
        {"stage": "control", "step": 0, "entropy": 0.7, "eval/caption_accuracy": 0.1},
        {"stage": "control", "step": 1, "entropy": 0.6},
        {"stage": "align", "step": 0, "entropy": 1.0},
        {"stage": "rlvr", "step": 0, "entropy": 0.8, "eval/caption_accuracy": 0.9},
        {"stage": "sft", "step": 0},
        {"stage": "sft", "step": 1},
    ]
    frame = frame_of("entropy", metrics)
    assert frame is not None
    rows = [[1, 1.0, "Aligned"], [2, 0.8, "RLVR"], [1, 0.7, "RLVR alone"], [2, 0.6, "RLVR alone"]]
    assert frame.values.tolist() == rows
    frame = frame_of("evaluation", metrics)  # it has SFT too
    assert frame is not None
    assert frame.values.tolist() == [
        [4, 0.9, "captions"],
        [3, 0.1, "captions, RLVR alone"],
    ]


def test_pair_accuracy_continues_in_rlvr_with_the_game_on() -> None:
    metrics = [
        {"stage": stage, "step": 0, "disc/pair_accuracy_perception": value}
        for stage, value in (("align", 0.9), ("rlvr", 0.6))
    ]
    frame = frame_of("pair_accuracy", metrics)
    assert frame is not None
    assert frame[frame.curve == "perception"].value.tolist() == [0.9, 0.6]


def test_pair_accuracy_has_its_chance_line() -> None:
    metrics = [
        {"stage": "align", "step": s, "disc/pair_accuracy_perception": 0.9} for s in range(3)
    ]
    frame = frame_of("pair_accuracy", metrics)
    assert frame is not None
    chance = frame[frame.curve == curves.CHANCE]
    assert chance.step.tolist() == [1, 3] and chance.value.tolist() == [0.5, 0.5]


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
    weighted = weighted_rewards(records, {"accuracy": 0.8, "format": 0.2})
    assert list(weighted.index) == [(1, "1.1"), (1, "1.2"), (2, "2.1")]
    assert weighted.sum(axis=1).tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_the_recorded_bars_add_up_to_the_logged_reward() -> None:
    from demo.runs import folder

    for step in folder.rollout_steps(folder.SAMPLE_RUN, "rlvr"):
        records = folder.read_rollouts(folder.SAMPLE_RUN, "rlvr", step)
        weighted = weighted_rewards(records, reward_weights(folder.SAMPLE_RUN))
        logged = next(
            m for m in folder.read_metrics(folder.SAMPLE_RUN, "rlvr") if m["step"] == step
        )
        mean = weighted.sum(axis=1).mean()
        assert math.isclose(mean, logged["reward"], abs_tol=1e-5)


def test_the_drift_meter_shows_the_figures_of_the_run() -> None:
    drift = read_json(SAMPLE_RUN / "results.json")["drift"]
    table, note, box = compare.drift_screen({"drift": drift})
    assert box.visible
    assert "nats per token" in note
    header = table.headers
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in table.value["data"]}
    assert [*rows] == ["Base", "SFT", "RLVR alone", "Aligned", "RLVR"]
    for title, stage in (("Base", "base"), ("Aligned", "align"), ("RLVR", "rlvr")):
        wrong = f"{drift[stage]['perception_errors']:.3f}"
        assert rows[title]["captions wrong"] == wrong
        assert rows[title]["tokens"] == f"{drift[stage]['token_difference']:+.1f}"
    assert rows["Base"]["KL to start"] == "-"
    assert float(rows["RLVR"]["captions wrong"]) < 0.2 < float(rows["RLVR alone"]["captions wrong"])
    assert not compare.drift_screen({})[2].visible


def test_the_questions_that_the_model_has_learned_are_the_ones_offered() -> None:
    from demo.models.questions import KIND_OF, questions_of
    from prism_lite.digits.lessons import lesson_kinds
    from prism_lite.recipe import load_recipe, to_dict

    assert set(KIND_OF.values()) == set(wording.QUESTIONS)
    config = load_recipe("tiny")
    offered = questions_of(to_dict(config)["data"])
    assert {KIND_OF[question] for question in offered} == set(lesson_kinds(config.data.digits))
    assert questions_of({"task": "files"}) == []


def test_the_plan_s_bars_are_its_figures() -> None:
    from demo.tabs.memory import plan_frame, plan_summary

    plan = {
        "card_gib": 10,
        "stages": {
            "sft": {
                "peak_gib": 8.0,
                "by_category": {"weights": 5.0, "activations": 3.0, "logits": 0},
            },
            "rlvr": {"peak_gib": 9.5, "by_category": {"weights": 5.0, "kv_cache": 4.5}},
        },
    }
    sums = plan_frame(plan).groupby("stage").GiB.sum().to_dict()
    assert sums == {"SFT": 8.0, "RLVR": 9.5, "usable on the GPU": 9.0}
    assert "Does not fit" in plan_summary(plan, "a")
    assert "Fits" in plan_summary(plan | {"card_gib": 12}, "a")


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (COMPLETE, "end", ("- digits: 2,3", "5")),
        (COMPLETE, "length", ("- digits: 2,3", "malformed: cut at the length limit")),
        ("<caption>a</caption>", "end", ("<caption>a</caption>", "malformed: missing <think>")),
    ],
)
def test_what_a_table_shows_of_a_completion(
    text: str, finish: str, expected: tuple[str, str]
) -> None:
    assert view.caption_and_answer(text, finish) == expected


def test_group_cards_order_the_rollouts_of_a_prompt_by_advantage() -> None:
    def record(
        prompt: str, answer: str, accuracy: float | None, advantage: float
    ) -> dict[str, Any]:
        text = f"<caption>c</caption>\n<think>t</think>\n<answer>{answer}</answer>"
        return {
            "prompt_id": prompt, "question": "<b>How many?</b>", "completion": text,
            "finish_reason": "end", "advantage": advantage, "rewards": {"accuracy": accuracy},
        }  # fmt: skip

    records = [
        record("x", "3", 0.0, -0.5),
        record("x", "<i>", 1.0, 0.5),
        record("y", "5", None, 0.0),
    ]
    from demo.runs import folder

    cards = group_cards(folder.SAMPLE_RUN, ["1.1", "1.2", "2.1"], records)
    first, second = cards.split("<article")[1:]
    assert re.findall(r"> ?([✓✗?]) (\S+): (\S+) <b>([^<]+)</b>", first) == [
        ("✓", "1.2", "&lt;i&gt;", "+0.50"),
        ("✗", "1.1", "3", "-0.50"),
    ]
    assert "&lt;b&gt;How many?&lt;/b&gt;" in first
    assert "Gold answer: unknown" in first
    assert "? 2.1: 5 <b>+0.00</b>" in second


def test_rewards_of_the_user_are_in_the_bars_and_the_curves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "rlvr: {rewards: {accuracy: 0.5, 'my/rewards.py:brevity': 0.25, 'my.module:color': 1, ocr: 0}}\n"
    )
    weights = reward_weights(tmp_path)
    assert weights == {"accuracy": 0.5, "brevity": 0.25, "color": 1.0}
    earned = [
        {"accuracy": 1.0, "ocr": 1.0, "brevity": 0.5, "color": None},
        {"accuracy": 0.0, "ocr": 1.0, "brevity": -1.0, "color": 2.0},
    ]
    weighted = weighted_rewards([{"prompt_id": "p", "rewards": r} for r in earned], weights)
    assert list(weighted) == ["accuracy", "brevity", "color"]
    assert weighted.sum(axis=1).tolist() == pytest.approx([0.625, 1.75])
    metrics = [
        {"stage": "rlvr", "step": s, "rewards/brevity/mean": s / 2, "rewards/brevity/std": 9}
        for s in range(2)
    ]
    frame = frame_of("rewards", metrics)
    assert frame is not None
    assert frame.values.tolist() == [[1.0, 0.0, "brevity"], [2.0, 0.5, "brevity"]]


def test_unknown_rewards_get_their_own_colors() -> None:
    names = ["accuracy", "format", "a", "b"]
    colors = curves.reward_colors(names)
    assert list(colors) == names and len(set(colors.values())) == 4
    assert curves.reward_colors(["b", "accuracy"])["accuracy"] == colors["accuracy"]


def test_the_command_of_the_form_names_what_was_changed() -> None:
    from demo.runs import trainer

    values = [None, 7, None, None, None, None]
    line = trainer.command_line("a", "tiny", values)
    assert line == "prism-lite run --out runs/a --recipe tiny sft.steps=7"
    with pytest.raises(ValueError, match="expected 0 to"):
        trainer.training_arguments("tiny", [-1, *values[1:]])
    with pytest.raises(ValueError, match="Train on your own data"):
        trainer.require_embedded_data("t4-2b")
