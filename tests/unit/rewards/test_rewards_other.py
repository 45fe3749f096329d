"""Boxes, OCR, the LLM judge and the alarms, against hand-computed values."""

from __future__ import annotations

import json

import pytest

from prism_lite.config import JudgeConfig
from prism_lite.rewards.boxes import boxes_score, iou, iou_reward, parse_boxes
from prism_lite.rewards.judge import ask_judge, judge_reward
from prism_lite.rewards.ocr import edit_distance, edit_similarity, ocr_reward
from prism_lite.stages.alarms import completions, discriminator, rewards


def _completion(answer: str) -> str:
    return f"<caption>- a</caption><think>b</think><answer>{answer}</answer>"


class TestBoxes:
    @pytest.mark.parametrize(
        ("left", "right", "value"),
        [
            ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
            ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
            ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
            ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
            ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ],
    )
    def test_iou(self, left, right, value):
        assert iou(left, right) == pytest.approx(value)
        assert iou(right, left) == pytest.approx(value)

    @pytest.mark.parametrize(
        ("text", "boxes"),
        [
            ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
            ("(1,2),(3,4)", [(1, 2, 3, 4)]),
            ("[(1, 2), (3, 4)]", [(1, 2, 3, 4)]),
            ("1 2 3 4", [(1, 2, 3, 4)]),
            ('{"bbox_2d": [10, 20, 5, 40]}', [(5, 20, 10, 40)]),
            ("[[1, 2, 3, 4], [5, 6, 7, 8.5]]", [(1, 2, 3, 4), (5, 6, 7, 8.5)]),
            ("no box", []),
            ("[1, 2, 3]", []),
            ("<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
        ],
    )
    def test_parse(self, text, boxes):
        assert parse_boxes(text) == boxes

    def test_too_many_boxes_cost(self):
        gold = [(0.0, 0.0, 10.0, 10.0)]
        assert boxes_score(gold, gold) == 1.0
        assert boxes_score([*gold, (20.0, 20.0, 30.0, 30.0)], gold) == 0.5
        assert boxes_score([], gold) == 0.0
        assert boxes_score(gold * 2, gold) == 0.5  # the same box twice is matched once

    def test_reward(self):
        completions = [_completion("[0, 0, 10, 10]"), _completion("none"), "[0, 0, 10, 10]", ""]
        gold = [[0, 0, 10, 10], "[0, 0, 10, 10]", [[0, 0, 10, 10]], None]
        assert iou_reward([""] * 4, completions, boxes=gold) == [1.0, 0.0, 0.0, None]

    def test_gold_without_box_is_an_error(self):
        with pytest.raises(ValueError, match="row 0: the gold answer 'left' holds no box"):
            iou_reward([""], [_completion("[1, 2, 3, 4]")], boxes=["left"])
        with pytest.raises(ValueError, match="boxes has 0 rows and completions 1"):
            iou_reward([""], [_completion("[1, 2, 3, 4]")])

    def test_the_gold_boxes_may_be_in_the_answer(self):
        completion = _completion("[0, 0, 10, 5]")
        assert iou_reward([""], [completion], answer=["[0, 0, 10, 10]"]) == [0.5]


class TestOcr:
    @pytest.mark.parametrize(
        ("left", "right", "distance"),
        [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "axbc", 1),
            ("abcd", "bcda", 2),
            ("flaw", "lawn", 2),
            ("aaa", "aa", 1),
        ],
    )
    def test_edit_distance(self, left, right, distance):
        assert edit_distance(left, right) == distance
        assert edit_distance(right, left) == distance

    def test_similarity(self):
        assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
        assert edit_similarity("a  b\n", "a b") == 1.0
        assert edit_similarity("ABC", "abc") == 0.0
        assert edit_similarity("ABC", "abc", ignore_case=True) == 1.0
        assert edit_similarity("", "") == 0.0

    def test_long_text_is_cut_and_counted(self):
        assert edit_similarity("a" * 8000, "a" * 4000 + "b" * 4000) == pytest.approx(0.5)

    def test_reward(self):
        completions = [_completion("STOP"), _completion("STOF"), "STOP", _completion("x")]
        rewards = ocr_reward([""] * 4, completions, answer=["STOP", "STOP", "STOP", None])
        assert rewards == [1.0, 0.75, 0.0, None]


