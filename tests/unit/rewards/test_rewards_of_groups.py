"""Rewards of sampled groups: one per rollout, in order, whatever the completions are."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from prism_lite import parts
from prism_lite.data.task import TaskData
from prism_lite.rewards import load
from prism_lite.rewards.group_rewards import group_accuracy, group_verdicts, rewards_of
from prism_lite.rewards.judge import judge_reward
from prism_lite.rewards.load import load_rewards
from prism_lite.stages.alarms.rewards import undecided_answers
from prism_lite.stages.evaluate import _rates
from prism_lite.stages.rollout_log import undecided_metrics
from prism_lite.types import FinishReason, Group, Rollout, Sample, Turn
from tests.micro import micro_recipe

GOOD = "<caption>two digits</caption><think>3 and 7</think><answer>{}</answer>"


def rollout(text: str, finish: FinishReason = "end", num_tokens: int = 2) -> Rollout:
    zeros_C = torch.zeros(num_tokens)
    return Rollout((1,) * num_tokens, text, parts.parse(text), finish, zeros_C, zeros_C)


def group(answer: str | None, *rollouts: Rollout, **fields: Any) -> Group:
    return Group(Sample("a", (Turn("user", "How many?"),), answer=answer, **fields), rollouts)


def rewards_with(weights: dict[str, float], *groups: Group, **overrides: Any) -> dict[str, Any]:
    config = micro_recipe(rlvr__rewards=weights, **overrides)
    rewards = rewards_of(groups, load_rewards(config))
    return {name: value_R.tolist() for name, value_R in rewards.items()}


def test_each_rollout_has_its_reward_in_order():
    groups = [
        group("7", rollout(GOOD.format(7)), rollout(GOOD.format(6)), rollout("7")),
        group("3", rollout(GOOD.format(3), "length"), rollout(GOOD.format("3.0")), rollout("")),
    ]
    rewards = rewards_with({"accuracy": 0.8, "format": 0.2}, *groups)
    assert rewards["accuracy"] == [1, 0, 0, 0, 1, 0]
    # truncated after a complete triple: malformed here as in alignment
    assert rewards["format"] == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_a_row_without_an_answer_is_named(answer):
    with pytest.raises(ValueError, match="a: no answer to verify"):
        group_accuracy(group(answer, rollout(GOOD.format(7))))


def test_accepted_answers_and_choices_of_the_row_count():
    row = group("couch", rollout(GOOD.format("settee")), accepted=("settee",))
    assert rewards_with({"accuracy": 1}, row) == {"accuracy": [1]} and group_accuracy(row) == [1]
    row = group("blue", rollout(GOOD.format("B")), choices=("red", "blue"))
    assert rewards_with({"accuracy": 1}, row) == {"accuracy": [1]} and group_accuracy(row) == [1]


def test_only_the_rewards_that_are_named(monkeypatch):
    asked = []

    def post(url, body, headers, timeout_s):
        asked.append(body["messages"][0]["content"])
        return {"choices": [{"message": {"content": "yes"}}]}

    monkeypatch.setattr(load, "judge_reward", functools.partial(judge_reward, post=post))
    box = group(
        "[0, 0, 10, 10]",
        rollout(GOOD.format("[0, 0, 10, 5]")),
        rollout(GOOD.format("[0, 0, 10, 10]")),
        rollout(GOOD.format("[0, 0, 10, 10]"), "length"),
    )
    assert rewards_with({"boxes": 1}, box) == {"boxes": pytest.approx([0.5, 1, 0])}
    text = group(
        "abcd", rollout(GOOD.format("abxd")), rollout(GOOD.format("abcd")), rollout("abcd")
    )
    judge = {"rlvr__judge__base_url": "http://localhost:1/v1", "rlvr__judge__model": "small"}
    rewards = rewards_with({"ocr": 1, "judge": 1}, text, **judge)
    assert rewards == {"ocr": pytest.approx([0.75, 1, 0]), "judge": [1, 1, 0]}
    assert len(asked) == 1, "only what the verifier does not accept costs a request"


def test_the_overlong_penalty_begins_at_the_buffer():
    lengths = group("7", *(rollout("", num_tokens=n) for n in (1, 36, 42, 48)))
    rewards = rewards_with({"overlong": 1}, lengths, rlvr__overlong_buffer=0.25)
    assert rewards == {"overlong": [0, 0, -0.5, -1]}  # the limit of the micro recipe is 48


class TestUndecided:
    """An answer that the verifier cannot compare: no reward at all, counted, not right."""

    ROW = ("x+5", rollout(GOOD.format("10^{10^{10^{10}}}+x")), rollout(GOOD.format("x+5")))

    def test_no_reward_at_all(self):
        row = group(*self.ROW)
        rewards = rewards_with({"accuracy": 0.8, "format": 0.2}, row)
        assert [math.isnan(value) for value in rewards["accuracy"]] == [True, False]
        assert [math.isnan(value) for value in rewards["format"]] == [True, False]
        tensors = {name: torch.tensor(values) for name, values in rewards.items()}
        assert undecided_metrics([row], tensors) == {"rewards/accuracy/undecided": 0.5}
        assert undecided_metrics([row], {"format": tensors["format"]}) == {}

    def test_evaluation_counts_it_as_not_right(self):
        assert group_verdicts(group(*self.ROW)) == [None, 1.0]
        assert group_accuracy(group(*self.ROW)) == [0.0, 1.0]
        task = TaskData((), (), (), (), (), None)
        assert _rates([group(*self.ROW)], task)["undecided_rate"] == [0.5]
        assert "undecided_rate" not in _rates([group("5", rollout(GOOD.format(5)))], task)

    def test_alarm_above_one_percent(self):
        assert undecided_answers(0.01) is None
        alarm = undecided_answers(0.02)
        assert alarm is not None and "could not compare 2.0% of the answers" in alarm.message
