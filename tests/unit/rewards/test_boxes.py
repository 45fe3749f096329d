"""Boxes in pixels or thousandths, as corners or with a size; their check; a gold answer of none."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prism_lite.__main__ import main
from prism_lite.config import BoxesConfig
from prism_lite.data.checks.check import check
from prism_lite.data.checks.rules import CheckRules
from prism_lite.rewards.boxes import iou_reward, says_no_box

SIZE = (400, 200)


def _completion(answer: str) -> str:
    return f"<caption>a dog</caption><think>so</think><answer>{answer}</answer>"


def _reward(predicted, gold, **settings):
    reward = functools.partial(iou_reward, settings=BoxesConfig(**settings))
    return reward([""], [_completion(str(predicted))], boxes=[gold], sizes=[SIZE])[0]


class TestReward:
    def test_gold_in_pixels_predictions_in_thousandths(self):
        units = {"unit": "pixels", "predicted_unit": "thousandths"}
        assert _reward([250, 100, 500, 1000], [100, 20, 200, 200], **units) == pytest.approx(1)
        assert _reward([100, 20, 200, 200], [100, 20, 200, 200], **units) < 0.2
        units = {"unit": "thousandths", "predicted_unit": "pixels"}
        assert _reward([100, 20, 200, 200], [250, 100, 500, 1000], **units) == pytest.approx(1)

    def test_size_form(self):
        assert _reward([10, 20, 30, 40], [10, 20, 20, 20], form="xywh", predicted_form="xyxy") == 1
        assert _reward([10, 20, 20, 20], [10, 20, 20, 20], form="xywh") == 1
        assert _reward([10, 20, 20, 20], [10, 20, 30, 40], predicted_form="xywh") == 1
        assert _reward([10, 20, 20, 20], [10, 20, 30, 40]) < 0.5

    @given(st.tuples(*[st.integers(0, 200)] * 4).filter(lambda b: b[0] != b[2] and b[1] != b[3]))
    def test_defaults_are_those_of_the_data(self, box):
        assert iou_reward([""], [_completion(str(list(box)))], boxes=[list(box)]) == [1.0]
        assert _reward(list(box), list(box), unit="pixels", predicted_unit="pixels") == 1

    def test_size_of_the_picture_is_needed(self):
        settings = BoxesConfig(unit="pixels", predicted_unit="thousandths")
        with pytest.raises(ValueError, match=r"row 0: gold boxes in pixels .* need the size"):
            iou_reward([""], [_completion("[1, 2, 3, 4]")], boxes=[[1, 2, 3, 4]], settings=settings)

    @pytest.mark.parametrize(
        "gold", ["none", "None", "none.", "No box", "[]", [], "no object", "null"]
    )
    def test_none(self, gold):
        predicted = ["none", "There is no dog.", "[]", "[1, 2, 3, 4]", "none, or [1, 2, 3, 4]"]
        completions = [*map(_completion, predicted), "none"]
        assert iou_reward([""] * 6, completions, boxes=[gold] * 6) == [1, 1, 1, 0, 0, 0]

    def test_other_words_are_not_none(self):
        assert not any(map(says_no_box, ("left", "", "nothing but [1, 2, 3, 4]", "no. 5")))


def _file(tmp_path, answers, *, question="<image>Give the bounding box of the dog."):
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    rows = (
        {"prompt": f"{question} {i}", "images": ["a.png"], "answer": answer}
        for i, answer in enumerate(answers)
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


class TestCheck:
    def test_boxes_that_fit(self, tmp_path):
        answers = ["[0, 0, 400, 200]", "none", "[[1, 2, 30, 40], [5, 6, 70, 80]]"]
        assert check(_file(tmp_path, answers)).counts == {}

    @pytest.mark.parametrize(
        ("box", "kind"),
        [
            ("[0, 0, 500, 100]", "box_outside_picture"),
            ("[0, 0, 100, 201.5]", "box_outside_picture"),
            ("[-5, 0, 100, 100]", "box_outside_picture"),
            ("[0.1, 0.1, 0.5, 0.9]", "box_outside_picture"),
            ("[300, 100, 50, 50]", "box_corners"),
        ],
    )
    def test_boxes_that_do_not_fit(self, tmp_path, box, kind):
        report = check(_file(tmp_path, ["[1, 2, 3, 4]", box]))
        assert report.counts[kind] == 1
        assert report.findings[0].row == 2

    def test_remedy_is_the_option_that_fits(self, tmp_path):
        path = _file(tmp_path, ["[500, 100, 900, 800]"])
        assert main(["data", "check", str(path)]) == 2
        assert "check with --boxes thousandths,xyxy and set" in check(path).findings[0].message
        assert main(["data", "check", str(path), "--boxes", "thousandths,xyxy"]) == 0
        rules = CheckRules(boxes=BoxesConfig(unit="pixels", form="xywh"))
        assert check(_file(tmp_path, ["[300, 100, 50, 50]"]), rules=rules).counts == {}

    def test_mixed_systems(self, tmp_path):
        answers = ["[10, 10, 20, 20]", "[300, 100, 50, 50]", "[500, 100, 900, 150]"]
        report = check(_file(tmp_path, answers))
        assert report.counts["mixed_boxes"] == 1
        (mixed,) = (finding for finding in report.findings if finding.kind == "mixed_boxes")
        assert mixed.row == 3 and "thousandths, xyxy" in mixed.message

    def test_lists_of_other_questions_are_not_boxes(self, tmp_path):
        path = _file(tmp_path, ["[900, 800, 700, 600]"], question="<image>List the bars' values.")
        assert check(path).counts == {}

    def test_none_is_no_answer_elsewhere(self, tmp_path):
        path = _file(tmp_path, ["none"], question="<image>How many?")
        assert check(path).counts == {"unverifiable_answer": 1}

    def test_fix_keeps_none(self, tmp_path):
        path = _file(tmp_path, ["[1, 2, 3, 4]", "none", "[0, 0, 500, 100]"])
        assert main(["data", "check", str(path), "--fix", str(tmp_path / "fixed.jsonl")]) == 2
        kept = (tmp_path / "fixed.jsonl").read_text().splitlines()
        assert [json.loads(row)["answer"] for row in kept] == ["[1, 2, 3, 4]", "none"]