class TestJudge:
    SETTINGS = JudgeConfig("http://localhost:1/v1", "small", key_variable="TEST_JUDGE_KEY")

    @staticmethod
    def _post(*replies, seen=None):
        left = list(replies)

        def post(url, body, headers, timeout_s):
            if seen is not None:
                seen.append((url, body, headers, timeout_s))
            reply = left.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return {"choices": [{"message": {"content": reply}}]}

        return post

    def test_request_and_verdict(self, monkeypatch):
        monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
        seen = []
        assert ask_judge("q?", "sofa", "couch", self.SETTINGS, post=self._post("Yes.", seen=seen))
        url, body, headers, timeout_s = seen[0]
        assert url == "http://localhost:1/v1/chat/completions"
        assert headers["Authorization"] == "Bearer secret" and timeout_s == 30.0
        assert "sofa" in body["messages"][0]["content"] and body["temperature"] == 0
        assert "secret" not in json.dumps(body)

    def test_no_key_no_header(self, monkeypatch):
        monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
        seen = []
        assert not ask_judge("q?", "a", "b", self.SETTINGS, post=self._post("no", seen=seen))
        assert "Authorization" not in seen[0][2]

    def test_tries_again_then_says_why(self):
        post = self._post(OSError("refused"), "hm", "yes")
        waited: list[float] = []
        assert ask_judge("q?", "a", "b", self.SETTINGS, post=post, sleep=waited.append)
        assert waited == [2.0, 4.0], "a server that is busy gets time"
        with pytest.raises(RuntimeError, match=r"no verdict in 3 tries .*neither yes nor no"):
            ask_judge(
                "q?",
                "a",
                "b",
                self.SETTINGS,
                post=self._post("hm", "hm", "hm"),
                sleep=waited.append,
            )

    def test_address_must_be_http(self):
        with pytest.raises(ValueError, match="is not an http address"):
            ask_judge("q?", "a", "b", JudgeConfig("file:///etc", "m"))

    def test_verifier_goes_first(self):
        completions = [_completion("1,234"), _completion("sofa"), "malformed", _completion("x")]
        rewards = judge_reward(
            ["q?"] * 4,
            completions,
            answer=["1234", "couch", "1", None],
            settings=self.SETTINGS,
            post=self._post("yes"),  # one request only
        )
        assert rewards == [1.0, 1.0, 0.0, None]

    def test_accepted_forms_and_choices_cost_no_request(self):
        rewards = judge_reward(
            ["q?"] * 2,
            [_completion("settee"), _completion("B")],
            answer=[("couch", "settee"), "blue"],
            choices=[None, ("red", "blue")],
            settings=self.SETTINGS,
            post=self._post(),  # any request would fail
        )
        assert rewards == [1.0, 1.0]


class TestGuards:
    def test_losing_discriminator(self):
        lost = [(0.4, 0.3), (0.49, 0.1), (0.2, 0.45)]
        for accuracies in ([], lost[:2], [*lost, (0.5, 0.1)], [(0.4, 0.4), (0.1, 0.6), (0.2, 0.2)]):
            assert discriminator.losing_discriminator(accuracies) is None
        for accuracies in (lost, [(0.9, 0.9), *lost]):
            alarm = discriminator.losing_discriminator(accuracies)
            assert alarm and (alarm.name, alarm.value) == ("losing_discriminator", 0.49)

    def test_length_collapse(self):
        assert completions.length_collapse([100, 100], usual_num_tokens=120) is None
        alarm = completions.length_collapse([10, 30], usual_num_tokens=100)
        assert alarm and (alarm.name, alarm.value, alarm.limit) == ("length_collapse", 0.2, 0.4)
        assert completions.length_collapse([], usual_num_tokens=100) is None

    def test_zero_spread(self):
        assert rewards.zero_spread_groups([0, 1, 0, 1], group_size=2) is None
        alarm = rewards.zero_spread_groups([1, 1, 0, 0, 1, 1, 0, 1], group_size=2)
        assert alarm and alarm.name == "zero_spread_groups" and alarm.value == 0.75

    def test_unscored_rollouts(self):
        assert rewards.unscored_rollouts([0.0, 1.0]) is None
        alarm = rewards.unscored_rollouts([0.0, float("nan"), 1.0, 1.0])
        assert alarm and (alarm.name, alarm.value) == ("unscored_rollouts", 0.25)

    def test_repeated_text(self):
        loop = "the bar is red " * 30
        assert completions.repeated_share(loop) > 0.9
        assert completions.repeated_share("one two three four five six seven eight nine ten") == 0.0
        assert completions.repeated_share("short") == 0.0
        # 9 words, 6 runs of 4, of which the last 2 repeat the first 2.
        assert completions.repeated_share("a b c d x a b c d") == pytest.approx(1 / 6)
        assert completions.repeated_text(["fine text here"] * 9 + [loop]) is None
        alarm = completions.repeated_text(["fine text here"] * 3 + [loop])
        assert alarm and alarm.name == "repeated_text" and alarm.value == 0.25

    def test_answer_inside_think(self):
        clean = "<caption>a</caption><think>2+3 is 5</think><answer>5</answer>"
        tagged = "<caption>a</caption><think>so <answer>5</answer></think>"
        boxed = r"<caption>a</caption><think>\boxed{5}</think><answer>5</answer>"
        outside = r"<caption>a</caption><think>b</think><answer>\boxed{5}</answer>"
        cut = "<caption>a</caption><think>The final answer is 5"
        assert completions.answers_inside_think([clean, outside]) is None
        alarm = completions.answers_inside_think([clean, tagged, boxed, cut])
        assert alarm and alarm.name == "answer_inside_think" and alarm.value == 0.75

    def test_discriminator(self):
        assert discriminator.discriminator_saturation([1.0, 0.0, 9.9], cap=10) is None
        alarm = discriminator.discriminator_saturation([9.9, 9.8, -9.9, 1.0], cap=10)
        assert alarm and (alarm.name, alarm.value) == ("discriminator_saturation", 0.75)

    def test_discriminator_too_strong(self):
        assert discriminator.discriminator_too_strong([1.0, 0.0], [0.5, 0.5]) is None
        alarm = discriminator.discriminator_too_strong([1.0, 2.0], [0.5, 0.5])
        assert alarm and (alarm.name, alarm.value) == ("discriminator_too_strong", 1.0)
