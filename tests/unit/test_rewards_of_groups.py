"""Rewards of sampled groups: one per rollout, in order, whatever the completions are."""

from __future__ import annotations

import functools

import pytest
import torch

from prism_lite import parts
from prism_lite.config import JudgeConfig, RlvrConfig
from prism_lite.rewards import group_rewards
from prism_lite.rewards.group_rewards import further_rewards, group_accuracy, verifiable_rewards
from prism_lite.rewards.judge import judge_reward
from prism_lite.types import Group, Rollout, Sample, Turn

GOOD = "<caption>two digits</caption><think>3 and 7</think><answer>{}</answer>"


def rollout(text: str, finish="end") -> Rollout:
    return Rollout((1, 2), text, parts.parse(text), finish, torch.zeros(2), torch.zeros(2))


def group(answer, *rollouts: Rollout) -> Group:
    return Group(Sample("a", (Turn("user", "How many?"),), answer=answer), rollouts)


def test_each_rollout_has_its_reward_in_order():
    groups = [
        group("7", rollout(GOOD.format(7)), rollout(GOOD.format(6)), rollout("7")),
        group("3", rollout(GOOD.format(3), "length"), rollout(GOOD.format("3.0")), rollout("")),
    ]
    found = verifiable_rewards(groups)
    assert found["accuracy"].tolist() == [1, 0, 0, 0, 1, 0]
    # cut at the limit behind a whole triple: malformed here as in alignment
    assert found["format"].tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_a_row_without_an_answer_is_named(answer):
    with pytest.raises(ValueError, match="a: no answer to verify"):
        group_accuracy(group(answer, rollout(GOOD.format(7))))


def test_further_rewards_only_where_they_have_a_weight(monkeypatch):
    asked = []

    def post(url, body, headers, timeout_s):
        asked.append(body["messages"][0]["content"])
        return {"choices": [{"message": {"content": "yes"}}]}

    monkeypatch.setattr(group_rewards, "judge_reward", functools.partial(judge_reward, post=post))
    box = group(
        "[0, 0, 10, 10]",
        rollout(GOOD.format("[0, 0, 10, 5]")),
        rollout(GOOD.format("[0, 0, 10, 10]")),
        rollout(GOOD.format("[0, 0, 10, 10]"), "length"),
    )
    assert further_rewards([box], RlvrConfig()) == {}
    found = further_rewards([box], RlvrConfig(boxes_weight=1.0))
    assert found["boxes"].tolist() == pytest.approx([0.5, 1, 0])
    text = group(
        "abcd", rollout(GOOD.format("abxd")), rollout(GOOD.format("abcd")), rollout("abcd")
    )
    settings = JudgeConfig("http://localhost:1/v1", "small")
    found = further_rewards([text], RlvrConfig(ocr_weight=1.0, judge_weight=1.0, judge=settings))
    assert found["ocr"].tolist() == pytest.approx([0.75, 1, 0])
    assert found["judge"].tolist() == [1, 1, 0]
    assert len(asked) == 1, "only what the verifier does not accept costs a request"
