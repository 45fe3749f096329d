"""The rivals `align.method: best_of_n` and `rlvr.teacher_rollout`, on the micro model."""

from __future__ import annotations

import math

import pytest
import torch

from prism_lite.config import PolicyLossConfig
from prism_lite.data.task import load_task
from prism_lite.files import read_jsonl
from prism_lite.policy.losses import BatchSize, LossInputs, policy_loss, shaped_teacher_logprob
from prism_lite.recipe import load_recipe
from prism_lite.rewards.accuracy import accuracy_reward
from prism_lite.stages import best_of_n
from prism_lite.stages.rlvr import run_rlvr
from tests.micro import micro_recipe


def test_the_shaped_weight_by_hand():
    """LUFFY: the gradient of p / (p + 0.1) by log p is 0.1 p / (p + 0.1)^2, times the advantage."""
    probability_N = torch.tensor([0.9, 0.1, 0.001])
    logprob_N = probability_N.log().requires_grad_()
    inputs = LossInputs(
        policy_logprob_N=shaped_teacher_logprob(logprob_N),
        old_logprob_N=torch.zeros(3),
        advantage_R=torch.tensor([2.0]),
        rollout_N=torch.zeros(3, dtype=torch.long),
        is_counted_R=torch.tensor([True]),
        size=BatchSize(num_tokens=3, mean_tokens=3, mean_rollouts=1, max_completion_tokens=9),
    )
    loss, _ = policy_loss(inputs, PolicyLossConfig())
    assert float(loss) == pytest.approx(-2 * float((probability_N / (probability_N + 0.1)).mean()))
    loss.backward()
    expected_N = -2 * 0.1 * probability_N / (probability_N + 0.1) ** 2 / 3
    assert logprob_N.grad.tolist() == pytest.approx(expected_N.tolist(), rel=1e-4)


def test_the_teacher_is_one_rollout_of_each_group(play):
    config, folder, metrics = play(run_rlvr, rlvr__teacher_rollout=True, rlvr__steps=2)
    teachers = {sample.id: sample.teacher for sample in load_task(config).rlvr}
    for step in range(2):
        records = read_jsonl(folder / "rollouts" / f"rlvr-{step}.jsonl")
        groups = [records[i : i + 4] for i in range(0, len(records), 4)]
        assert len(groups) == config.rlvr.prompts_per_step
        for group in groups:
            *own, teacher = group
            assert not any(record.get("is_teacher") for record in own)
            assert teacher["is_teacher"] and teacher["completion"] == teachers[teacher["prompt_id"]]
            rewards = [
                sum(w * r["rewards"][n] for n, w in config.rlvr.rewards.items()) for r in group
            ]
            mean = sum(rewards) / 4
            deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
            if deviation > 1e-6:
                expected = [(r - mean) / deviation for r in rewards]
                assert [r["advantage"] for r in group] == pytest.approx(expected, abs=1e-3)
        # the metrics are of the policy's own rollouts
        own = [record for record in records if not record.get("is_teacher")]
        mean = sum(record["rewards"]["accuracy"] for record in own) / len(own)
        (line,) = [m for m in metrics if m["step"] == step and m["stage"] == "rlvr"]
        assert line["rewards/accuracy/mean"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rlvr.loss.name=gspo"], ("gspo", "dapo")),
        (["rlvr.game=on"], ("rlvr.game",)),
    ],
)
def test_what_the_teachers_rollout_excludes(overrides, words):
    with pytest.raises(ValueError, match=r"rlvr\.teacher_rollout") as refused:
        load_recipe("tiny", ["rlvr.teacher_rollout=true", *overrides])
    for word in words:
        assert word in str(refused.value)


def test_best_of_n_imitates_accepted_rollouts_only(play, monkeypatch):
    imitated = []
    original = best_of_n.imitate

    def imitate(context, stage, rows, completion_of, **options):
        imitated.extend((row, completion_of(row)) for row in rows)
        original(context, stage, rows, completion_of, **options)

    monkeypatch.setattr(best_of_n, "imitate", imitate)
    config, folder, metrics = play(
        best_of_n.run_best_of_n,
        align__method="best_of_n",
        align__steps=3,
        align__prompts_per_step=8,
        align__group_size=4,
    )
    assert imitated
    for row, text in imitated:
        assert accuracy_reward([""], [text], answer=[row.answer]) == [1.0]
    num_prompts = 3 * 8 / 4
    assert len({row.key for row, _ in imitated}) == len(imitated) <= num_prompts
    assert f"of {config.align.group_size}: the verifier accepts" in play.text
    assert [m["step"] for m in metrics if m["stage"] == "align"] == [0, 1, 2]
    assert (folder / "stages/align/final/policy.safetensors").is_file()


def test_best_of_n_without_accepted_rollouts_is_refused(play, monkeypatch):
    monkeypatch.setattr(
        best_of_n,
        "accuracy_of",
        lambda groups, _: torch.zeros(sum(len(g.rollouts) for g in groups)),
    )
    with pytest.raises(ValueError, match="accepts none of the"):
        play(best_of_n.run_best_of_n, align__method="best_of_n")


def test_best_of_n_has_no_discriminator():
    config = micro_recipe(align__method="best_of_n")
    assert config.align.mode == "align"
    with pytest.raises(ValueError, match="has no discriminator"):
        micro_recipe(align__method="best_of_n", align__mode="gated")
