"""RLVR with every option: losses, minibatches, KL, entropy, dynamic sampling, masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from prism_lite.config import OptimConfig, SamplingConfig
from prism_lite.files import read_jsonl
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import make_optimizer
from prism_lite.policy.losses import PolicyLossConfig
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.rlvr import run_rlvr
from tests.micro import fill_adapter


@pytest.fixture
def sampled(backbone, task):
    """A schooled backbone with a policy of its own, and three groups that it sampled."""
    fill_adapter(backbone, scale=0.02)
    groups = sample_groups(
        backbone,
        task.rlvr[:3],
        group_size=4,
        sampling=SamplingConfig(max_completion_tokens=24),
        seed=("options",),
    )
    assert {r.finish for group in groups for r in group.rollouts} == {"end", "length"}
    return backbone, groups


ADVANTAGE_R = torch.tensor([1.0, -1.0, 0.5, -0.5, 0, 0, 0, 0, 2.0, -1.0, -1.0, 0.0])


def update(
    backbone,
    groups,
    task,
    loss,
    *,
    advantage_R=ADVANTAGE_R,
    max_pack_tokens=100_000,
    **options,
):
    """Metrics of one update and the gradients of its steps."""
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=max_pack_tokens)
    optimizer = make_optimizer(backbone.policy_parameters(), OptimConfig())
    gradients: list[torch.Tensor] = []

    def keep_gradient(*_):
        parameters = backbone.policy_parameters()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in parameters]))

    optimizer.inner.register_step_pre_hook(keep_gradient)
    metrics = update_policy(
        backbone,
        optimizer,
        groups,
        advantage_R,
        temperature=1.0,
        optim=OptimConfig(max_grad_norm=1e9),
        learning_rate=1e-3,
        loss=loss,
        **options,
    )
    return metrics, gradients


KINDS = ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "sapo"]


@pytest.mark.parametrize("kind", KINDS)
def test_packs_split_a_batch_without_changing_its_gradient(sampled, task, kind):
    backbone, groups = sampled
    before = backbone.adapter_state()
    loss = PolicyLossConfig(kind=kind, kl_weight=0.1, entropy_weight=0.05, max_completion_tokens=24)
    found = []
    longest = max(len(backbone.prompt(group.sample)) for group in groups)
    for max_pack_tokens in (100_000, longest + 50):  # at most two rollouts a pack
        backbone.load_adapter_state(before)
        found.append(
            update(
                backbone,
                groups,
                task,
                loss,
                max_pack_tokens=max_pack_tokens,
                mask_truncated=True,
            )
        )
    (whole, whole_gradient), (split, split_gradient) = found
    assert len(split_gradient) == 1
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-6)
    scale = float(whole_gradient[0].abs().max())
    torch.testing.assert_close(split_gradient[0], whole_gradient[0], rtol=0, atol=1e-4 * scale)


def test_old_logprobs_are_computed_only_for_several_minibatches(sampled, task, monkeypatch):
    """Two groups have advantages: one forward each; with two minibatches one more without gradient."""
    backbone, groups = sampled
    forwards = []
    forward = backbone.hidden_states
    monkeypatch.setattr(
        backbone,
        "hidden_states",
        lambda pack, **kw: forwards.append(torch.is_grad_enabled()) or forward(pack, **kw),
    )
    update(backbone, groups, task, PolicyLossConfig())
    assert forwards == [True]
    forwards.clear()
    metrics, _ = update(backbone, groups, task, PolicyLossConfig(), num_minibatches=2)
    assert forwards == [False, False, True, True]
    assert metrics["num_optimizer_steps"] == 2
    assert update(backbone, [], task, PolicyLossConfig())[0] == {"learning_rate": 1e-3}


def test_old_logprobs_are_those_of_the_policy_that_sampled(sampled, task):
    """The second minibatch is clipped, which needs log-probs from before the first step."""
    backbone, groups = sampled
    loss = PolicyLossConfig(clip_low=1e-4, clip_high=1e-4, clip_dual=None)
    metrics, gradients = update(backbone, groups, task, loss, num_minibatches=2)
    assert len(gradients) == 2
    assert metrics["clip_ratio/region_mean"] > 0, "the first step moves the second's ratios"
    one_step, _ = update(backbone, groups, task, loss)
    assert one_step["clip_ratio/region_mean"] == 0.0


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "k3", "full"])
def test_kl_to_the_start_is_zero_there_and_grows(sampled, task, kind):
    backbone, groups = sampled
    arguments = {"temperature": 1.0}
    backbone.freeze_copy(REFERENCE)
    assert rollout_kl(backbone, groups, kind, **arguments).abs().max() < 1e-3
    loss = PolicyLossConfig(kl_weight=0.1, kl_kind=kind)
    assert abs(update(backbone, groups, task, loss)[0]["kl"]) < 1e-4
    moved = update(backbone, groups, task, loss)[0]["kl"]
    moved_R = rollout_kl(backbone, groups, kind, **arguments)
    assert moved_R.shape == (12,)
    assert abs(moved) > 1e-6
    if kind == "full":
        assert moved > 0
        assert bool((moved_R > 0).all())


def test_the_base_as_reference_is_the_backbone_without_adapter(sampled, task):
    backbone, groups = sampled
    backbone.freeze_copy(REFERENCE)
    backbone.drop_adapter(REFERENCE)
    arguments = {"temperature": 1.0}
    assert rollout_kl(backbone, groups, "full", **arguments).max() > 1e-3
    state = backbone.adapter_state()
    backbone.load_adapter_state({name: torch.zeros_like(t) for name, t in state.items()})
    assert rollout_kl(backbone, groups, "full", **arguments).abs().max() < 1e-5


def test_masked_rollouts_do_not_reach_the_gradient(sampled, task):
    """As if they had no advantage, but for the mean: it is over the others' tokens."""
    backbone, groups = sampled
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    ended_R = torch.tensor([rollout.finish == "end" for rollout in rollouts])
    before = backbone.adapter_state()
    _, masked = update(backbone, groups, task, PolicyLossConfig(), mask_truncated=True)
    backbone.load_adapter_state(before)
    advantage_R = torch.where(ended_R, ADVANTAGE_R, 0.0)
    _, without = update(backbone, groups, task, PolicyLossConfig(), advantage_R=advantage_R)
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
    more = float(lengths.sum() / lengths[ended_R].sum())
    assert more > 1.2
    torch.testing.assert_close(masked[0], without[0] * more, rtol=1e-3, atol=1e-6)


