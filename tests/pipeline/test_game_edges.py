"""Alignment and RLVR where a batch teaches nothing, and the options that are off by default."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from prism_lite.files import read_jsonl
from prism_lite.stages.align import run_align
from prism_lite.stages.rlvr import run_rlvr
from prism_lite.stages.warmup import run_warmup
from tests.micro import micro_recipe


def test_alignment_survives_steps_in_which_everything_is_malformed(play):
    """Four tokens hold no three parts: no score exists, and none is made up."""
    _, folder, lines = play(run_align, sampling__max_completion_tokens=4, align__steps=2)
    for step in (0, 1):
        line = next(m for m in lines if m["step"] == step)
        assert line["malformed_rate"] == 1.0
        assert "disc/score_student_perception" not in line
        assert "disc/pair_accuracy_reasoning" not in line
        records = read_jsonl(folder / "rollouts" / f"align-{step}.jsonl")
        assert all(record["advantage"] == 0 for record in records)


def test_rlvr_survives_groups_without_spread(play):
    """Everything malformed: every reward 0, nothing to learn, and nothing moves."""
    _, folder, lines = play(run_rlvr, sampling__max_completion_tokens=4, rlvr__steps=2)
    assert [m["frac_reward_zero_std"] for m in lines] == [1.0, 1.0]
    assert [m["reward"] for m in lines] == [0.0, 0.0]
    before, after = (
        load_file(folder / "stages" / stage / "final" / "policy.safetensors")
        for stage in ("align", "rlvr")
    )
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_rlvr_with_minibatches_and_kl(play):
    config, _, lines = play(
        run_rlvr, rlvr__num_minibatches=2, rlvr__kl_weight=0.1, sampling__temperature=1.0
    )
    assert len(lines) == config.rlvr.steps
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-3)  # it starts at its reference
    assert all(m["kl"] >= 0 for m in lines)
    assert max(m["kl"] for m in lines[1:]) > 0


@pytest.mark.parametrize("routing", ["free", "dense"])
@pytest.mark.parametrize("trunk", ["sft", "base"])
def test_warmup_with_every_routing_and_trunk(play, routing, trunk):
    _, _, lines = play(
        run_warmup,
        discriminator__routing=routing,
        discriminator__trunk=trunk,
        warmup__mismatched_fraction=0.5,
        warmup__steps=2,
    )
    steps = [m for m in lines if "step_time" in m]
    assert len(steps) == 2
    num_experts = 1 if routing == "dense" else micro_recipe().discriminator.num_experts
    loads = [steps[0][f"disc/expert_load_{k}"] for k in range(num_experts)]
    assert sum(loads) == pytest.approx(1.0, abs=1e-5)
    assert f"disc/expert_load_{num_experts}" not in steps[0]
    assert any("disc/grounding_perception" in m for m in lines)
    assert any("disc/artefact_auc" in m for m in lines)


def test_reward_of_rlvr_is_weighted_accuracy_and_format(play):
    config, folder, lines = play(run_rlvr, sampling__temperature=1.0)
    for line in lines:
        records = read_jsonl(folder / "rollouts" / f"rlvr-{line['step']}.jsonl")
        rewards = [
            0.8 * record["rewards"]["accuracy"] + 0.2 * record["rewards"]["format"]
            for record in records
        ]
        assert line["reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
        group_size = config.rlvr.group_size
        for start in range(0, len(records), group_size):
            group = torch.tensor(rewards[start : start + group_size])
            spread = group.std(correction=0)
            expected = (group - group.mean()) / spread if spread > 1e-6 else 0 * group
            found = torch.tensor([r["advantage"] for r in records[start : start + group_size]])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