def has_moved(folder) -> bool:
    """Whether RLVR changed the policy it started from."""
    before, after = (
        load_file(folder / "stages" / stage / "final" / "policy.safetensors")
        for stage in ("align", "rlvr")
    )
    return any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["dr_grpo", "gspo", "sapo"])  # each by its own way of a mean
def test_the_stage_trains_with_the_loss(play, kind):
    _, folder, lines = play(
        run_rlvr,
        rlvr__loss=kind,
        rlvr__num_minibatches=2,
        rlvr__steps=2,
        rlvr__entropy_weight=0.01,
        sampling__temperature=1.0,
    )
    assert all({"loss", "grad_norm", "entropy"} <= m.keys() for m in lines)
    assert "2 optimizer steps per batch: old log-probs are computed once" in play.text
    assert has_moved(folder)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize(("kl_kind", "reference"), [("k1", "base"), ("full", "start")])
def test_the_stage_with_each_place_of_the_kl(play, kl_in, kl_kind, reference):
    _, _, lines = play(
        run_rlvr,
        rlvr__kl_weight=0.1,
        rlvr__kl_in=kl_in,
        rlvr__kl_kind=kl_kind,
        rlvr__kl_reference=reference,
        rlvr__steps=2,
        sampling__temperature=1.0,
    )
    assert all("kl" in m for m in lines)
    if reference == "start":
        assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
        assert lines[1]["kl"] > 0
    else:
        assert abs(lines[0]["kl"]) > 1e-3
    assert "one optimizer step per batch: the ratio is 1" in play.text


def test_dynamic_sampling_fills_the_batch_with_groups_that_teach(play):
    config, folder, lines = play(
        run_rlvr,
        rlvr__algorithm="dapo",
        rlvr__steps=2,
        sampling__temperature=1.0,
    )
    size = config.rlvr.group_size
    for line in lines:
        records = read_jsonl(folder / "rollouts" / f"rlvr-{line['step']}.jsonl")
        groups = [records[i : i + size] for i in range(0, len(records), size)]
        prompts = [group[0]["prompt_id"] for group in groups]
        assert len(set(prompts)) == len(prompts), "no prompt is sampled twice in a step"
        spread = [len({r["rewards"]["accuracy"] for r in group}) > 1 for group in groups]
        assert line["dynamic_sampling/num_filtered"] == spread.count(False)
        assert line["dynamic_sampling/num_kept"] == min(spread.count(True), 2)
        assert {"overlong", "accuracy", "format"} == set(records[0]["rewards"])
        kept = [i for i, has_spread in enumerate(spread) if has_spread][:2]
        for i, group in enumerate(groups):
            assert any(r["advantage"] for r in group) == (i in kept)
    assert any(line["dynamic_sampling/num_batches"] > 1 for line in lines)


def test_dynamic_sampling_without_anything_to_keep_says_so_once_and_goes_on(play):
    config, folder, lines = play(
        run_rlvr,
        rlvr__dynamic_sampling=True,
        rlvr__max_sampled_batches=3,
        rlvr__steps=2,
        sampling__max_completion_tokens=4,
    )
    assert [m["dynamic_sampling/num_batches"] for m in lines] == [3, 3]
    assert [m["dynamic_sampling/num_kept"] for m in lines] == [0, 0]
    filtered = [m["dynamic_sampling/num_filtered"] for m in lines]
    assert all(0 < n <= 3 * config.rlvr.prompts_per_step for n in filtered)
    assert all("loss" not in m for m in lines), "no loss is made up where there was no step"
    assert play.text.count("goes on with 0 instead of 2") == 1
    assert not has_moved(folder)


def test_an_alarm_is_printed_once_and_counted_at_every_step(play):
    _, _, lines = play(run_rlvr, sampling__max_completion_tokens=4, rlvr__steps=3)
    assert [m["alarms/zero_spread_groups"] for m in lines] == [1.0] * 3
    assert play.text.count("alarm zero_spread_groups in rlvr step 0") == 1
    assert play.text.count("alarm zero_spread_groups") == 1
